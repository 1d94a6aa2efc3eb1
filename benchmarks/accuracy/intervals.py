"""Which 95 % interval of a difference of two accuracies contains the truth, for other seeds and other test images?

    python benchmarks/accuracy/intervals.py --out benchmarks/results/intervals-DATE.json

Two networks a seed classify the same made-up images. An image is easy, hard or undecided for both; the first network
has an advantage that differs by seed and by image and is 0 on average. Compared are Student's interval over seeds, the
percentile bootstrap over seeds and images, and that of `paired_over_seeds_and_images`. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.statistics import paired_over_seeds, paired_over_seeds_and_images
from robustill.core.device import environment

SIZES = ((3, 500), (5, 500), (10, 1000))
SPREADS = ((0.0, 0.0), (0.1, 0.0), (0.3, 0.0), (0.0, 0.15), (0.1, 0.15))
"""Standard deviation of the advantage over seeds, and over images; about a third of it reaches the accuracy."""
RESAMPLES = 1000

Flags = NDArray[np.bool_]
Interval = tuple[float, float]


def simulate(draws: np.random.Generator, seeds: int, images: int, over_seeds: float, over_images: float) -> list[Flags]:
    """Return whether the first and the second network are right, each bool [seeds, images]."""
    difficulty = draws.choice([0.02, 0.5, 0.98], size=images, p=[0.35, 0.3, 0.35])
    advantage = draws.normal(0, over_seeds, (seeds, 1)) + draws.normal(0, over_images, (1, images))
    # Cut to the same distance on both sides, so that the advantage stays 0 on average.
    room = np.minimum(difficulty, 1 - difficulty)
    first = difficulty + np.clip(advantage, -room, room)
    return [draws.random((seeds, images)) < first, draws.random((seeds, images)) < difficulty]


def student(first: Flags, second: Flags) -> Interval:
    """Student's interval over seeds."""
    found = paired_over_seeds(first.mean(axis=1).tolist(), second.mean(axis=1).tolist())
    return found.low, found.high


def bootstrap(first: Flags, second: Flags) -> Interval:
    """The percentile bootstrap: seeds and images are drawn independently, all seeds have the same images."""
    draws = np.random.default_rng(0)
    gaps = first.astype(np.float64) - second
    seeds, images = gaps.shape
    of_seeds = draws.multinomial(seeds, [1 / seeds] * seeds, size=RESAMPLES)
    of_images = draws.multinomial(images, [1 / images] * images, size=RESAMPLES)
    low, high = np.quantile(((of_seeds @ gaps) * of_images).sum(axis=1) / gaps.size, [0.025, 0.975])
    return float(low), float(high)


def two_way(first: Flags, second: Flags) -> Interval:
    """The interval of the tables of studies."""
    found = paired_over_seeds_and_images(first, second)
    return found.low, found.high


INTERVALS: dict[str, Callable[[Flags, Flags], Interval]] = {
    "Student, over seeds": student,
    "bootstrap, over seeds and images": bootstrap,
    "two-way, over seeds and images": two_way,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=400, help="simulated studies of each size and spread")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    draws = np.random.default_rng(1)
    rows = []
    for seeds, images in SIZES:
        for over_seeds, over_images in SPREADS:
            row: dict[str, object] = {
                "seeds": seeds, "images": images, "over_seeds": over_seeds, "over_images": over_images
            }  # fmt: skip
            studies = [simulate(draws, seeds, images, over_seeds, over_images) for _ in range(arguments.studies)]
            for name, interval in INTERVALS.items():
                found = np.array([interval(*study) for study in studies])
                contains = (found[:, 0] <= 0) & (found[:, 1] >= 0)
                row[name] = {"contains": float(contains.mean()), "width": float((found[:, 1] - found[:, 0]).mean())}
            rows.append(row)
            print(row, flush=True)
    if arguments.out is not None:
        page = {
            "date": date.today().isoformat(),
            "environment": environment(),
            "studies": arguments.studies,
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
