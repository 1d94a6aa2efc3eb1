"""One figure of the guideline studies: robust accuracy over what was swept, for AKD, ARD and RSLAD.

    python benchmarks/studies/guidelines_figure.py benchmarks/results/studies-digits-DATE docs/guidelines-digits.svg

Reads the *-runs.csv that `robustill study` leaves, as far as they are there; the last epoch of the students, mean over
seeds, bars of one standard deviation; the band is PGD-AT.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustill.report.plots import MUTED, SERIES, draw, render_file

PANELS = {
    "teacher-age": "teacher's epoch",
    "teacher-eps": "teacher's ε / student's ε",
    "ensemble-seeds": "number of teachers (seeds)",
    "ensemble-ages": "number of teachers (ages of one)",
    "alpha": "share of the teacher in the target",
}
METHODS = {"akd": ("AKD", "-", "o"), "ard": ("ARD", (0, (5, 2)), "s"), "rslad": ("RSLAD", (0, (1, 1.4)), "^")}


def robust(file: Path) -> tuple[Mapping[float, list[float]], list[float]]:
    """By what was swept, one value a seed; and those of the baseline."""
    swept: dict[float, list[float]] = defaultdict(list)
    baseline = []
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if row["checkpoint"] == "last" and row["row"] == "at":
                baseline.append(float(row["robust_accuracy"]))
            elif row["checkpoint"] == "last" and row["value"]:
                swept[float(row["value"])].append(float(row["robust_accuracy"]))
    return swept, baseline


def panel(axes: Axes, folder: Path, study: str) -> None:
    for number, (method, (label, line, marker)) in enumerate(METHODS.items()):
        file = folder / f"{study}-{method}-runs.csv"
        if not file.is_file():
            continue
        swept, baseline = robust(file)
        values = sorted(swept)
        # Side by side, so that bars do not hide each other.
        shift = (number - 1) * 0.008 * (values[-1] - values[0])
        axes.errorbar(
            [value + shift for value in values],
            [float(np.mean(swept[value])) for value in values],
            [float(np.std(swept[value], ddof=1)) if len(swept[value]) > 1 else 0.0 for value in values],
            label=label, color=SERIES[number], linestyle=line, marker=marker, markersize=4, linewidth=1.4, capsize=2,
        )  # fmt: skip
        mean, spread = float(np.mean(baseline)), float(np.std(baseline, ddof=1))
        if number == 0:
            axes.axhspan(mean - spread, mean + spread, color=MUTED, alpha=0.15, linewidth=0, label="PGD-AT")
    axes.set_xlabel(PANELS[study])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, help="folder of *-runs.csv")
    parser.add_argument("out", type=Path, help="an .svg")
    arguments = parser.parse_args()
    there = [study for study in PANELS if any(arguments.studies.glob(f"{study}-*-runs.csv"))]

    def paint(figure: Figure) -> None:
        grid = list(figure.subplots(2, 3, sharey=True).flat)
        for axes, study in zip(grid, there, strict=False):
            panel(axes, arguments.studies, study)
        for axes in grid[len(there) :]:
            axes.set_axis_off()
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower right", frameon=False, bbox_to_anchor=(0.97, 0.12))
        figure.supylabel("robust accuracy, last epoch", fontsize=9)

    arguments.out.write_bytes(render_file(draw(paint, width=9.0, height=5.2), "svg"))


if __name__ == "__main__":
    main()
