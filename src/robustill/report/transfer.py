"""The transfer of adversarial images among networks: a heat map, how alike the networks answer, and what to doubt."""

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
from robustill.report.plots import INK, PAPER, SERIES, Draw, draw, whole_file
from robustill.runs.transfer_records import TransferRecords

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_FAINTEST, _STRONGEST = 0.06, 0.5
"""Opacity of the cells of the lowest and the highest number: all must be read in either scheme."""


def transfer_panel(records: TransferRecords) -> Panel:
    """Accuracy of each network on the images made against each."""
    matrix = transfer_matrix(records.adversarial, records.label)
    told = "; ".join(
        f"made against {source}: " + ", ".join(f"{name} {percent(value)}" for name, value in _named(records, row))
        for source, row in _named(records, matrix)
    )
    return Panel(
        name="transfer",
        paint=_heat_map(records.names, matrix),
        rows=lambda: transfer_rows(records),
        description=f"Accuracy on adversarial images, {len(records.index)} of them; {told}.",
        title="Accuracy on adversarial images, %",
        height=1.3 + 0.38 * len(records.names),
    )


def _named(records: TransferRecords, values: Any) -> Iterator[tuple[str, Any]]:
    return zip(records.names, values, strict=True)


def _heat_map(names: tuple[str, ...], matrix: Any) -> Draw:
    """Numbers in cells, the darker the higher; those in frames are of a network against its own attack."""

    def paint(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        size, lowest = len(names), float(matrix.min())
        span = max(float(matrix.max()) - lowest, 1e-9)
        red, green, blue = (int(SERIES[0][at : at + 2], 16) / 255 for at in (1, 3, 5))
        for source, target in np.ndindex(matrix.shape):
            value = float(matrix[source, target])
            own = source == target
            axes.add_patch(
                Rectangle(
                    (target - 0.47, source - 0.47),
                    0.94,
                    0.94,
                    facecolor=(red, green, blue, _FAINTEST + (_STRONGEST - _FAINTEST) * (value - lowest) / span),
                    edgecolor=INK if own else PAPER,
                    linewidth=1.2 if own else 0.0,
                )
            )
            axes.text(
                target,
                source,
                f"{100 * value:.1f}",
                ha="center",
                va="center",
                color=INK,
                fontweight="bold" if own else "normal",
            )
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xticks(range(size), [str(number) for number in range(1, size + 1)])
        axes.set_yticks(range(size), [f"{shorten(name, 18)} ({number})" for number, name in enumerate(names, start=1)])
        axes.set_xlabel("asked")
        axes.set_ylabel("made against")

    return paint


def transfer_rows(records: TransferRecords) -> Iterator[Row]:
    """One line for each pair of source and target, each network with itself too."""
    right = records.adversarial.argmax(axis=3) == records.label
    for s, source in enumerate(records.names):
        for t, target in enumerate(records.names):
            low, high = wilson_interval(int(right[s, t].sum()), len(records.label))
            yield {
                "made_against": source,
                "asked": target,
                "accuracy": float(right[s, t].mean()),
                "low": low,
                "high": high,
                "num_images": len(records.label),
            }


def alike(records: TransferRecords) -> Iterator[tuple[str, str, Similarity, Similarity]]:
    """(first, second, on clean images, on those made against the second) for every ordered pair."""
    for i, first in enumerate(records.names):
        for j, second in enumerate(records.names):
            if i != j:
                clean = similarity(records.clean[i], records.clean[j], records.label)
                attacked = similarity(records.adversarial[j, i], records.adversarial[j, j], records.label)
                yield first, second, clean, attacked


def alike_rows(records: TransferRecords) -> Iterator[Row]:
    """One line for each ordered pair."""
    for first, second, *both in alike(records):
        row: Row = {"first": first, "second": second}
        for kind, found in zip(("clean", "adversarial"), both, strict=True):
            row |= {
                f"agreement_{kind}": found.agreement,
                f"kl_{kind}": found.kl,
                f"rank_correlation_{kind}": found.correlation.rho,
                f"rank_correlation_{kind}_low": found.correlation.low,
                f"rank_correlation_{kind}_high": found.correlation.high,
            }
        yield row


def transfer_doubts(records: TransferRecords) -> list[str]:
    """What speaks against the attack on one of the networks."""
    matrix = transfer_matrix(records.adversarial, records.label)
    return [
        f"Images made against {records.names[source]} fool {records.names[target]} more often than those made against "
        f"itself ({percent(matrix[source, target])} right against {percent(matrix[target, target])}): its gradient may "
        "be masked."
        for source, target in stronger_transfers(records.adversarial, records.label)
    ]


def check_place(folder: Path) -> None:
    """Whether a transfer may be written here, or takes the place of an earlier one.

    Raises:
        RunError: the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: give the name of a folder as --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "transfer.json").is_file():
        raise RunError(f"{folder} is not empty and holds no transfer: give a new or an empty folder as --out")


def write_transfer(records: TransferRecords, folder: Path) -> None:
    """The records, and what they say as Markdown, CSV and SVG, each file whole or not at all.

    Raises:
        RunError: the folder holds something else.
    """
    check_place(folder)
    panel = transfer_panel(records)
    files = {
        "transfer.svg": whole_file(draw(panel.paint, height=panel.height), "svg"),
        "transfer.csv": _csv(list(transfer_rows(records))),
        "likeness.csv": _csv(list(alike_rows(records))),
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
    yield from ("# Transfer of adversarial images", "", "Accuracy of each network on images made against each.", "")
    yield from markdown_table(["made against", *records.names], cells)
    yield from ("", f"- {conditions(records.conditions)}", *(f"- {each}" for each in transfer_doubts(records)))
    yield from (
        "",
        "![transfer](transfer.svg)",
        "",
        "How alike they answer, attacked by images made against the second:",
    )
    kinds = [f"{what}, {kind}" for kind in ("clean", "attacked") for what in ("agreement", "KL", "rank correlation")]
    rows = [
        [first, second, *_likeness_cells(clean), *_likeness_cells(attacked)]
        for first, second, clean, attacked in alike(records)
    ]
    yield from ("", *markdown_table(["first", "second", *kinds], rows), "")


def _likeness_cells(found: Similarity) -> list[str]:
    return [f"{found.agreement:.3f}", f"{found.kl:.3f}", f"{found.correlation.rho:.3f}"]
