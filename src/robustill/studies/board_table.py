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
HEADER = (
    "",
    "seeds",
    "clean, best / last",
    "robust, best / last",
    "ECE",
    f"ECE, {FIXED_ATTACK}",
    "robust, difference, best",
    "robust, difference, last",
    "clean, difference, best",
    "clean, difference, last",
    "TFLOP (teachers)",
    "time (teachers)",
)
"""The header of the table; calibration is that of the best epoch."""

_DIFFERENCES = [(checkpoint, column) for column in reversed(COMPARED) for checkpoint in CHECKPOINTS]


def compared(rows: Sequence[BoardRow]) -> dict[tuple[str, str, str], SeedDifference]:
    """Compare every row of a track with its baseline at both epochs, corrected over all comparisons of the track.

    Returns:
        The differences by the name of the row, the checkpoint and the number of COMPARED; none without a baseline.
    """
    baseline = next((row for row in rows if row.is_baseline), None)
    if baseline is None:
        return {}
    differences = {}
    for row in rows:
        for checkpoint, column in _DIFFERENCES if row is not baseline else ():
            difference = difference_of(row.flags(checkpoint, column), baseline.flags(checkpoint, column))
            if difference is not None:
                differences[row.name, checkpoint, column] = difference
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


def _cells(row: BoardRow, comparisons: dict[tuple[str, str, str], SeedDifference]) -> list[str]:
    return [
        row.name,
        str(len(row.seeds)),
        *(
            " / ".join(_percent(row.results[checkpoint][column]) for checkpoint in CHECKPOINTS)
            for column in ("clean_accuracy", "robust_accuracy")
        ),
        *(_percent(row.results[BEST][column]) for column in ("ece_clean", "ece_pgd")),
        *(_difference(comparisons.get((row.name, *each))) for each in _DIFFERENCES),
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
