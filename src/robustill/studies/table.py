"""The table of a study: mean and standard deviation over seeds, and whether a difference can be told from noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from robustill.analysis.statistics import mean_std
from robustill.analysis.summary import summary
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records
from robustill.studies.design import Row
from robustill.studies.job import evaluated
from robustill.studies.study import Study

COLUMNS = {
    "clean_accuracy": "clean",
    "robust_accuracy": "robust",
    "ece_clean": "ECE clean",
    "ece_adversarial": "ECE adv.",
    "nll_clean": "NLL clean",
    "nll_adversarial": "NLL adv.",
    "brier_clean": "Brier clean",
    "brier_adversarial": "Brier adv.",
}
"""Of an evaluation's summary, and how a table calls them."""

COMPARED = ("clean_accuracy", "robust_accuracy")


@dataclass(frozen=True, kw_only=True)
class SeedDifference:
    """Of two rows, seed by seed, first minus second.

    Args:
        mean: over seeds.
        std: over seeds, n − 1 below; nan for one seed.
        low: lower end of the 95 % interval of the mean by Student's t; nan for one seed.
        high: its upper end.
        num_seeds: that both rows have.
    """

    mean: float
    std: float
    low: float
    high: float
    num_seeds: int

    @property
    def verdict(self) -> str:
        """In a plain word."""
        if self.num_seeds < 2:
            return "one seed"
        if self.low <= 0 <= self.high:
            return "noise"
        return "better" if self.mean > 0 else "worse"


def paired_over_seeds(first: Sequence[float], second: Sequence[float]) -> SeedDifference:
    """The mean difference of pairs with Student's 95 % interval: seeds are what varies, images are not.

    Args:
        first: one value a seed; larger is better.
        second: of the same seeds in the same order.

    Example:
        >>> found = paired_over_seeds([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
        >>> round(found.mean, 3), found.num_seeds, found.verdict
        (0.1, 3, 'better')
    """
    from scipy.stats import t

    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, std, n = mean_std(differences)
    half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n) if n > 1 else math.nan
    return SeedDifference(mean=mean, std=std, low=mean - half, high=mean + half, num_seeds=n)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table: a row at one checkpoint.

    Args:
        row: of the design.
        checkpoint: such as "best".
        values: each column, by seed.
        differences: each of COMPARED from the row it is compared with; empty for a baseline.
    """

    row: Row
    checkpoint: str
    values: dict[str, dict[int, float]]
    differences: dict[str, SeedDifference] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Those that were done."""
        return sorted(self.values["clean_accuracy"])

    def mean_std(self, column: str) -> tuple[float, float]:
        """Over seeds; a standard deviation of nan for one seed."""
        mean, std, _ = mean_std(list(self.values[column].values()))
        return mean, std


@dataclass(frozen=True, kw_only=True)
class Table:
    """Everything that the results of a study say.

    Args:
        lines: in the order of the design, and of checkpoints within a row.
        conditions: of the evaluations, which are the same for all of them.
    """

    lines: tuple[Line, ...]
    conditions: dict[str, Any]

    @property
    def checkpoints(self) -> list[str]:
        """All that any line is of: best, last, and averages if there are any."""
        return list(dict.fromkeys(line.checkpoint for line in self.lines))


def tabulate(study: Study) -> Table:
    """The table of the runs that are done, from the records of their evaluations.

    Raises:
        RunError: an evaluation is damaged.
    """
    found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    conditions: dict[str, Any] = {}
    for row in study.design.rows:
        for seed in study.seeds:
            name = study.run_of(seed, row)
            folders = evaluated(RunDirectory(study.folder / name), study.asked(name)) or {}
            for checkpoint, folder in folders.items():
                records = Records.load(folder)
                conditions = conditions or records.conditions
                values = found.setdefault((row.label, checkpoint), {column: {} for column in COLUMNS})
                numbers = summary(records)
                for column in COLUMNS:
                    values[column][seed] = numbers[column]
    lines = []
    for row in study.design.rows:
        for (label, checkpoint), values in found.items():
            if label == row.label:
                baseline = _baseline(found, row, checkpoint)
                differences = {} if baseline is None else _differences(values, baseline)
                lines.append(Line(row=row, checkpoint=checkpoint, values=values, differences=differences))
    return Table(lines=tuple(lines), conditions=conditions)


_Values = dict[str, dict[int, float]]


def _baseline(found: dict[tuple[str, str], _Values], row: Row, checkpoint: str) -> _Values | None:
    """At the same checkpoint; an average of weights is compared with the weights themselves where there is none."""
    if row.against is None:
        return None
    plain = checkpoint.partition("-")[0]
    return found.get((row.against, checkpoint), found.get((row.against, plain)))


def _differences(values: _Values, baseline: _Values) -> dict[str, SeedDifference]:
    seeds = sorted(values["clean_accuracy"].keys() & baseline["clean_accuracy"].keys())
    if not seeds:
        return {}
    return {
        column: paired_over_seeds([values[column][seed] for seed in seeds], [baseline[column][seed] for seed in seeds])
        for column in COMPARED
    }
