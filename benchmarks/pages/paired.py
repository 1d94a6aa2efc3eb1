"""Numbers of recorded students, seed by seed, and their paired differences with Holm's correction."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.statistics import holm, mean_std, paired_over_seeds

RESULTS = Path(__file__).parents[1] / "results"

Seeds = dict[int, float]
"""One number for each seed."""


@dataclass(frozen=True)
class Arm:
    """A student: a row of a file of results."""

    file: str
    row: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two students that share their seeds, splits and test images, and the number in which they are compared."""

    label: str
    data: str
    first: Arm
    second: Arm
    column: str = "robust_accuracy"
    checkpoints: tuple[str, ...] = ("best", "last")
    averaged: bool = False
    """whether the first student is taken at its averaged weights"""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second, paired by seed.

    Args:
        mean: over seeds.
        std: standard deviation over seeds.
        low: lower end of Student's 95 % interval over seeds, not corrected for the number of comparisons.
        high: its upper end.
        p: of Student's test that the mean is 0.
        by_seed: one difference for each seed.
    """

    mean: float
    std: float
    low: float
    high: float
    p: float
    by_seed: tuple[float, ...]


def values(arm: Arm, checkpoint: str, column: str) -> Seeds:
    """Return one number of a student by seed; empty if the file has no such checkpoint."""
    return {
        seed: numbers[column]
        for (row, name, seed), numbers in _read(arm.file).items()
        if (row, name) == (arm.row, checkpoint) and column in numbers
    }


def over_seeds(seeds: Seeds) -> tuple[float, float]:
    """Return mean and standard deviation."""
    mean, std, _ = mean_std(list(seeds.values()))
    return mean, std


def difference(comparison: Comparison, checkpoint: str) -> Difference | None:
    """Return the difference at a checkpoint, "best" or "last"; None if it was not measured."""
    if checkpoint not in comparison.checkpoints:
        return None
    first = values(comparison.first, checkpoint + "-swa" * comparison.averaged, comparison.column)
    second = values(comparison.second, checkpoint, comparison.column)
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        raise ValueError(f"{comparison.label}, {checkpoint}: found {len(seeds)} common seeds, expected two or more")
    paired = paired_over_seeds([first[seed] for seed in seeds], [second[seed] for seed in seeds])
    return Difference(
        mean=paired.mean, std=paired.std, low=paired.low, high=paired.high,
        p=paired.p_value, by_seed=tuple(first[seed] - second[seed] for seed in seeds),
    )  # fmt: skip


def flags(file: str, student: str, checkpoint: str, kind: str) -> NDArray[np.bool_]:
    """Return whether a student is right on each test image, bool [seeds, images].

    Args:
        file: what robust_images.py wrote.
        student: its name there.
        checkpoint: "best" or "last".
        kind: "robust" or "clean".
    """
    seeds = json.loads((RESULTS / file).read_text(encoding="utf-8"))["images"].values()
    return np.array([[bit == "1" for bit in students[f"{student} {checkpoint}"][kind]] for students in seeds])


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A comparison with its differences and, by checkpoint, their p-values after Holm's correction."""

    comparison: Comparison
    differences: dict[str, Difference]
    corrected: dict[str, float]

    def survives(self, checkpoint: str) -> bool:
        """Whether the difference at this checkpoint is one after the correction."""
        return self.corrected.get(checkpoint, 1.0) < 0.05


def test(comparisons: Sequence[Comparison]) -> list[Tested]:
    """Test comparisons as one family: every checkpoint of every one counts in Holm's correction."""
    found = {
        (comparison, checkpoint): difference(comparison, checkpoint)
        for comparison in comparisons
        for checkpoint in comparison.checkpoints
    }
    there = {key: each for key, each in found.items() if each is not None}
    corrected = dict(zip(there, holm([each.p for each in there.values()]), strict=True))
    return [
        Tested(
            comparison=comparison,
            differences={name: there[comparison, name] for name in comparison.checkpoints},
            corrected={name: corrected[comparison, name] for name in comparison.checkpoints},
        )
        for comparison in comparisons
    ]


def swept(file: str, checkpoint: str) -> dict[float, Seeds]:
    """Return robust accuracies by what was swept."""
    found: dict[float, Seeds] = {}
    with (RESULTS / file).open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if row["checkpoint"] == checkpoint and row["value"]:
                found.setdefault(float(row["value"]), {})[int(row["seed"])] = float(row["robust_accuracy"])
    return found


@cache
def _read(file: str) -> dict[tuple[str, str, int], dict[str, float]]:
    """Return the numbers of a file of results by row, checkpoint and seed."""
    path = RESULTS / file
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as lines:
            return {
                (row.get("row") or row["run"], row.get("checkpoint", "best"), int(row["seed"])): _numbers(row)
                for row in csv.DictReader(lines)
            }
    page = json.loads(path.read_text(encoding="utf-8"))
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    if "seeds" in page:  # digits_seeds.py
        for seed, students in page["seeds"].items():
            for student, numbers in students.items():
                row, checkpoint = student.rsplit(" ", 1)
                found[row, checkpoint, int(seed)] = numbers
    elif "methods" in page:  # digits_methods.py
        for row, seeds in page["methods"].items():
            for seed, checkpoints in seeds.items():
                for checkpoint in ("best", "last"):
                    found[row, checkpoint, int(seed)] = checkpoints[checkpoint] | {"seconds": checkpoints["seconds"]}
    elif "tested" in page:  # recipe_search.py
        names = {"clean": "clean_accuracy", "robust": "robust_accuracy", "ECE clean": "ece_clean"}
        for student, columns in page["tested"].items():
            row, checkpoint = student.rsplit(", ", 1)
            for seed in range(len(columns["robust"])):
                numbers = {names.get(name, "ece_adversarial"): each[seed] for name, each in columns.items()}
                found[row, checkpoint, seed] = numbers
    elif "rows" in page:  # what_distillation_changes.py: the baseline's, the student's, the difference
        for column, students in page["rows"].items():
            for row, seeds in zip(("PGD-AT", "AKD"), students, strict=False):
                for seed, value in enumerate(seeds):
                    found.setdefault((row, "last", seed), {})[column] = value
    else:  # the students of public teachers: "akd-wide best seed 0"
        for student, numbers in page.items():
            if " seed " in student:
                row, checkpoint, _, seed = student.split(" ")
                found[row, checkpoint, int(seed)] = numbers
    return found


def _numbers(row: dict[str, str]) -> dict[str, float]:
    text = {"row", "series", "value", "seed", "run", "checkpoint"}
    return {column: float(value) for column, value in row.items() if column not in text and value}
