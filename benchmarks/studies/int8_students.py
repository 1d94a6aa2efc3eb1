"""Is the int8 file of a student finished for it more robust than one quantised after training? CIFAR-10, 3 seeds.

    python benchmarks/studies/int8_students.py --root DATA --teacher FILE --out benchmarks/results/int8-DATE.json

FILE are the weights of a ResNet-2B2 with BatchNorm that somebody trained adversarially at 8/255: the teacher. Each seed
has its own 5,000 training images, on which a student is trained with AKD (alpha 0.5), and finished for five epochs with
weights and activations rounded. Three files are attacked as they are shipped (`--suite deployed`): the student in
float32, the same in int8, and the finished one in int8. About six minutes a seed on one core; the same command resumes.
The student is a ResNet-2B2, or another network:

    --student '--model mobilenetv2 --model.width 0.25' --epochs 30
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import robustill as rb
from robustill.analysis.summary import summary
from robustill.config.recipes import resolve
from robustill.core.device import environment
from robustill.evaluation.targets import evaluate_file
from robustill.training.loop import train

FINISHING = ("--model.quantize", "int8", "--optim.epochs", "5", "--optim.learning_rate", "0.01")
FULL_RADIUS = ("--attack.first_eps", "null")
NORMALISATION = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
COLUMNS = ("clean_accuracy", "robust_accuracy", "transfer", "bpda", "white-box", "square", "bytes", "ms_1", "ms_32")
"""The families of attacks are each of them alone; `robust_accuracy` is against all of them."""


def students(seed: int, folder: Path, root: Path, teacher: Path, student: list[str], epochs: int) -> dict[str, Path]:
    """Train the student of a seed and finish it; return both runs by name."""
    spec = {"spec": str(teacher), "model": {"name": "resnet_2b2", **NORMALISATION}}
    common = ["--seed", str(seed), "--data.split_seed", str(seed), "--data.root", str(root), "--method", "akd"]
    common += ["--method.alpha", "0.5", "--teachers", json.dumps([spec]), *student]
    runs = {"student": folder / "student", "finished": folder / "finished"}
    train(resolve("cifar10_part_at", [*common, "--optim.epochs", str(epochs)]), runs["student"])
    initial = ["--initial", f"run:{runs['student']}@best"]
    train(resolve("cifar10_part_at", [*common, *initial, *FINISHING, *FULL_RADIUS]), runs["finished"])
    return runs


def files(runs: dict[str, Path], folder: Path) -> dict[str, tuple[Path, Path]]:
    """Export the three files; return each with the run whose float network attacks it."""
    wanted = {
        "float32": ("student", False),
        "int8 after training": ("student", True),
        "int8, finished for it": ("finished", True),
    }
    made = {}
    for name, (run, int8) in wanted.items():
        file = folder / f"{name.replace(', ', '-').replace(' ', '-')}.onnx"
        if not file.exists():
            rb.export(f"run:{runs[run]}@best", file, int8=int8)
        made[name] = (file, runs[run])
    return made


def attack(file: Path, run: Path, root: Path, images: int) -> dict[str, Any]:
    """Attack a file as it is shipped, and return its numbers, and of each test image whether it withstood: 1 or 0."""
    overrides = ["--data", "cifar10", "--data.root", str(root), "--threat", "linf:8/255", "--compute.threads", "1"]
    (records,) = evaluate_file(
        file,
        out=file.parent / "evaluations",
        overrides=overrides,
        suite="deployed",
        num_images=images,
        eps_curve=False,
        surrogate=f"run:{run}@best",
    ).values()
    withstood = "".join("1" if each else "0" for each in records.robust)
    return numbers(summary(records), records.conditions) | {"images": withstood}


def numbers(results: dict[str, Any], conditions: dict[str, Any]) -> dict[str, float]:
    """Return the columns from a summary and its conditions."""
    alone = conditions["attacked_as_shipped"]["robust_accuracy_alone"]
    cost = conditions["deployment"]
    return {
        "clean_accuracy": results["clean_accuracy"],
        "robust_accuracy": results["robust_accuracy"],
        **{family: alone[family] for family in ("transfer", "bpda", "white-box", "square") if family in alone},
        "bytes": cost["bytes"],
        "ms_1": cost["milliseconds"]["1"]["median"],
        "ms_32": cost["milliseconds"]["32"]["median"],
    }


def table(seeds: dict[int, dict[str, dict[str, Any]]]) -> Iterable[str]:
    """Yield the lines of a Markdown table: mean and standard deviation over seeds."""
    yield f"| file | {' | '.join(COLUMNS)} |"
    yield f"|---|{'---|' * len(COLUMNS)}"
    for row in next(iter(seeds.values())):
        cells = []
        for column in COLUMNS:
            values = np.array([each[row].get(column, np.nan) for each in seeds.values()])
            std = values.std(ddof=1) if len(values) > 1 else np.nan
            cells.append(f"{values.mean():.3f} ± {std:.3f}")
        yield f"| {row} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", type=shlex.split, default=[], help="settings of the student")
    parser.add_argument("--epochs", type=int, default=40, help="epochs before it is finished for int8")
    parser.add_argument("--runs", type=Path, default=Path("runs/int8"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=300, help="test images that are attacked")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    seeds: dict[int, dict[str, dict[str, Any]]] = {}
    for seed in range(arguments.seeds):
        folder = arguments.runs / f"seed-{seed}"
        runs = students(seed, folder, arguments.root, arguments.teacher, arguments.student, arguments.epochs)
        made = files(runs, folder)
        seeds[seed] = {name: attack(file, run, arguments.root, arguments.images) for name, (file, run) in made.items()}
    print("\n".join(table(seeds)))
    if arguments.out is not None:
        page = {
            "date": date.today().isoformat(),
            "environment": environment(),
            "images": arguments.images,
            "seeds": seeds,
        }
        arguments.out.write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
