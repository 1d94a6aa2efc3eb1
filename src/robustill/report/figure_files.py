"""The figures of the page as files for a paper: SVG, PDF, and the data behind each as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from robustill.core.errors import RunError
from robustill.core.files import new_folder
from robustill.report.panels import Panel, Row
from robustill.report.plots import draw, whole_file

_LIST = "figures.csv"
_KINDS = ("svg", "pdf")


def write_figures(panels: Sequence[Panel], folder: Path) -> None:
    """Every panel as NAME.svg, NAME.pdf and NAME.csv, and figures.csv, which lists them with what they show.

    Args:
        panels: with file names that differ.
        folder: whole or not at all; it replaces the figures of an earlier call, and nothing else.

    Raises:
        RunError: the folder holds other files, or cannot be written.
    """
    if folder.exists():
        _refuse_others(folder)
    files = {_LIST: _table({"figure": each.file, "title": each.title, "shows": each.description} for each in panels)}
    for each in panels:
        figure = draw(each.paint, height=each.height)
        files |= {f"{each.file}.{kind}": whole_file(figure, kind) for kind in _KINDS}
        files[f"{each.file}.csv"] = _table(each.rows())
    try:
        # With its name in full: "." has no place beside it.
        with new_folder(folder.resolve()) as made:
            for name, content in files.items():
                (made / name).write_bytes(content)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}): give another folder as --figures") from None


def _refuse_others(folder: Path) -> None:
    """Nothing but the files of an earlier call may be replaced."""
    if not folder.is_dir():
        raise RunError(f"{folder} is a file: give the name of a folder as --figures")
    present = {file.name for file in folder.iterdir()}
    ours = {_LIST}
    if _LIST in present:
        with (folder / _LIST).open(encoding="utf-8", errors="replace", newline="") as file:
            names = [row.get("figure") for row in csv.DictReader(file)]
        ours |= {f"{name}.{kind}" for name in names for kind in (*_KINDS, "csv")}
    others = sorted(present - ours)
    if others:
        raise RunError(
            f"{folder} holds {others[0]}, which is none of its figures: give a new or an empty folder as --figures"
        )


def _table(rows: Iterable[Row]) -> bytes:
    file = io.StringIO(newline="")
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({key: _printed(value) for key, value in row.items()})
    return file.getvalue().encode()


def _printed(value: object) -> str:
    """Floats to seven digits, truth as 1 and 0; empty where there is nothing."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.7g}" if isinstance(value, float | np.floating) else str(value)
