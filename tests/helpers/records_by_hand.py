"""Records of four images that can be checked by hand, and saving of records with their summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from robustill.analysis.summary import summary
from robustill.runs.records import Records


def by_hand(**changes: Any) -> Records:
    """Return records of four images: robust, broken by the first attack, by the second, misclassified when clean."""
    values = {
        "index": np.array([7, 3, 5, 9]),
        "label": np.array([0, 1, 0, 1]),
        "clean_probabilities": np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]], np.float32),
        "adversarial_probabilities": np.array([[0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.9, 0.1]], np.float32),
        "robust": np.array([True, False, False, False]),
        "broken_by": np.array([-1, 0, 1, -2], np.int8),
        "margin": np.array([1.4, -0.8, -0.4, -2.2], np.float32),
        "distance": np.array([0.1, 0.1, 0.05, 0.1], np.float32),
        "eps_grid": np.array([0.0, 0.1], np.float32),
        "robust_at_eps": np.array([[1, 1], [1, 0], [1, 0], [0, 0]], bool),
        "stages": ("apgd-ce", "square"),
        "classes": ("cat", "dog"),
        "conditions": {"seed": 0, "threat": {"norm": "linf", "eps": 0.1}},
    }
    return Records(**{**values, **changes})


def with_examples() -> Records:
    clean = np.linspace(0, 1, 2 * 16, dtype=np.float32).reshape(2, 1, 4, 4)
    return by_hand(example_index=np.array([3, 9]), example_clean=clean, example_adversarial=1 - clean)


def save_records(records: Records, folder: Path) -> None:
    """Save records with their summary, as an evaluation does."""
    records.save(folder, summary(records))
