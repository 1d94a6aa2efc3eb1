"""The evidence of `robustill teachers rank`: many teachers, and what students gain from each of them.

    python benchmarks/studies/teacher_pairs.py --root data --runs runs/teacher-pairs \\
        --out benchmarks/results/teacher-pairs.json

On each of three data sets: fourteen teachers, AKD students of each at two mixing weights and two seeds, and PGD-AT of
the same student under identical conditions, four seeds. Every student has averaged weights. The same command resumes a
stopped run; data sets come one after the other, so that any stop leaves whole ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robustill.config.recipes import RECIPES
from robustill.config.schema import Config, make_config
from robustill.evaluation.targets import evaluate_run
from robustill.training.loop import train

ALPHAS = (0.5, 1.0)
SEEDS = (0, 1)
BASELINE_SEEDS = (0, 1, 2, 3)
CHECKPOINTS = ("best-ema", "last-ema")
"""Checkpoints of the students, of averaged weights."""

DATASETS: dict[str, dict[str, Any]] = {
    "digits": {
        "recipe": "digits_at",
        "settings": {
            "attack": {"steps": 3, "step_size": 0.125},
            "validation": {"every": 5, "steps": 5},
            "optim": {"epochs": 40, "ema": 0.99},
        },
        "larger": {"name": "resnet8", "width": 32},
        "smaller": {"name": "resnet8", "width": 8},
    },
    "fashion_mnist": {
        "recipe": "fashion_mnist_at",
        "settings": {
            "data": {"train_size": 1000, "label_noise": 0.0, "validation": 600},
            "attack": {"steps": 3, "step_size": 2.5 / 3 * 0.1},
            "validation": {"every": 4, "steps": 5},
            "optim": {"epochs": 24, "batch_size": 64, "ema": 0.99},
        },
        "larger": {"name": "resnet8", "width": 8},
        "smaller": {"name": "cnn_deep"},
    },
    "cifar10": {
        "recipe": "cifar10_part_at",
        "settings": {
            "data": {"train_size": 1500, "validation": 600},
            "validation": {"every": 4, "steps": 5},
            "optim": {"epochs": 16, "batch_size": 64, "ema": 0.99},
        },
        "larger": {"name": "resnet8", "width": 16},
        "smaller": {"name": "cnn_deep"},
    },
}
"""The conditions of each data set: a recipe of the package, made cheaper, and two other networks for teachers."""


def with_values(config: Config, **values: Any) -> Config:
    """Return a configuration with other values; those of a section replace only the settings that they name."""
    old = config.model_dump(mode="json")
    merged = {
        key: {**old[key], **value} if isinstance(value, Mapping) and key not in ("model", "method") else value
        for key, value in values.items()
    }
    return make_config({**old, **merged})


def student_config(dataset: str, root: Path) -> Config:
    """Return the configuration of the baseline, PGD-AT with averaged weights, which students change the method of."""
    config = with_values(RECIPES[DATASETS[dataset]["recipe"]](), **DATASETS[dataset]["settings"])
    config = with_values(config, dynamics={"record": False})
    return config if dataset == "digits" else with_values(config, data={"root": str(root)})


def teacher_configs(dataset: str, root: Path) -> dict[str, Config]:
    """Return the runs of the teachers by the names of their folders; all are trained on the students' images."""
    student = student_config(dataset, root)
    plain = with_values(student, optim={"ema": None})
    epochs = plain.optim.epochs

    def weak(share: float, seed: int) -> Config:
        eps, step_size = share * plain.threat.eps, share * plain.attack.step_size
        return with_values(plain, seed=seed, threat={"eps": eps}, attack={"step_size": step_size})

    return {
        "at": with_values(plain, seed=100, keep_every=max(1, epochs // 6)),
        "weak-25": weak(0.25, 101),
        "weak-50": weak(0.5, 102),
        "weak-75": weak(0.75, 103),
        "weak-75-b": weak(0.75, 104),
        "weak-75-c": weak(0.75, 105),
        "trades": with_values(plain, seed=106, method={"name": "trades", "beta": 6.0}),
        "ema": with_values(student, seed=107),
        "larger": with_values(plain, seed=108, model=DATASETS[dataset]["larger"]),
        "smaller": with_values(plain, seed=109, model=DATASETS[dataset]["smaller"]),
        "natural": with_values(plain, seed=110, method={"name": "clean"}),
        "long": with_values(plain, seed=111, optim={"epochs": 2 * epochs}),
    }


def teachers(dataset: str, folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the specifications of each teacher, several for an ensemble, by its name."""
    epochs = RECIPES[DATASETS[dataset]["recipe"]]().optim.epochs
    epochs = DATASETS[dataset]["settings"]["optim"].get("epochs", epochs)
    keep = max(1, epochs // 6)

    def run(name: str, checkpoint: str = "best") -> str:
        return f"run:{folder / 'teachers' / name}@{checkpoint}"

    return {
        "PGD-AT, an early epoch": (run("at", f"epoch-{keep}"),),
        "PGD-AT, a middle epoch": (run("at", f"epoch-{3 * keep}"),),
        "PGD-AT, best epoch": (run("at"),),
        "PGD-AT, last epoch": (run("at", "last"),),
        "a quarter of the radius": (run("weak-25"),),
        "half of the radius": (run("weak-50"),),
        "three quarters of the radius": (run("weak-75"),),
        "three of three quarters of the radius": (run("weak-75"), run("weak-75-b"), run("weak-75-c")),
        "TRADES": (run("trades"),),
        "averaged weights": (run("ema", "best-ema"),),
        "a larger network": (run("larger"),),
        "a smaller network": (run("smaller"),),
        "natural training, last epoch": (run("natural", "last"),),
        "twice the epochs, last": (run("long", "last"),),
    }


def student_runs(dataset: str, root: Path, folder: Path) -> Iterator[tuple[str, Config]]:
    """Yield the baselines and the students by the names of their folders, all teachers once before any seed twice."""
    config = student_config(dataset, root)
    for seed in BASELINE_SEEDS:
        yield f"baseline/seed-{seed}", with_values(config, seed=seed)
    for seed in SEEDS:
        for alpha in ALPHAS:
            for number, specs in enumerate(teachers(dataset, folder).values()):
                values = {"method": {"name": "akd", "alpha": alpha}, "teachers": list(specs), "seed": seed}
                yield f"students/{number:02d}-alpha-{alpha:g}-seed-{seed}", with_values(config, **values)


def train_all(dataset: str, root: Path, folder: Path) -> None:
    """Train the teachers, the baselines and the students; attack the last two with PGD-20 on at most 1,000 test images."""
    for name, config in teacher_configs(dataset, root).items():
        began = time.monotonic()
        train(config, folder / "teachers" / name, progress=False)
        print(f"{dataset} teacher {name}: {time.monotonic() - began:.0f} s", flush=True)
    for name, config in student_runs(dataset, root, folder):
        began = time.monotonic()
        train(config, folder / name, progress=False)
        missing = [
            each
            for each in CHECKPOINTS
            if not any((folder / name / "evaluations").glob(f"test-{each}-pgd-20*/summary.json"))
        ]
        if missing:
            num_images = None if dataset == "digits" else 1000
            evaluate_run(
                folder / name,
                checkpoints=missing,
                suite="pgd-20",
                num_images=num_images,
                eps_curve=False,
                pictures=False,
                progress=False,
            )
        print(f"{dataset} {name}: {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with Fashion-MNIST and CIFAR-10")
    parser.add_argument("--runs", type=Path, default=Path("runs/teacher-pairs"))
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    arguments = parser.parse_args()
    for dataset in arguments.datasets:
        train_all(dataset, arguments.root, arguments.runs / dataset)


if __name__ == "__main__":
    main()
