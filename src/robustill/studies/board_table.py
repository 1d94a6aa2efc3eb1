"""The table of a track: its rows side by side, each compared with PGD-AT of averaged weights, corrected by Holm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from robustill.analysis.statistics import SIGNIFICANCE_LEVEL, SeedDifference, corrected, format_p, mean_std
from robustill.core.formatting import clock, markdown_table, points
from robustill.runs.records import FIXED_ATTACK
from robustill.studies.board import BoardRow, read_rows
from robustill.studies.cost import TrainingCompute
from robustill.studies.table import COMPARED, difference_of
from robustill.studies.tracks import CHECKPOINTS

BEST, LAST = CHECKPOINTS
ATTACKED_ECE = f"ECE, {FIXED_ATTACK}"
"""The name of the column of calibration under attack."""

HEADER = (
    "",
    "seeds",
    "clean",
    "robust",
    "clean, last",
    "robust, last",
    "ECE",
    ATTACKED_ECE,
    "clean, difference",
    "robust, difference",
    "TFLOP (teachers)",
    "time (teachers)",
)
"""The header of the table; without a checkpoint a number is that of the best epoch."""


def compared(rows: Sequence[BoardRow]) -> dict[tuple[str, str], SeedDifference]:
    """Compare every row of a track with its baseline at the best epoch, corrected over all comparisons of the track.

    Returns:
        The differences by the name of the row and the number of COMPARED; none without a baseline.
    """
    baseline = next((row for row in rows if row.is_baseline), None)
    if baseline is None:
        return {}
    differences = {}
    for row in rows:
        for column in COMPARED if row is not baseline else ():
            difference = difference_of(row.flags(BEST, column), baseline.flags(BEST, column))
            if difference is not None:
                differences[row.name, column] = difference
    return dict(zip(differences, corrected(list(differences.values())), strict=True))


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
        "Differences from PGD-AT + EMA in points, paired by seed and image, with a 95 % interval for other seeds and "
        "other test images, and the p-value after Holm's correction for all of them; better or worse where it is below "
        f"{SIGNIFICANCE_LEVEL:g} for three seeds or more.",
        "TFLOP: 10¹² floating-point operations of the training of one seed, counted, with validation, the passes of "
        "teachers and the training of teachers (in brackets). Time: measured, mean over seeds, on "
        f"{', '.join(sorted(machines))}.",
    ]


def _mean(row: BoardRow, checkpoint: str, column: str) -> float:
    return float(np.mean(row.results[checkpoint][column]))


def _cells(row: BoardRow, comparisons: dict[tuple[str, str], SeedDifference]) -> list[str]:
    numbers = [
        (BEST, "clean_accuracy"),
        (BEST, "robust_accuracy"),
        (LAST, "clean_accuracy"),
        (LAST, "robust_accuracy"),
        (BEST, "ece_clean"),
        (BEST, "ece_pgd"),
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


def _difference(each: SeedDifference | None) -> str:
    if each is None:
        return "–"
    return f"{points(each.mean)} [{points(each.low)}, {points(each.high)}], p {format_p(each.p_value)}: {each.verdict}"


def _costs(row: BoardRow) -> tuple[str, str]:
    """Format the counted operations in 10¹² and the measured time, of everything and in brackets of the teachers."""
    own, teachers = (float(np.sum(row.compute[f"{part}_gflop"])) for part in ("training", "teachers"))
    seconds, more = (float(np.mean(row.compute[f"{part}_seconds"])) for part in ("training", "teachers"))
    time = f"{clock(seconds + more)} ({clock(more)})" if teachers else clock(seconds)
    return TrainingCompute(own=own, teachers=teachers).cell, time
