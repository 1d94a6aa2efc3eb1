"""The table of a study: means and standard deviations over seeds, and paired differences with their intervals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from robustill.analysis.statistics import SeedDifference, mean_std, paired_over_seeds
from robustill.analysis.summary import summary
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records
from robustill.studies.design import Row
from robustill.studies.job import finished_evaluations
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
"""The numbers of an evaluation's summary that the table holds, and the names of their columns."""

COMPARED = ("clean_accuracy", "robust_accuracy")
"""The columns in which rows are compared."""


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """The result of one row at one checkpoint: one line of the table.

    Args:
        row: the row of the design.
        checkpoint: the name of the checkpoint, such as "best".
        values: the values of each column by seed.
        differences: for each column of COMPARED, the difference from the row it is compared with; empty for a baseline.
    """

    row: Row
    checkpoint: str
    values: dict[str, dict[int, float]]
    differences: dict[str, SeedDifference] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """The seeds whose runs have been finished."""
        return sorted(self.values["clean_accuracy"])

    def mean_std(self, column: str) -> tuple[float, float]:
        """Return the mean and standard deviation over seeds; the latter is nan for one seed."""
        mean, std, _ = mean_std(list(self.values[column].values()))
        return mean, std


@dataclass(frozen=True, kw_only=True)
class Table:
    """The table of a study.

    Args:
        results: its lines, in the order of the design, and of checkpoints within a row.
        conditions: the conditions of the evaluations, which are the same for all of them.
    """

    results: tuple[RowResult, ...]
    conditions: dict[str, Any]


def tabulate(study: Study) -> Table:
    """Build the table of the runs that have been finished, from the records of their evaluations.

    Raises:
        RunError: an evaluation is damaged.
    """
    columns: dict[tuple[str, str], _ColumnValues] = {}
    conditions: dict[str, Any] = {}
    for row in study.design.rows:
        for seed in study.seeds:
            name = study.run_of(seed, row)
            folders = finished_evaluations(RunDirectory(study.folder / name), study.evaluation(name)) or {}
            for checkpoint, folder in folders.items():
                records = Records.load(folder)
                conditions = conditions or records.conditions
                values = columns.setdefault((row.label, checkpoint), {column: {} for column in COLUMNS})
                numbers = summary(records)
                for column in COLUMNS:
                    values[column][seed] = numbers[column]
    results = []
    for row in study.design.rows:
        for (label, checkpoint), values in columns.items():
            if label == row.label:
                baseline = _baseline_values(columns, row, checkpoint)
                differences = {} if baseline is None else _differences(values, baseline)
                results.append(RowResult(row=row, checkpoint=checkpoint, values=values, differences=differences))
    return Table(results=tuple(results), conditions=conditions)


_ColumnValues = dict[str, dict[int, float]]
"""The values of each column by seed."""


def _baseline_values(columns: dict[tuple[str, str], _ColumnValues], row: Row, checkpoint: str) -> _ColumnValues | None:
    """Return the values that a row is compared with, at the same checkpoint.

    If that row has no average of its weights, an average such as best-ema is compared with its best weights.
    """
    if row.against is None:
        return None
    weights = checkpoint.partition("-")[0]
    return columns.get((row.against, checkpoint), columns.get((row.against, weights)))


def _differences(values: _ColumnValues, baseline: _ColumnValues) -> dict[str, SeedDifference]:
    seeds = sorted(values["clean_accuracy"].keys() & baseline["clean_accuracy"].keys())
    if not seeds:
        return {}
    return {
        column: paired_over_seeds([values[column][seed] for seed in seeds], [baseline[column][seed] for seed in seeds])
        for column in COMPARED
    }
