"""AKD from weak, early-stopped teachers against PGD-AT on digits, over seeds: the table of docs/results.md.

    python benchmarks/studies/digits_seeds.py --seeds 5 --runs runs/digits-seeds \\
        --out benchmarks/results/digits-seeds.json

Each seed has its own split, its own wrong labels, its own teachers and students; both students of a seed share all of
these. It goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import numpy as np

from robustill.analysis.summary import summary
from robustill.cli.quickstart import configurations
from robustill.core.device import environment
from robustill.evaluation.targets import evaluate_run
from robustill.runs.records import Records
from robustill.training.loop import train

COLUMNS = ("clean_accuracy", "robust_accuracy", "ece_clean", "ece_adversarial", "nll_adversarial", "brier_adversarial")
STUDENTS = ("at", "akd")
CHECKPOINTS = ("best", "last")


def evaluated(run: Path) -> dict[str, Records]:
    """The records of best and last, made if they are missing."""
    folders = {what: run / "evaluations" / f"test-{what}-pgd" for what in CHECKPOINTS}
    missing = [what for what, folder in folders.items() if not (folder / "summary.json").exists()]
    if missing:
        evaluate_run(run, checkpoints=missing)
    return {what: Records.load(folder) for what, folder in folders.items()}


def one_seed(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Every number of one seed, by student and checkpoint."""
    for name, config in configurations(seed, folder).items():
        train(config, folder / name)
    results = {}
    for student in STUDENTS:
        for what, records in evaluated(folder / student).items():
            found = summary(records)
            results[f"{student} {what}"] = {column: found[column] for column in COLUMNS}
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
    print(f"\nAKD − PGD-AT, paired over {len(seeds)} seeds: mean ± standard deviation (seeds in which AKD is higher)")
    for what in CHECKPOINTS:
        for column in COLUMNS:
            gap = over_seeds(f"akd {what}", column) - over_seeds(f"at {what}", column)
            print(f"  {what} {column}: {gap.mean():+.3f} ± {gap.std(ddof=1):.3f} ({(gap > 0).sum()}/{len(seeds)})")
    if arguments.out is not None:
        page = {"date": date.today().isoformat(), "environment": environment(), "seeds": seeds}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
