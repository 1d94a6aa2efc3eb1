"""The numbers of one evaluation, computed from its records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from robustill.analysis import calibration
from robustill.analysis.statistics import wilson_interval
from robustill.core.chance import GUESSING, is_near_chance
from robustill.runs.records import Records


def summary(records: Records) -> dict[str, Any]:
    """Return the numbers of one evaluation; accuracies are shares of all N images.

    Returns:
        A JSON-able dict: num_images, clean_accuracy and robust_accuracy with their Wilson 95 % intervals,
        accuracy_after (robust accuracy after each stage of the suite), robust_at_eps (a list of eps and
        robust_accuracy), and ece_*, nll_*, brier_*, mean_confidence_* of the probabilities of clean images (clean), of
        the adversarial image that the suite kept of each (adversarial), and of the images of one fixed attack on all
        images (pgd). The last are the ones to compare, since other suites keep other images; they are absent from
        records without that attack.
    """
    n = len(records)
    results: dict[str, Any] = {"num_images": n}
    for name, flags in (("clean", records.clean_correct), ("robust", records.robust)):
        num_correct = int(flags.sum())
        results[f"{name}_accuracy"] = num_correct / n
        results[f"{name}_accuracy_interval"] = list(wilson_interval(num_correct, n))
    results["accuracy_after"] = {
        stage: float((records.robust | (records.broken_by > position)).mean())
        for position, stage in enumerate(records.stages)
    }
    results["robust_at_eps"] = [
        {"eps": float(eps), "robust_accuracy": float(flags.mean())}
        for eps, flags in zip(records.eps_grid, records.robust_at_eps.T, strict=True)
    ]
    for name in ("clean", "adversarial", "pgd"):
        probabilities = getattr(records, f"{name}_probabilities")
        if probabilities is None:
            continue
        results[f"ece_{name}"] = calibration.ece(probabilities, records.label)
        results[f"nll_{name}"] = calibration.nll(probabilities, records.label)
        results[f"brier_{name}"] = calibration.brier(probabilities, records.label)
        results[f"mean_confidence_{name}"] = float(probabilities.max(axis=1).astype(np.float64).mean())
    return results


def result_warnings(records: Records) -> Iterator[str]:
    """Yield the reasons to distrust the numbers of an evaluation that its records alone reveal."""
    n, num_classes, num_correct = len(records), len(records.classes), int(records.clean_correct.sum())
    is_said = any(GUESSING in str(line) for line in records.conditions.get("warnings") or [])
    if not is_said and is_near_chance(num_correct, n, num_classes):
        yield (
            f"The network is {GUESSING} among {num_classes} classes: right on {num_correct / n:.3f} of {n} clean "
            "images; look for untrained weights, another order of the classes, or another normalisation."
        )
    stages = records.stages
    if stages and all(stage.lower().startswith(("pgd", "fgsm")) for stage in stages):
        suite = records.conditions.get("suite")
        name = suite.get("name") if isinstance(suite, dict) else None
        yield (
            f"The only attack is {name or ' + '.join(stages)}. Its robust accuracy is an upper bound, not AutoAttack, "
            "which may find adversarial images that it misses: take --suite standard."
        )
