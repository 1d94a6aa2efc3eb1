"""The table of a track: its rows side by side, each compared with PGD-AT of averaged weights, corrected by Holm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robustill.analysis.statistics import SeedDifference, holm, mean_std, paired_over_seeds
from robustill.core.formatting import clock, markdown_table, points
from robustill.studies.board import BoardRow, read_rows
from robustill.studies.table import COMPARED
from robustill.studies.tracks import CHECKPOINTS

BEST, LAST = CHECKPOINTS
HEADER = (
    "",
    "seeds",
    "clean",
    "robust",
    "clean, last",
    "robust, last",
    "ECE",
    "ECE, attacked",
    "clean, difference",
    "robust, difference",
    "TFLOP (teachers)",
    "time (teachers)",
)
"""The header of the table; without a checkpoint a number is that of the best epoch."""

_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of a row from the baseline of its track, at the best epoch.

    Args:
        difference: over the seeds that both have.
        p_value: corrected by Holm's method over all comparisons of the track.
    """

    difference: SeedDifference
    p_value: float

    @property
    def verdict(self) -> str:
        """One of "better", "worse" and "undecided"."""
        if not self.p_value < _LEVEL or self.difference.verdict not in ("better", "worse"):
            return "undecided"
        return self.difference.verdict


def compared(rows: Sequence[BoardRow]) -> dict[tuple[str, str], Comparison]:
    """Compare every row of a track with its baseline.

    Returns:
        The comparisons by the name of the row and the number of COMPARED; none without a baseline.
    """
    baseline = next((row for row in rows if row.is_baseline), None)
    if baseline is None:
        return {}
    differences = {}
    for row in rows:
        seeds = [seed for seed in row.seeds if seed in baseline.seeds]
        for column in COMPARED if row is not baseline else ():
            first, second = (each.values(BEST, column) for each in (row, baseline))
            differences[row.name, column] = paired_over_seeds([first[s] for s in seeds], [second[s] for s in seeds])
    corrected = holm([each.p_value for each in differences.values()])
    return {
        key: Comparison(difference=difference, p_value=p_value)
        for (key, difference), p_value in zip(differences.items(), corrected, strict=True)
    }


def board_cells(rows: Sequence[BoardRow]) -> list[list[str]]:
    """Format the rows of a track with the columns of HEADER: the baseline, then the others, the most robust first."""
    comparisons = compared(rows)
    ordered = sorted(rows, key=lambda row: (not row.is_baseline, -_mean(row, BEST, "robust_accuracy"), row.name))
    return [_cells(row, comparisons) for row in ordered]


def board_markdown(board: Path, track: str) -> str:
    """Format the table of a track for a page.

    Raises:
        RunError: a row is damaged, or belongs to another definition of the track.
    """
    rows = read_rows(board, track)
    if not rows:
        return f"No row yet; the first is `robustill board run at --track {track}`."
    return "\n".join([*markdown_table(HEADER, board_cells(rows)), "", *(f"- {line}" for line in board_notes(rows))])


def board_notes(rows: Sequence[BoardRow]) -> list[str]:
    """Return what the numbers of a track were measured under, and how to read them."""
    conditions = rows[0].conditions
    machines = {
        each["processor"] if each["gpu"] is None else each["gpu"] for row in rows for each in row.conditions["trained"]
    }
    return [
        f"{conditions['data']} test, {conditions['num_images']} of {conditions['of_images']} images, "
        f"{conditions['threat']['text']}, suite {conditions['suite']['name']}; averaged weights (EMA) of the epoch "
        "that is best on validation images, and of the last. In percent: mean ± standard deviation over seeds.",
        "Differences from PGD-AT + EMA in points, paired by seed, with Student's 95 % interval and the p-value "
        f"corrected by Holm's method over all of them; better or worse where it is below {_LEVEL:g}.",
        "TFLOP: 10¹² floating-point operations of the training of one seed, counted, with validation, the passes of "
        "teachers and the training of teachers (in brackets). Time: measured, mean over seeds, on "
        f"{', '.join(sorted(machines))}.",
    ]


def _mean(row: BoardRow, checkpoint: str, column: str) -> float:
    return float(np.mean(row.results[checkpoint][column]))


def _cells(row: BoardRow, comparisons: dict[tuple[str, str], Comparison]) -> list[str]:
    numbers = [
        (BEST, "clean_accuracy"),
        (BEST, "robust_accuracy"),
        (LAST, "clean_accuracy"),
        (LAST, "robust_accuracy"),
        (BEST, "ece_clean"),
        (BEST, "ece_adversarial"),
    ]
    return [
        row.name,
        str(len(row.seeds)),
        *(_percent(row.results[checkpoint][column]) for checkpoint, column in numbers),
        *(_difference(comparisons.get((row.name, column))) for column in COMPARED),
        *_costs(row),
    ]


def _percent(values: Sequence[float]) -> str:
    mean, std, n = mean_std(values)
    return f"{100 * mean:.1f}" if n == 1 else f"{100 * mean:.1f} ± {100 * std:.1f}"


def _difference(comparison: Comparison | None) -> str:
    if comparison is None:
        return "–"
    each = comparison.difference
    p_value = "p < 0.001" if comparison.p_value < 0.001 else f"p {comparison.p_value:.3f}"
    return f"{points(each.mean)} [{points(each.low)}, {points(each.high)}], {p_value}: {comparison.verdict}"


def _costs(row: BoardRow) -> tuple[str, str]:
    """Format the counted operations in 10¹² and the measured time, of everything and in brackets of the teachers."""
    own, teachers = (float(np.sum(row.compute[f"{part}_gflop"])) for part in ("training", "teachers"))
    seconds, more = (float(np.mean(row.compute[f"{part}_seconds"])) for part in ("training", "teachers"))
    if not teachers:
        return f"{own / 1e3:,.1f}", clock(seconds)
    return f"{(own + teachers) / 1e3:,.1f} ({teachers / 1e3:,.1f})", f"{clock(seconds + more)} ({clock(more)})"
