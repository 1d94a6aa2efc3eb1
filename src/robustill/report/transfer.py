"""The transfer of adversarial images between networks: a heat map, the similarity of predictions, and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustill.analysis.statistics import wilson_interval
from robustill.analysis.transfer import Similarity, similarity, stronger_transfers, transfer_matrix
from robustill.core.errors import RunError
from robustill.core.files import write_bytes
from robustill.core.formatting import conditions, csv_text, markdown_table, percent, shorten
from robustill.report.panels import Panel, Row
from robustill.report.plots import INK, PAPER, SERIES, Draw, draw, render_file, with_alpha
from robustill.runs.transfer_records import TransferRecords

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_LOWEST_OPACITY, _HIGHEST_OPACITY = 0.06, 0.5
"""Opacity of the cells with the lowest and the highest number, which stay legible in a light and a dark scheme."""


def transfer_panel(records: TransferRecords) -> Panel:
    """Return the panel with the accuracy of each network on the images made against each network."""
    matrix = transfer_matrix(records.adversarial, records.label)
    summary = "; ".join(
        f"made against {source}: " + ", ".join(f"{name} {percent(value)}" for name, value in _named(records, row))
        for source, row in _named(records, matrix)
    )
    return Panel(
        name="transfer",
        paint=_heat_map(records.names, matrix),
        rows=lambda: transfer_rows(records),
        description=f"Accuracy on adversarial images, {len(records.index)} of them; {summary}.",
        title="Accuracy on adversarial images, %",
        height=1.3 + 0.38 * len(records.names),
    )


def _named(records: TransferRecords, values: Any) -> Iterator[tuple[str, Any]]:
    return zip(records.names, values, strict=True)


def _heat_map(names: tuple[str, ...], matrix: Any) -> Draw:
    """Return a table of numbers in shaded cells; a frame marks each network under its own attack."""

    def paint(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        size, lowest = len(names), float(matrix.min())
        span = max(float(matrix.max()) - lowest, 1e-9)
        for source, target in np.ndindex(matrix.shape):
            value = float(matrix[source, target])
            is_own_attack = source == target
            opacity = _LOWEST_OPACITY + (_HIGHEST_OPACITY - _LOWEST_OPACITY) * (value - lowest) / span
            axes.add_patch(
                Rectangle(
                    (target - 0.47, source - 0.47),
                    0.94,
                    0.94,
                    facecolor=with_alpha(SERIES[0], opacity),
                    edgecolor=INK if is_own_attack else PAPER,
                    linewidth=1.2 if is_own_attack else 0.0,
                )
            )
            axes.text(
                target,
                source,
                f"{100 * value:.1f}",
                ha="center",
                va="center",
                color=INK,
                fontweight="bold" if is_own_attack else "normal",
            )
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xticks(range(size), [str(number) for number in range(1, size + 1)])
        axes.set_yticks(range(size), [f"{shorten(name, 18)} ({number})" for number, name in enumerate(names, start=1)])
        axes.set_xlabel("evaluated network")
        axes.set_ylabel("attacked network")

    return paint


def transfer_rows(records: TransferRecords) -> Iterator[Row]:
    """Yield the accuracy of every target network on the images of every source network, itself included."""
    correct = records.adversarial.argmax(axis=3) == records.label
    for s, source in enumerate(records.names):
        for t, target in enumerate(records.names):
            low, high = wilson_interval(int(correct[s, t].sum()), len(records.label))
            yield {
                "made_against": source,
                "asked": target,
                "accuracy": float(correct[s, t].mean()),
                "low": low,
                "high": high,
                "num_images": len(records.label),
            }


def pairwise_similarity(records: TransferRecords) -> Iterator[tuple[str, str, Similarity, Similarity]]:
    """Yield (first, second, similarity on clean images, similarity on those made against the second) for each pair."""
    for i, first in enumerate(records.names):
        for j, second in enumerate(records.names):
            if i != j:
                clean = similarity(records.clean[i], records.clean[j], records.label)
                attacked = similarity(records.adversarial[j, i], records.adversarial[j, j], records.label)
                yield first, second, clean, attacked


def similarity_rows(records: TransferRecords) -> Iterator[Row]:
    """Yield the similarity of the predictions of every ordered pair of networks."""
    for first, second, *both in pairwise_similarity(records):
        row: Row = {"first": first, "second": second}
        for kind, each in zip(("clean", "adversarial"), both, strict=True):
            row[f"agreement_{kind}"] = each.agreement
            row[f"kl_{kind}"] = each.kl
            row[f"rank_correlation_{kind}"] = each.correlation.rho
            row[f"rank_correlation_{kind}_low"] = each.correlation.low
            row[f"rank_correlation_{kind}_high"] = each.correlation.high
        yield row


def transfer_warnings(records: TransferRecords) -> list[str]:
    """Return the reasons to distrust the attack on one of the networks."""
    matrix = transfer_matrix(records.adversarial, records.label)
    return [
        f"Images made against {records.names[source]} fool {records.names[target]} more often than those made against "
        f"itself (accuracy {percent(matrix[source, target])} against {percent(matrix[target, target])}): its gradient "
        "may be masked."
        for source, target in stronger_transfers(records.adversarial, records.label)
    ]


def check_output_folder(folder: Path) -> None:
    """Check that a transfer may be written to this folder: it is new, empty, or holds an earlier transfer.

    Raises:
        RunError: the folder holds other files.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: give the name of a folder as --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "transfer.json").is_file():
        raise RunError(f"{folder} is not empty and holds no transfer: give a new or an empty folder as --out")


def write_transfer(records: TransferRecords, folder: Path) -> None:
    """Write the records and their results as Markdown, CSV and SVG; each file is replaced atomically.

    Raises:
        RunError: the folder holds other files.
    """
    check_output_folder(folder)
    panel = transfer_panel(records)
    files = {
        "transfer.svg": render_file(draw(panel.paint, height=panel.height), "svg"),
        "transfer.csv": _csv(list(transfer_rows(records))),
        "likeness.csv": _csv(list(similarity_rows(records))),
        "transfer.md": "\n".join(_markdown(records)).encode(),
    }
    records.save(folder)
    for name, content in files.items():
        write_bytes(folder / name, content)


def _csv(rows: list[Row]) -> bytes:
    return csv_text([list(rows[0]), *(list(row.values()) for row in rows)]).encode()


def _markdown(records: TransferRecords) -> Iterator[str]:
    matrix = transfer_matrix(records.adversarial, records.label)
    cells = [[source, *(f"{value:.3f}" for value in row)] for source, row in _named(records, matrix)]
    yield "# Transfer of adversarial images"
    yield ""
    yield "Accuracy of each network on the images made against each network."
    yield ""
    yield from markdown_table(["made against", *records.names], cells)
    yield ""
    yield f"- {conditions(records.conditions)}"
    for each in transfer_warnings(records):
        yield f"- {each}"
    yield ""
    yield "![transfer](transfer.svg)"
    yield ""
    yield "Similarity of the predictions on clean images and under attack by images made against the second network:"
    yield ""
    columns = [f"{what}, {kind}" for kind in ("clean", "attacked") for what in ("agreement", "KL", "rank correlation")]
    rows = [
        [first, second, *_similarity_cells(clean), *_similarity_cells(attacked)]
        for first, second, clean, attacked in pairwise_similarity(records)
    ]
    yield from markdown_table(["first", "second", *columns], rows)
    yield ""


def _similarity_cells(each: Similarity) -> list[str]:
    return [f"{each.agreement:.3f}", f"{each.kl:.3f}", f"{each.correlation.rho:.3f}"]
