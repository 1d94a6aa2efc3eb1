"""Which test images is each student of digits_seeds.py right on, clean and under attack?

    python benchmarks/studies/robust_images.py runs/digits-seeds --out benchmarks/results/digits-seeds-DATE-images.json

About two seconds. With these, differences are resampled over seeds and images together (benchmarks/pages/paired.py).
One character an image, in the order of the data set: 1 where the student is right.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from digits_seeds import CHECKPOINTS, STUDENTS, load_or_evaluate

from robustill.runs.records import Records


def flags(records: Records) -> dict[str, str]:
    """Return whether the student is right on each image, clean and under attack."""
    order = records.index.argsort()
    return {
        name: "".join("01"[int(each)] for each in right[order])
        for name, right in (("clean", records.clean_correct), ("robust", records.robust))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, help="what digits_seeds.py was given as --runs")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    images = {
        int(seed.name.removeprefix("seed-")): {
            f"{student} {checkpoint}": flags(load_or_evaluate(seed / student, checkpoint + ending))
            for student, ending in STUDENTS.items()
            for checkpoint in CHECKPOINTS
        }
        for seed in sorted(arguments.runs.glob("seed-*"))
    }
    arguments.out.write_text(json.dumps({"images": images}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
