"""A ranking of teachers with numbers that are made up."""

from __future__ import annotations

import numpy as np

from robustill.analysis.gain_model import Prediction
from robustill.analysis.teacher_measures import Measures
from robustill.analysis.teacher_ranking import RankedTeacher, TeacherRanking, rank

CONDITIONS = {
    "data": "digits",
    "split": "validation",
    "num_images": 200,
    "of_images": 500,
    "threat": "linf:0.1",
    "attack": "PGD 20 steps of a quarter of eps",
    "baselines": {"number": 3, "epochs": 8, "seed": 1000},
    "evidence": {
        "teachers": 28,
        "students": 112,
        "spearman_left_out": {"digits": {"0.5": 0.25, "1": 0.75}, "cifar10": {"0.5": -0.5, "1": 0.5}},
    },
}


def measures(robust: float = 0.4, **changes: float | None) -> Measures:
    values: dict[str, float | None] = {
        "clean_accuracy": 0.8,
        "robust_accuracy": robust,
        "transfer_accuracy": 0.6,
        "ece_clean": 0.05,
        "ece_adversarial": 0.2,
        "ece_transfer": 0.1,
        "entropy_unlearnable": 0.7,
        "confidence_unlearnable": 0.45,
        "entropy_elsewhere": 0.3,
        "confidence_elsewhere": 0.75,
        "temperature": 1.25,
        "members_disagree": None,
    }
    return Measures(**{**values, **changes})  # type: ignore[arg-type]


def candidate(name: str, half: float, whole: float, width: float = 0.02, **changes: float | None) -> RankedTeacher:
    """A candidate with a predicted gain at α ½ and at α 1, each ± width."""
    return RankedTeacher(
        name=name,
        measures=measures(**changes),  # type: ignore[arg-type]
        predictions={
            alpha: Prediction(gain=gain, low=gain - width, high=gain + width)
            for alpha, gain in ((0.5, half), (1.0, whole))
        },
        disagreement=0.125,
        networks=[{"spec": f"run:{name}@best", "sha256": "ab", "architecture": "resnet8", "trained": "at"}],
    )


def ranking(*candidates: RankedTeacher) -> TeacherRanking:
    chosen = candidates or (
        candidate("weak", 0.01, 0.03),
        candidate("strong", 0.05, 0.04),
        candidate("bad", -0.1, -0.3),
    )
    disagreement = 1 - np.eye(len(chosen))
    baselines = {"clean_accuracy": 0.7, "robust_accuracy": 0.3, "unlearnable": 0.4}
    return rank(chosen, disagreement, baselines, CONDITIONS, ["mind this", "mind this"])
