"""Are timm's MobileNetV3-small and EfficientNet-lite0 robust as they are shipped, trained with AKD on CIFAR-10?

    python benchmarks/studies/mobile_students.py --root DATA --teacher FILE --out benchmarks/results/mobile-DATE.json

Needs the extras `vision` and `export`. FILE are the weights of a ResNet-2B2 with BatchNorm that somebody trained
adversarially at 8/255: the teacher. Each student is trained on 5,000 images, exported in float32 and in int8 with its
averaged weights, and both files are attacked as they are shipped (`--suite deployed`). The first one is also trained
for six epochs with the strides that it was published with, and with one undone. About an hour on one core; the same
command resumes.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

from robustill.config.recipes import resolve
from robustill.core.device import environment, installed_version
from robustill.report.deployment import read_file
from robustill.runs.directory import RunDirectory
from robustill.runs.records import read_summary
from robustill.studies.shipping import ship
from robustill.training.loop import train

NORMALISATION = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
COMMON = ("--method", "akd", "--method.alpha", "0.5", "--compute.precision", "fp32")
UNDONE = ("--optim.ema", "0.99", "--model.undo_strides", "1", "--validation.every", "5")
STUDENTS = {
    "mobilenetv3": (
        *("--model", "timm:mobilenetv3_small_050", "--optim.epochs", "30", "--optim.batch_size", "64"),
        *UNDONE,
    ),
    # A pass takes six times as long: fewer epochs of smaller batches, and an attack of two steps of 2.5·eps/2.
    "efficientnet": (
        *("--model", "timm:efficientnet_lite0", "--optim.epochs", "5", "--optim.batch_size", "32"),
        *("--optim.learning_rate", "0.05", "--attack.steps", "2", "--attack.step_size", "0.0392157"),
        *UNDONE,
    ),
}
SHORT = (
    *("--model", "timm:mobilenetv3_small_050", "--optim.epochs", "6", "--optim.batch_size", "64"),
    *("--validation.every", "3", "--model.undo_strides"),
)
COLUMNS = ("network", "file", "weights", "bytes", "ms, 1", "ms, 32", "clean", "transfer", "BPDA", "white box", "Square")
FAMILIES = ("transfer", "bpda", "white-box", "square")


def trained(settings: tuple[str, ...], run: Path, root: Path, teacher: Path) -> RunDirectory:
    """Train a student, or return its finished run."""
    spec = {"spec": str(teacher), "model": {"name": "resnet_2b2", **NORMALISATION}}
    words = ["--data.root", str(root), "--teachers", json.dumps([spec]), *COMMON, *settings]
    train(resolve("cifar10_part_at", words), run)
    return RunDirectory(run)


def best_validation(run: RunDirectory) -> dict[str, float]:
    """Return the accuracies on validation images at the epoch that is exported."""
    average = "ema_" if run.config()["optim"]["ema"] else ""
    lines = [each for each in run.metrics() if f"{average}validation_robust_accuracy" in each]
    best = max(lines, key=lambda each: each[f"{average}validation_robust_accuracy"])
    return {key: best[f"{average}validation_{key}"] for key in ("clean_accuracy", "robust_accuracy")}


def numbers(folder: Path) -> dict[str, Any]:
    """Return the numbers of a file from its records."""
    file = read_file(folder)
    assert file is not None
    return {
        "parameters": read_summary(folder)["conditions"]["parameters"],
        "bytes": file.num_bytes,
        "ms": list(file.milliseconds),
        "clean_accuracy": file.clean_accuracy,
        "robust_accuracy": file.robust_accuracy,
        "interval": list(file.interval),
        "alone": dict(file.alone),
        "runtime": file.runtime,
    }


def table(files: dict[str, dict[str, dict[str, Any]]]) -> Iterable[str]:
    """Yield the lines of a Markdown table."""
    yield f"| {' | '.join(COLUMNS)} | as shipped |"
    yield f"|{'---|' * (len(COLUMNS) + 1)}"
    for student, by_file in files.items():
        for name, each in by_file.items():
            cost = [f"{each['parameters']:,}", f"{each['bytes']:,}", *(f"{ms:.3g}" for ms in each["ms"])]
            low, high = each["interval"]
            found = [f"{each['clean_accuracy']:.3f}", *(f"{each['alone'][family]:.3f}" for family in FAMILIES)]
            shipped = f"{each['robust_accuracy']:.3f} [{low:.2f}, {high:.2f}]"
            yield f"| {' | '.join([student, name, *cost, *found, shipped])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/mobile"))
    parser.add_argument("--images", type=int, default=100, help="test images that are attacked")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    files: dict[str, dict[str, dict[str, Any]]] = {}
    validation = {}
    for undone in ("0", "1"):
        run = trained((*SHORT, undone), arguments.runs / f"short-{undone}", arguments.root, arguments.teacher)
        validation[f"mobilenetv3, six epochs, {undone} strides undone"] = best_validation(run)
    for name, settings in STUDENTS.items():
        run = trained(settings, arguments.runs / name, arguments.root, arguments.teacher)
        validation[name] = best_validation(run)
        files[name] = {file: numbers(run.path / folder) for file, folder in ship(run, arguments.images).items()}
    print("\n".join(table(files)))
    if arguments.out is not None:
        page = {
            "date": date.today().isoformat(),
            "environment": {**environment(), "timm": installed_version("timm")},
            "images": arguments.images,
            "validation": validation,
            "files": files,
        }
        arguments.out.write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
