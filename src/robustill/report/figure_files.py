"""Write the figures of the page as files for a paper: SVG, PDF, and the data behind each as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from robustill.core.errors import RunError
from robustill.core.files import new_folder
from robustill.core.formatting import csv_cell
from robustill.report.panels import Panel, Row
from robustill.report.plots import draw, render_file

_INDEX = "figures.csv"
_FORMATS = ("svg", "pdf")
TABLES = ("ranking.csv", "ranking.tex")
"""The names of tables that stand beside the figures."""


def write_figures(panels: Iterable[Panel], folder: Path, tables: Mapping[str, bytes] | None = None) -> None:
    """Write every panel as NAME.svg, NAME.pdf and NAME.csv, and figures.csv with the title and description of each.

    Args:
        panels: panels with unique file names.
        tables: more files by name, each one of TABLES.
        folder: written completely or not at all; it may replace the figures of an earlier call, but no other files.

    Raises:
        RunError: the folder holds other files, or cannot be written.
    """
    if folder.exists():
        _check_no_other_files(folder)
    files, index = dict(tables or {}), []
    for each in panels:
        index.append({"figure": each.file, "title": each.title, "shows": each.description})
        figure = draw(each.paint, height=each.height)
        for kind in _FORMATS:
            files[f"{each.file}.{kind}"] = render_file(figure, kind)
        files[f"{each.file}.csv"] = _table(each.rows())
    files[_INDEX] = _table(index)
    try:
        # The path is resolved because a new folder cannot be made next to ".".
        with new_folder(folder.resolve()) as temporary:
            for name, content in files.items():
                (temporary / name).write_bytes(content)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}): give another folder as --figures") from None


def _check_no_other_files(folder: Path) -> None:
    """Check that a folder holds nothing but the figures of an earlier call.

    Raises:
        RunError: it holds other files, or is a file.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is a file: give the name of a folder as --figures")
    present = {file.name for file in folder.iterdir()}
    own_files = {_INDEX}
    if _INDEX in present:
        own_files |= set(TABLES)
        with (folder / _INDEX).open(encoding="utf-8", errors="replace", newline="") as file:
            names = [row.get("figure") for row in csv.DictReader(file)]
        own_files |= {f"{name}.{kind}" for name in names for kind in (*_FORMATS, "csv")}
    others = sorted(present - own_files)
    if others:
        raise RunError(
            f"{folder} holds {others[0]}, which is not one of the figures: give a new or an empty folder as --figures"
        )


def _table(rows: Iterable[Row]) -> bytes:
    file = io.StringIO(newline="")
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({key: _format_cell(value) for key, value in row.items()})
    return file.getvalue().encode()


def _format_cell(value: object) -> str:
    """Format a float with seven digits and a bool as 1 or 0; None and nan give an empty cell."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.7g}" if isinstance(value, float | np.floating) else str(csv_cell(str(value)))
