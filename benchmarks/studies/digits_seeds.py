"""Is AKD from weak, early-stopped teachers better than PGD-AT, with and without averaged weights? On digits, 5 seeds.

    python benchmarks/studies/digits_seeds.py --seeds 5 --runs runs/digits-seeds \\
        --out benchmarks/results/digits-seeds.json

Each seed has its own split, its own wrong labels and its own teachers, which its students share. PGD-AT + EMA is the
baseline without a teacher: an average of the weights with decay 0.99. About four minutes a seed on one core; the same
command resumes a stopped run. The validation accuracy is that of the checkpoint's epoch: whether
averaged weights help AKD is decided by it.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import numpy as np

from robustill.analysis.summary import summary
from robustill.cli.quickstart import EMA_DECAY, configurations
from robustill.config.schema import Config, make_config
from robustill.core.device import environment
from robustill.evaluation.targets import evaluate_run
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records
from robustill.training.loop import train

COLUMNS = (
    "validation_robust_accuracy",
    "clean_accuracy",
    "robust_accuracy",
    "ece_clean",
    "ece_adversarial",
    "nll_adversarial",
    "brier_adversarial",
)
STUDENTS = {"at": "", "at-ema": "-ema", "akd": "", "akd-ema": "-ema"}
"""Students, each with the ending of the names of its checkpoints: that of averaged weights is -ema."""
CHECKPOINTS = ("best", "last")


def configs(seed: int, folder: Path) -> dict[str, Config]:
    """Return the runs of the quickstart, and AKD with averaged weights."""
    runs = configurations(seed, folder)
    values = runs["akd"].model_dump(mode="json")
    values["optim"]["ema"] = EMA_DECAY
    return {**runs, "akd-ema": make_config(values)}


def load_or_evaluate(run: Path, checkpoint: str) -> Records:
    """Return the records of a checkpoint, which is evaluated if it has none."""
    folder = run / "evaluations" / f"test-{checkpoint}-pgd"
    if not (folder / "summary.json").exists():
        evaluate_run(run, checkpoints=[checkpoint])
    return Records.load(folder)


def validation_accuracy(run: Path, checkpoint: str, ending: str) -> float:
    """Return the robust accuracy on the validation images at the epoch of a checkpoint."""
    directory = RunDirectory.existing(run)
    epoch, _ = directory.checkpoints.resolve(checkpoint + ending)
    key = "ema_validation_robust_accuracy" if ending else "validation_robust_accuracy"
    return next(line[key] for line in directory.metrics() if line["epoch"] == epoch)


def one_seed(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Return every number of one seed, by student and checkpoint."""
    for name, config in configs(seed, folder).items():
        train(config, folder / name)
    results = {}
    for student, ending in STUDENTS.items():
        for checkpoint in CHECKPOINTS:
            numbers = summary(load_or_evaluate(folder / student, checkpoint + ending))
            numbers["validation_robust_accuracy"] = validation_accuracy(folder / student, checkpoint, ending)
            results[f"{student} {checkpoint}"] = {column: numbers[column] for column in COLUMNS}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/digits-seeds"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    seeds = {seed: one_seed(seed, arguments.runs / f"seed-{seed}") for seed in range(arguments.seeds)}

    def over_seeds(row: str, column: str) -> np.ndarray:
        return np.array([results[row][column] for results in seeds.values()])

    print(f"\n| student | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for row in seeds[0]:
        cells = (over_seeds(row, column) for column in COLUMNS)
        print(f"| {row} | {' | '.join(f'{each.mean():.3f} ± {each.std(ddof=1):.3f}' for each in cells)} |")
    for student, baseline in (("akd", "at"), ("akd", "at-ema"), ("akd-ema", "at-ema"), ("akd-ema", "akd")):
        print(
            f"\n{student} − {baseline}, paired over {len(seeds)} seeds: mean ± SD (seeds in which {student} is higher)"
        )
        for checkpoint in CHECKPOINTS:
            for column in COLUMNS:
                gap = over_seeds(f"{student} {checkpoint}", column) - over_seeds(f"{baseline} {checkpoint}", column)
                higher = int((gap > 0).sum())
                print(f"  {checkpoint} {column}: {gap.mean():+.3f} ± {gap.std(ddof=1):.3f} ({higher}/{len(seeds)})")
    if arguments.out is not None:
        page = {"date": date.today().isoformat(), "environment": environment(), "seeds": seeds}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
