"""Cells of tables, in every format alike."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

from robustill.report.words import MINUS


def with_std(mean: float, std: float, sign: str = "") -> str:
    """Mean ± standard deviation; an unknown one is left out, an unknown mean is a dash."""
    if math.isnan(mean):
        return "–"
    text = f"{mean:{sign}.3f}".replace("-", MINUS)
    return text if math.isnan(std) else f"{text} ± {std:.3f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    head, *body = ("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (header, *rows))
    return [head, f"|{'---|' * len(header)}", *body]


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """The rows as CSV, every number in full."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        # An empty cell, not the word nan: a spreadsheet reads both.
        writer.writerow(
            ["" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else cell for cell in row]
        )
    return file.getvalue()
