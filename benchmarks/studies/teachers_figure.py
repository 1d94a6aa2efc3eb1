"""What matters in a teacher, on several data sets: one picture of several `robustill study guidelines`.

    python benchmarks/studies/teachers_figure.py docs/teachers.svg \
        "CIFAR-10; 5,000 images|benchmarks/results/studies-cifar10-DATE/guidelines-akd-runs.csv" ...

Reads what each study leaves; a title goes on in a second line after "; ". Robust accuracy of the students' best and
last epochs, mean over seeds, bars of one standard deviation.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from robustill.report.plots import SERIES, draw, render_file

NAMES = {"at": "PGD-AT", "trades": "TRADES"}
CHECKPOINTS = {"best": ("o", SERIES[0], "full"), "last": ("s", SERIES[1], "none")}


def robust(file: Path) -> dict[str, dict[str, list[float]]]:
    """By row and checkpoint, one value a seed."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            found[row["row"]][row["checkpoint"]].append(float(row["robust_accuracy"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="an .svg")
    parser.add_argument("studies", nargs="+", metavar="TITLE|FILE", help="guidelines-METHOD-runs.csv, the first on top")
    arguments = parser.parse_args()
    studies = {title: robust(Path(file)) for title, _, file in (each.partition("|") for each in arguments.studies)}
    rows = list(next(iter(studies.values())))

    def paint(figure: Figure) -> None:
        grid = figure.subplots(1, len(studies), sharey=True, squeeze=False)[0]
        for axes, (title, found) in zip(grid, studies.items(), strict=True):
            for shift, (checkpoint, (marker, colour, fill)) in zip((-0.13, 0.13), CHECKPOINTS.items(), strict=True):
                values = [found[row][checkpoint] for row in rows]
                axes.errorbar(
                    [100 * float(np.mean(each)) for each in values],
                    [number + shift for number in range(len(rows))],
                    xerr=[100 * float(np.std(each, ddof=1)) for each in values],
                    linestyle="none", marker=marker, markersize=5, color=colour, fillstyle=fill, capsize=2,
                    elinewidth=1.1, label=f"{checkpoint} epoch",
                )  # fmt: skip
            # What PGD-AT reaches, to read the others against.
            axes.axvline(
                100 * float(np.mean(found[rows[0]]["best"])), color=SERIES[0], linewidth=0.7, linestyle=(0, (2, 2))
            )
            axes.set_title(title.replace("; ", "\n"), fontsize=9)
            axes.set_xlabel("robust accuracy, %", fontsize=8)
            axes.grid(axis="x", linewidth=0.4, alpha=0.5)
        grid[0].set_yticks(range(len(rows)), [NAMES.get(row, row.replace("akd", "AKD")) for row in rows], fontsize=9)
        grid[0].invert_yaxis()
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=8)

    arguments.out.write_bytes(render_file(draw(paint, width=9.0, height=3.3), "svg"))


if __name__ == "__main__":
    main()
