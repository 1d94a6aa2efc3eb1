"""What does distillation change in calibration and training dynamics? A student beside its baseline, seed by seed.

    robustill study alpha --seeds 3 --runs runs/digits
    python benchmarks/accuracy/what_distillation_changes.py runs/digits \\
        --out benchmarks/results/changes-digits-DATE.json

About ten seconds, as it reads records alone. Both runs of a seed share split, wrong labels and budget. Calibration is
of the test images at `best` and `last`; dynamics are of the training images, under the attack of the training step, the
end being the last fifth of the epochs. Difficulty bins are the baseline's, of each seed. Mean ± standard deviation over
seeds, and of the paired difference.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import numpy as np

from robustill.analysis.difficulty import BINS, difficulty, sample_metrics
from robustill.analysis.statistics import mean_std
from robustill.analysis.summary import summary
from robustill.analysis.training_dynamics import noise_memorisation, robust_overfitting
from robustill.core.device import environment
from robustill.runs.directory import RunDirectory
from robustill.runs.dynamics import read_dynamics
from robustill.runs.records import Records

CALIBRATED = ("ece_clean", "ece_adversarial", "nll_clean", "nll_adversarial", "brier_adversarial")


def measured(run: Path, baseline: Path, evaluation: str) -> dict[str, float]:
    """Every number of one run."""
    found: dict[str, float] = {}
    for checkpoint in ("best", "last"):
        records = Records.load(run / "evaluations" / f"test-{checkpoint}-{evaluation}")
        results = summary(records)
        found |= {f"{checkpoint}: {name}": results[name] for name in CALIBRATED}
        for look, probabilities in (
            ("clean", records.clean_probabilities),
            ("adversarial", records.adversarial_probabilities),
        ):
            right = probabilities.argmax(axis=1) == records.label
            # Above zero is overconfident, below it underconfident.
            found[f"{checkpoint}: confidence − accuracy, {look}"] = float((probabilities.max(axis=1) - right).mean())
    return found | of_training(run, baseline)


def of_training(run: Path, baseline: Path) -> dict[str, float]:
    dynamics = read_dynamics(run)
    metrics, flipped = sample_metrics(dynamics), dynamics.flipped
    right, found = metrics["adversarial_correct"], {}
    found["true labels: right at the end"] = float(right[~flipped].mean())
    found["true labels: times forgotten"] = float(metrics["forgetting"][~flipped].mean())
    found["true labels: epoch learned"] = float(np.nanmedian(metrics["epoch_learned"][~flipped]))
    found["true labels: variability"] = float(metrics["adversarial_variability"][~flipped].mean())
    noise = noise_memorisation(dynamics)
    if noise is not None:
        found["wrong labels: predicted at the end"] = float(right[flipped].mean())
        found["wrong labels: surer at the end than all along"] = float(metrics["memorisation"][flipped].mean())
    overfitting = robust_overfitting(RunDirectory.existing(run).metrics())
    if overfitting is not None:
        found["gap between training and held-out, last epoch"] = float(overfitting.gap[-1])
        found["lost on held-out images since the best epoch"] = float(overfitting.drop)
    bins = difficulty(read_dynamics(baseline).student)
    for code, name in enumerate(BINS):
        chosen = bins == code
        if chosen.any():
            found[f"right at the end, {name} for the baseline"] = float(right[chosen].mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a study, with seed-0/, seed-1/ ... inside")
    parser.add_argument("--baseline", default="at")
    parser.add_argument("--student", default="akd")
    parser.add_argument("--evaluation", default="pgd", help="as their folders end, after test-best-")
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments = parser.parse_args()
    seeds = sorted(arguments.folder.glob("seed-*"))
    columns = [
        [measured(seed / run, seed / arguments.baseline, arguments.evaluation) for seed in seeds]
        for run in (arguments.baseline, arguments.student)
    ]
    rows = {}
    print(f"| {len(seeds)} seeds | {arguments.baseline} | {arguments.student} | difference |\n|---|---|---|---|")
    for name in columns[0][0]:
        # A number that one run does not have, such as of a bin that is empty, is compared on no seed.
        if not all(name in values for column in columns for values in column):
            continue
        both = [[values[name] for values in column] for column in columns]
        both.append([student - baseline for baseline, student in zip(*both, strict=True)])
        rows[name] = both
        shown = (f"{mean:.3f} ± {deviation:.3f}" for mean, deviation, _ in map(mean_std, both))
        print(f"| {name} | {' | '.join(shown)} |")
    if arguments.out is not None:
        content = {"date": datetime.date.today().isoformat(), "environment": environment(), "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
