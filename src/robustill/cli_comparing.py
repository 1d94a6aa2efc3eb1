"""Verbs of the command line that compare what runs say of single images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts


def difficulty(
    target: Path,
    *,
    uncertainty: Annotated[list[Path], cyclopts.Parameter(consume_multiple=True)],
    out: Path | None = None,
) -> None:
    """Say whether what a run finds hard is what people find hard, and whether it finds label errors.

    Parameters
    ----------
    target
        A run directory, whose training and evaluations give the scores; or a table of scores (.csv: id, label, scores).
    uncertainty
        Files of what people said, in the data set's own order of images: CIFAR-10H (.npz with counts) and checked label
        errors (.json) of the test images, CIFAR-10N (.npz with clean_label, aggre_label ...) of the training images.
    out
        Also write the numbers as a .csv here.
    """
    from robustill import atomic
    from robustill.difficulty_check import agreement_rows, check_difficulty
    from robustill.studies.cells import csv_text
    from robustill.tables import difficulty_table

    found = check_difficulty(target, uncertainty)
    difficulty_table(found)
    if out is not None:
        atomic.write_text(out, csv_text(agreement_rows(found)))
        print(f"wrote {out}")
