"""The table of a study: means and standard deviations over seeds, and paired differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.statistics import SeedDifference, corrected, mean_std, paired_over_seeds_and_images
from robustill.analysis.summary import summary
from robustill.core.errors import RunError
from robustill.runs.directory import RunDirectory
from robustill.runs.records import FIXED_ATTACK, Records
from robustill.studies.cost import TrainingCompute, training_compute
from robustill.studies.design import Row
from robustill.studies.job import finished_evaluations
from robustill.studies.study import Study

COLUMNS = {
    "clean_accuracy": "clean",
    "robust_accuracy": "robust",
    "ece_clean": "ECE clean",
    "ece_adversarial": "ECE adv.",
    "ece_pgd": f"ECE {FIXED_ATTACK}",
    "nll_clean": "NLL clean",
    "nll_adversarial": "NLL adv.",
    "nll_pgd": f"NLL {FIXED_ATTACK}",
    "brier_clean": "Brier clean",
    "brier_adversarial": "Brier adv.",
    "brier_pgd": f"Brier {FIXED_ATTACK}",
}
"""The numbers of an evaluation's summary that the table holds, and the names of their columns.

Those of the fixed attack are nan for evaluations of earlier versions.
"""

COMPARED = ("clean_accuracy", "robust_accuracy")
"""The columns in which rows are compared."""

Correct = dict[int, NDArray[np.bool_]]
"""Whether each test image is classified correctly, bool [N], by seed."""


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """The result of one row at one checkpoint: one line of the table.

    Args:
        row: the row of the design.
        checkpoint: the name of the checkpoint, such as "best".
        values: the values of each column by seed.
        compute: the operations of the training of one seed.
        correct: for each column of COMPARED, whether each test image is classified correctly, by seed.
        differences: for each column of COMPARED, the difference from the row it is compared with, whose p-value is
            corrected for the number of differences in the table; empty for a baseline.
    """

    row: Row
    checkpoint: str
    values: dict[str, dict[int, float]]
    compute: TrainingCompute
    correct: dict[str, Correct]
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

    @property
    def shown(self) -> tuple[str, str, str, str]:
        """The columns that are shown: both accuracies, and the ECE of clean images and under attack."""
        has_fixed_attack = all(not math.isnan(ece) for each in self.results for ece in each.values["ece_pgd"].values())
        return *COMPARED, "ece_clean", "ece_pgd" if has_fixed_attack else "ece_adversarial"


def tabulate(study: Study) -> Table:
    """Build the table of the runs that have been finished, from the records of their evaluations.

    Raises:
        RunError: an evaluation is damaged, or two runs were evaluated on different images.
    """
    found: dict[tuple[str, str], RowResult] = {}
    conditions: dict[str, Any] = {}
    images: NDArray[np.int64] | None = None
    compute = training_compute(study)
    for row in study.design.rows:
        for seed in study.seeds:
            name = study.run_of(seed, row)
            folders = finished_evaluations(RunDirectory(study.folder / name), study.evaluation(name)) or {}
            for checkpoint, folder in folders.items():
                records = Records.load(folder)
                conditions = conditions or records.conditions
                images = records.index if images is None else images
                if not np.array_equal(records.index, images):
                    raise RunError(f"{folder} has other test images than the runs before it: delete it and resume")
                result = found.setdefault(
                    (row.label, checkpoint),
                    RowResult(
                        row=row,
                        checkpoint=checkpoint,
                        values={column: {} for column in COLUMNS},
                        compute=compute[name],
                        correct={column: {} for column in COMPARED},
                    ),
                )
                numbers = summary(records)
                for column in COLUMNS:
                    result.values[column][seed] = numbers.get(column, math.nan)
                flags = {"clean_accuracy": records.clean_correct, "robust_accuracy": records.robust}
                for column in COMPARED:
                    result.correct[column][seed] = flags[column]
    ordered = [each for row in study.design.rows for (label, _), each in found.items() if label == row.label]
    return Table(results=with_differences(ordered, _baselines(found)), conditions=conditions)


def with_differences(
    results: Sequence[RowResult], baselines: Mapping[tuple[str, str], RowResult]
) -> tuple[RowResult, ...]:
    """Return the lines of a table with their differences, corrected as one family.

    Args:
        results: the lines.
        baselines: the line that a line is compared with, by its label and checkpoint; those without are baselines.
    """
    differences = {}
    for result in results:
        baseline = baselines.get((result.row.label, result.checkpoint))
        if baseline is None:
            continue
        for column in COMPARED:
            difference = difference_of(result.correct[column], baseline.correct[column])
            if difference is not None:
                differences[result.row.label, result.checkpoint, column] = difference
    corrected_by_key = dict(zip(differences, corrected(list(differences.values())), strict=True))
    return tuple(
        replace(
            each,
            differences={
                column: corrected_by_key[key]
                for column in COMPARED
                if (key := (each.row.label, each.checkpoint, column)) in corrected_by_key
            },
        )
        for each in results
    )


def difference_of(first: Correct, second: Correct) -> SeedDifference | None:
    """Compare two rows over the seeds that both have, and over the test images; None if they share no seed."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    return paired_over_seeds_and_images(*(np.stack([each[seed] for seed in seeds]) for each in (first, second)))


def _baselines(found: Mapping[tuple[str, str], RowResult]) -> dict[tuple[str, str], RowResult]:
    """Return the line that each line is compared with, at the same checkpoint.

    If that row has no average of its weights, an average such as best-ema is compared with its best weights.
    """
    baselines = {}
    for (label, checkpoint), each in found.items():
        against = each.row.against
        if against is not None:
            weights = checkpoint.partition("-")[0]
            baseline = found.get((against, checkpoint), found.get((against, weights)))
            if baseline is not None:
                baselines[label, checkpoint] = baseline
    return baselines
