"""Files that were attacked as they are shipped, beside one another: robust accuracy against latency."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustill.core.errors import RunError, printable
from robustill.core.files import write_bytes
from robustill.core.formatting import conditions as format_conditions
from robustill.core.formatting import csv_text, markdown_table, shorten
from robustill.report.plots import INK, MUTED, SERIES, draw, percent_axis, render_file
from robustill.runs.records import read_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FILES = ("deploy.md", "deploy.csv", "deploy.svg")
_COMPARED = ("data", "split", "data_fingerprint", "num_images", "selection", "threat", "seed")
_SEARCHED = 3
"""Depth of the folders in which evaluations are looked for."""
_NAMED = 6
"""Number of files in a figure beyond which only those have their name that no other one beats."""


@dataclass(frozen=True, kw_only=True)
class ShippedFile:
    """One file: what it costs, and its accuracy on clean images and as it was attacked.

    Args:
        name: of the file.
        num_bytes: of the file and its data.
        milliseconds: the median at batch sizes 1 and 32.
        runtime: what ran it, and the number of threads.
        clean_accuracy: of all images.
        robust_accuracy: against every attack of the suite.
        interval: its 95 % interval.
        alone: the robust accuracy against each family of attacks alone.
        conditions: of the evaluation.
    """

    name: str
    num_bytes: int
    milliseconds: tuple[float, float]
    runtime: str
    clean_accuracy: float
    robust_accuracy: float
    interval: tuple[float, float]
    alone: Mapping[str, float]
    conditions: Mapping[str, Any]

    def is_beaten_by(self, other: ShippedFile) -> bool:
        """Return whether another file is at least as fast on one image and as robust, and better in one of the two."""
        own, others = (-self.milliseconds[0], self.robust_accuracy), (-other.milliseconds[0], other.robust_accuracy)
        return others != own and all(theirs >= mine for mine, theirs in zip(own, others, strict=True))


def read_shipped(paths: Sequence[Path]) -> list[ShippedFile]:
    """Return the files whose evaluations lie in these folders, the fastest on one image first.

    Raises:
        RunError: there are none, one is damaged, or they were attacked under different conditions.
    """
    folders = [folder for path in paths for folder in _evaluations(path)]
    found = [each for folder in dict.fromkeys(folders) if (each := read_file(folder)) is not None]
    if not found:
        places = ", ".join(map(str, paths)) or "no folder"
        raise RunError(
            f"{places}: no file was attacked as it is shipped there: first robustill evaluate FILE.onnx --suite "
            "deployed, and give the folder of its records"
        )
    for each in found[1:]:
        differing = [key for key in _COMPARED if each.conditions.get(key) != found[0].conditions.get(key)]
        if differing:
            raise RunError(
                f"{found[0].name} and {each.name} were attacked with other {', '.join(differing)}: compare evaluations "
                "of the same images and threat"
            )
    return sorted(found, key=lambda each: each.milliseconds)


def _evaluations(path: Path) -> Iterator[Path]:
    """Yield the folders of evaluations at a path or below it."""
    if not path.is_dir():
        raise RunError(f"{path} is no folder of an evaluation: give one, or a folder that holds some")
    for depth in range(_SEARCHED):
        yield from (each.parent for each in sorted(path.glob("*/" * depth + "summary.json")))


def read_file(folder: Path) -> ShippedFile | None:
    """Return the file whose records lie in a folder; None for those of another suite or of no file.

    Raises:
        RunError: they are missing or damaged.
    """
    page = read_summary(folder)
    results, conditions = page["results"], page["conditions"]
    if not isinstance(conditions.get("deployment"), dict):
        return None
    try:
        deployment = conditions["deployment"]
        low, high = results["robust_accuracy_interval"]
        threads = deployment["threads"]
        return ShippedFile(
            name=printable(str(conditions["checkpoint"])),
            num_bytes=int(deployment["bytes"]),
            milliseconds=(_median(deployment, "1"), _median(deployment, "32")),
            runtime=printable(f"{deployment['runtime']}, {threads} thread{'' if threads == 1 else 's'}"),
            clean_accuracy=float(results["clean_accuracy"]),
            robust_accuracy=float(results["robust_accuracy"]),
            interval=(float(low), float(high)),
            alone={
                printable(str(name)): float(value)
                for name, value in conditions["attacked_as_shipped"]["robust_accuracy_alone"].items()
            },
            conditions=conditions,
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RunError(f"{folder / 'summary.json'} is damaged: evaluate again to write it anew") from None


def _median(deployment: Mapping[str, Any], batch: str) -> float:
    return float(deployment["milliseconds"][batch]["median"])


def shipped_rows(files: Sequence[ShippedFile], *, with_families: bool = True) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table; a star marks a file that no other one beats.

    Args:
        files: the files.
        with_families: with a column for each family of attacks alone.
    """
    families = list(dict.fromkeys(name for each in files for name in each.alone)) if with_families else []
    header = ["file", "bytes", "ms, 1", "ms, 32", "clean", *families, "as shipped", "95 %"]
    rows = []
    for each in files:
        star = "" if any(each.is_beaten_by(other) for other in files) else " *"
        alone = [f"{each.alone[name]:.3f}" if name in each.alone else "–" for name in families]
        times = [f"{value:.3g}" for value in each.milliseconds]
        low, high = each.interval
        own = [f"{each.clean_accuracy:.3f}", *alone, f"{each.robust_accuracy:.3f}{star}", f"{low:.3f}–{high:.3f}"]
        rows.append([each.name, f"{each.num_bytes:,}", *times, *own])
    return header, rows


def check_output_folder(folder: Path) -> None:
    """Check that the report may be written to this folder: it is new, empty, or holds an earlier one.

    Raises:
        RunError: the folder holds other files.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: give the name of a folder as --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _FILES[0]).is_file():
        raise RunError(f"{folder} is not empty and holds no such report: give a new or an empty folder as --out")


def write_deployment(files: Sequence[ShippedFile], folder: Path) -> None:
    """Write the table as Markdown and CSV, and the figure as SVG; each file is replaced atomically.

    Raises:
        RunError: the folder holds other files.
    """
    check_output_folder(folder)
    header, rows = shipped_rows(files)
    table, facts = markdown_table(header, rows), [f"- {each}" for each in notes(files)]
    lines = ["# Files as they are shipped", "", *table, "", *facts]
    contents = ("\n".join(lines).encode() + b"\n", csv_text([header, *rows]).encode(), render_figure(files))
    for name, content in zip(_FILES, contents, strict=True):
        write_bytes(folder / name, content)


def render_figure(files: Sequence[ShippedFile]) -> bytes:
    """Draw the robust accuracy against the latency on one image, as an SVG file.

    Args:
        files: the fastest first.
    """
    return render_file(draw(lambda canvas: _paint(canvas, files), width=5.4, height=3.0), "svg")


def notes(files: Sequence[ShippedFile]) -> Iterator[str]:
    """Yield the conditions of the numbers, what they mean, and what was not tried."""
    yield printable(format_conditions({**files[0].conditions, "suite": {"name": "deployed"}}))
    yield "* no other file is as fast on one image and as robust; a column of one attack is of that attack alone"
    for runtime in dict.fromkeys(each.runtime for each in files):
        yield f"median milliseconds at batch sizes 1 and 32, {runtime}"
    not_tried = [each.conditions["attacked_as_shipped"].get("not_tried") for each in files]
    for each in dict.fromkeys(json.dumps(values) for values in not_tried if isinstance(values, list)):
        yield printable(f"not tried: {', '.join(map(str, json.loads(each)))}")


def _paint(figure: Figure, files: Sequence[ShippedFile]) -> None:
    """Draw the robust accuracy against the latency on one image, with a line through the files that none beats."""
    axes = figure.subplots()
    best = [each for each in files if not any(each.is_beaten_by(other) for other in files)]
    axes.step(
        [each.milliseconds[0] for each in best],
        [each.robust_accuracy for each in best],
        where="post",
        color=MUTED,
        linewidth=0.9,
    )
    middle = (files[0].milliseconds[0] + files[-1].milliseconds[0]) / 2
    for each in files:
        (time, _), accuracy, (low, high) = each.milliseconds, each.robust_accuracy, each.interval
        axes.errorbar(
            [time],
            [accuracy],
            [[accuracy - low], [high - accuracy]],
            fmt="o" if each in best else "s",
            color=SERIES[0] if each in best else SERIES[1],
            markersize=5,
            linewidth=0.8,
        )
        if each not in best and len(files) > _NAMED:
            continue
        label = f"{shorten(each.name, 22)}, {each.num_bytes / 1000:,.0f} kB"
        is_right = time > middle
        axes.annotate(
            label,
            (time, accuracy),
            (-5 if is_right else 5, 5),
            textcoords="offset points",
            ha="right" if is_right else "left",
            color=INK,
            fontsize=7,
        )
    ends = [end for each in files for end in each.interval]
    percent_axis(axes, "robust accuracy as shipped", (min(ends), max(ends)))
    axes.margins(x=0.2)
    axes.set_xlabel("milliseconds for one image")
