"""What do students gain from which teacher? The evidence of `robustill teachers rank`, on three data sets.

    python benchmarks/studies/teacher_pairs.py --root data --runs runs/teacher-pairs \\
        --out benchmarks/results/teacher-pairs.json --fit

Fourteen teachers a data set, AKD students of each at two mixing weights and two seeds, and PGD-AT of the same student
under identical conditions at four seeds; every student has averaged weights. About an hour a data set on half a core.

The same command resumes a stopped run. Every data set has the students of one seed before any has those of the next,
and each teacher is followed by its students, so that what a stopped run leaves can be used. `--fit` fits the regression
of the package to the table in --out, and writes src/robustill/analysis/gain_model.json; with `--trained` nothing is
trained, and the table is made of what is there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from robustill.analysis.gain_model import FILE, fit_gain_model
from robustill.analysis.summary import summary
from robustill.analysis.teacher_measures import FEATURES, features
from robustill.config.recipes import RECIPES
from robustill.config.schema import Config, make_config
from robustill.core.device import environment
from robustill.evaluation.targets import evaluate_run
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records
from robustill.studies.candidates import measure_candidates
from robustill.training.loop import train

ALPHAS = (0.5, 1.0)
SEEDS = (0, 1)
BASELINE_SEEDS = (0, 1, 2, 3)
FEWEST = 6
"""Teachers below which a data set is left out of the table."""
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
            "data": {"train_size": 1000, "validation": 600},
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


ORDER = (2, 3, 0, 1, 9, 8, 6, 12, 5, 11, 4, 13, 10, 7)
"""The order in which teachers and their students are trained, by their numbers: those that differ most come first."""


def runs_of(dataset: str, root: Path, folder: Path, seed: int) -> Iterator[tuple[str, Config]]:
    """Yield every run by the name of its folder: each teacher is followed by its students of this seed."""
    config, of_teachers = student_config(dataset, root), teacher_configs(dataset, root)
    specs = list(teachers(dataset, folder).values())
    baselines = [(f"baseline/seed-{each}", with_values(config, seed=each)) for each in BASELINE_SEEDS]
    yield from baselines[: len(SEEDS)]
    for number in ORDER:
        for spec in specs[number]:
            name = Path(spec.removeprefix("run:").partition("@")[0]).name
            yield f"teachers/{name}", of_teachers[name]
        for alpha in ALPHAS:
            values = {"method": {"name": "akd", "alpha": alpha}, "teachers": list(specs[number]), "seed": seed}
            yield f"students/{number:02d}-alpha-{alpha:g}-seed-{seed}", with_values(config, **values)
    yield from baselines[len(SEEDS) :]


def evaluation(run: Path, checkpoint: str) -> Path | None:
    """Return the folder with the records of a checkpoint; None before it has been attacked."""
    # The name of an evaluation of a subset ends in its number of images.
    return next((each.parent for each in (run / "evaluations").glob(f"test-{checkpoint}-pgd-20*/summary.json")), None)


def train_all(dataset: str, root: Path, folder: Path, seed: int) -> None:
    """Train everything up to the students of a seed; attack students with PGD-20 on at most 1,000 test images."""
    for name, config in runs_of(dataset, root, folder, seed):
        began = time.monotonic()
        train(config, folder / name, progress=False)
        missing = [each for each in CHECKPOINTS if evaluation(folder / name, each) is None]
        if missing and not name.startswith("teachers/"):
            evaluate_run(
                folder / name,
                checkpoints=missing,
                suite="pgd-20",
                num_images=None if dataset == "digits" else 1000,
                eps_curve=False,
                progress=False,
            )
        print(f"{dataset} {name}: {time.monotonic() - began:.0f} s", flush=True)


def numbers(run: Path) -> dict[str, float] | None:
    """Return the accuracies of a student at its best and last epoch; None if it has not been trained and evaluated."""
    found = {}
    for checkpoint in CHECKPOINTS:
        folder = evaluation(run, checkpoint)
        if folder is None:
            return None
        results = summary(Records.load(folder))
        directory = RunDirectory.existing(run)
        epoch, _ = directory.checkpoints.resolve(checkpoint)
        line = next(each for each in directory.metrics() if each["epoch"] == epoch)
        name = checkpoint.removesuffix("-ema")
        found[f"{name}_held_out"] = line["ema_validation_robust_accuracy"]
        found |= {f"{name}_{key}": results[f"{key}_accuracy"] for key in ("robust", "clean")}
        found[f"{name}_ece"] = results["ece_adversarial"]
    return found


def students_of(folder: Path, number: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the numbers of the students of a teacher, by α and seed; those that are there."""
    return {
        f"{alpha:g}": {
            str(seed): found
            for seed in SEEDS
            if (found := numbers(folder / f"students/{number:02d}-alpha-{alpha:g}-seed-{seed}")) is not None
        }
        for alpha in ALPHAS
    }


def page_of(dataset: str, root: Path, folder: Path) -> dict[str, Any] | None:
    """Return what is known of the teachers that have a student at each α; None if these are fewer than six."""
    found = {
        f"{seed}": each for seed in BASELINE_SEEDS if (each := numbers(folder / f"baseline/seed-{seed}")) is not None
    }
    named = {name: ",".join(specs) for name, specs in teachers(dataset, folder).items()}
    students = dict(zip(named, (students_of(folder, number) for number in range(len(named))), strict=True))
    students = {name: each for name, each in students.items() if all(each.values())}
    if len(students) < FEWEST or not found:
        return None
    config = student_config(dataset, root)
    measured = measure_candidates([named[name] for name in students], config, out=folder / "measures")
    rows = []
    for name, own in students.items():
        measures = measured.measures[named[name]]
        rows.append(
            {
                "name": name,
                "teachers": [each.trained for each in measured.networks[named[name]]],
                "measures": asdict(measures),
                "features": features(measures, measured.baselines).tolist(),
                "students": own,
                "gains": gains_of(own, found),
            }
        )
    return {
        "settings": config.model_dump(mode="json", exclude={"data": {"root"}}),
        "measured": {**measured.conditions, "warnings": list(measured.warnings)},
        "cheap_baselines": {
            "robust_accuracy": measured.baselines.robust_accuracy,
            "clean_accuracy": measured.baselines.clean_accuracy,
            "unlearnable": float(measured.baselines.unlearnable.mean()),
        },
        "baselines": found,
        "teachers": rows,
    }


def gains_of(students: Mapping[str, Any], baselines: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return, by α and epoch, the mean robust accuracy of the students over seeds minus that of the baselines."""

    def mean(each: Mapping[str, Mapping[str, float]], key: str) -> float:
        return float(np.mean([numbers[key] for numbers in each.values()]))

    return {
        alpha: {
            epoch: mean(of_alpha, f"{epoch}_robust") - mean(baselines, f"{epoch}_robust") for epoch in ("best", "last")
        }
        for alpha, of_alpha in students.items()
    }


def rows_of(table: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the features [n,F], the gains at the best epoch [n,A] and the data set of every teacher of a table."""
    rows = [(dataset, row) for dataset, page in table["datasets"].items() for row in page["teachers"]]
    x = np.array([row["features"] for _, row in rows], dtype=np.float64)
    y = np.array([[row["gains"][f"{alpha:g}"]["best"] for alpha in ALPHAS] for _, row in rows])
    return x, y, [dataset for dataset, _ in rows]


def write_model(table: Mapping[str, Any], name: str) -> None:
    """Fit the regression to the best epochs, and write it into the package."""
    x, y, groups = rows_of(table)
    students = sum(
        len(seeds)
        for page in table["datasets"].values()
        for row in page["teachers"]
        for seeds in row["students"].values()
    )
    note = {"table": name, "date": table["date"], "students": students}
    model = fit_gain_model(x, y, groups, FEATURES, ALPHAS, note)
    FILE.write_text(json.dumps(model.to_json(), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(model.evidence, indent=1))


def make_table(datasets: Sequence[str], root: Path, runs: Path) -> dict[str, Any]:
    """Return the table of the data sets that are complete."""
    pages = {dataset: page_of(dataset, root, runs / dataset) for dataset in datasets}
    return {
        "date": date.today().isoformat(),
        "environment": environment(),
        "attack": "PGD-20 on all test images of the digits, and on 1,000 class-balanced ones of the others",
        "checkpoints": "averaged weights; best: chosen on held-out images",
        "features": list(FEATURES),
        "datasets": {dataset: page for dataset, page in pages.items() if page is not None},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with Fashion-MNIST and CIFAR-10")
    parser.add_argument("--runs", type=Path, default=Path("runs/teacher-pairs"))
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--trained", action="store_true", help="train nothing: take the runs that are there")
    parser.add_argument("--out", type=Path, help="where the table is written, as JSON")
    parser.add_argument("--fit", action="store_true", help="fit the model of the package to the table")
    arguments = parser.parse_args()
    if not arguments.trained:
        for seed in SEEDS:
            for dataset in arguments.datasets:
                train_all(dataset, arguments.root, arguments.runs / dataset, seed)
    if arguments.out is not None:
        table = make_table(arguments.datasets, arguments.root, arguments.runs)
        arguments.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        if arguments.fit:
            write_model(table, arguments.out.name)


if __name__ == "__main__":
    main()
