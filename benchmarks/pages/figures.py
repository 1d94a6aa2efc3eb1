"""The figures of docs/results: narrow, so that their text can be read on a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import teacher_ranking
from paired import RESULTS, Arm, Tested, over_seeds, swept, values
from questions import (
    CIFAR,
    CIFAR_AGAIN,
    DIGITS_PGD,
    DYNAMICS,
    FASHION,
    FASHION_PGD,
    FASHION_WIDTH,
    FIVE_SEEDS,
    METHODS,
    METHODS_FILE,
    PUBLIC,
    SEARCH,
    STEPS,
    results,
)
from tables import median_round, read_json

from robustill.report.plots import INK, MUTED, PAPER, SERIES, draw, render_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.6
BEHIND_TEXT = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}
Mark = tuple[str, str, str, Literal["full", "none"]]
"""A name, a marker, its colour and how it is filled."""
CHECKPOINTS: dict[str, Mark] = {
    "best": ("best epoch", "o", SERIES[0], "full"),
    "last": ("last epoch", "s", SERIES[1], "none"),
}
STUDENTS = {"akd": ("AKD", "-", "o"), "ard": ("ARD", (0, (5, 2)), "s"), "rslad": ("RSLAD", (0, (1, 1.4)), "^")}
SWEEPS = {
    "teacher-age": "teacher's epoch",
    "teacher-eps": "teacher's ε / student's ε",
    "ensemble-seeds": "teachers of different seeds",
    "ensemble-ages": "ages of one teacher",
    "alpha": "share of the teacher in the target",
}


def forest(figure: Figure, rows: Sequence[tuple[str, Tested]], unit: str) -> None:
    """Draw differences with their 95 % intervals over seeds; filled black where Holm's correction leaves them."""
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=0.8)
    for number, (label, tested) in enumerate(rows):
        axes.text(0, number - 0.34, label, transform=axes.get_yaxis_transform(), bbox=BEHIND_TEXT, va="center")
        for shift, (checkpoint, (_, marker, colour, fill)) in zip((0.02, 0.3), CHECKPOINTS.items(), strict=True):
            each = tested.differences.get(checkpoint)
            if each is None:
                continue
            survives = tested.survives(checkpoint)
            axes.plot([100 * each.low, 100 * each.high], [number + shift] * 2, "-|", color=INK if survives else colour)
            axes.plot(
                [100 * each.mean], [number + shift], marker=marker, markersize=6 if survives else 5, fillstyle=fill,
                color=INK if survives else colour,
            )  # fmt: skip
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(unit)
    checkpoint_legend(figure, black=True)


def checkpoint_legend(figure: Figure, *, black: bool = False) -> None:
    """Name the marks of the checkpoints, and the black one."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker=marker, color=colour, fillstyle=fill, linestyle="none", label=name)
        for name, marker, colour, fill in CHECKPOINTS.values()
    ]
    if black:
        handles.append(Line2D([], [], marker="o", color=INK, linestyle="none", label="survives Holm"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=8, handlelength=1, columnspacing=1)


def family_forest(figure: Figure, family: str, unit: str) -> None:
    """Draw the comparisons of one table."""
    forest(figure, [(f"{each.comparison.label}: {each.comparison.data}", each) for each in results(family)], unit)


def methods_forest(figure: Figure) -> None:
    """Draw every method beside PGD-AT, best last epoch on top; the methods that are not robust are left out."""
    rows = []
    for each in results("methods"):
        label = each.comparison.label
        if label not in ("clean", "kd", "mtard"):
            rows.append((METHODS[label][0] + (", averaged" if label.endswith("*") else ""), each))
    rows.sort(key=lambda row: -row[1].differences["last"].mean)
    forest(figure, rows, "robust accuracy minus that of PGD-AT, points")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Students that share an axis: a title, and arms by name."""

    title: str
    arms: Mapping[str, Arm]
    checkpoints: tuple[str, ...] = ("best", "last")


def dots(figure: Figure, groups: Sequence[Group], column: str, label: str) -> None:
    """Draw every seed as a small mark and the mean over seeds as a line, one row a student."""
    grid = figure.subplots(
        len(groups), 1, sharex=True, squeeze=False, height_ratios=[len(group.arms) for group in groups]
    )[:, 0]
    for axes, group in zip(grid, groups, strict=True):
        for number, arm in enumerate(group.arms.values()):
            for shift, checkpoint in zip((-0.14, 0.14), group.checkpoints, strict=False):
                _, marker, colour, fill = CHECKPOINTS[checkpoint]
                seeds = 100 * np.array(list(values(arm, checkpoint, column).values()))
                axes.plot(
                    seeds, np.full(len(seeds), number + shift), marker=marker, color=colour, fillstyle=fill,
                    linestyle="none", markersize=4,
                )  # fmt: skip
                axes.plot([seeds.mean()] * 2, [number + shift - 0.13, number + shift + 0.13], color=colour, linewidth=2)
        axes.set_yticks(range(len(group.arms)), list(group.arms), fontsize=8)
        axes.set_ylim(len(group.arms) - 0.5, -0.5)
        axes.set_title(group.title, fontsize=8.5, loc="left")
    grid[-1].set_xlabel(label)
    if any(len(group.checkpoints) > 1 for group in groups):
        checkpoint_legend(figure)


def sweep(axes: Axes, files: Mapping[str, str], checkpoint: str = "last") -> None:
    """Draw robust accuracy over what was swept, mean over seeds, bars of one standard deviation; the band is PGD-AT."""
    for number, (method, (name, line, marker)) in enumerate(STUDENTS.items()):
        if method not in files or not (RESULTS / files[method]).is_file():
            continue
        found = swept(files[method], checkpoint)
        places = sorted(found)
        # Side by side, so that bars do not hide each other.
        shift = (number - 1) * 0.012 * (places[-1] - places[0])
        means, spreads = zip(*(over_seeds(found[place]) for place in places), strict=True)
        axes.errorbar(
            [place + shift for place in places], means, [0 if math.isnan(each) else each for each in spreads],
            label=name, color=SERIES[number], linestyle=line, marker=marker, markersize=4, linewidth=1.4, capsize=2,
        )  # fmt: skip
    if len(places) < 8:
        axes.set_xticks(places)
    mean, spread = over_seeds(values(Arm(files["akd"], "at"), checkpoint, "robust_accuracy"))
    axes.axhspan(mean - spread, mean + spread, color=MUTED, alpha=0.15, linewidth=0, label="PGD-AT")


Panel = tuple[str, str, Mapping[str, str]]
"""A title, the label of the axis, and files by method."""


def sweeps(figure: Figure, panels: Sequence[Panel], columns: int = 1) -> None:
    """Draw one panel for everything that was swept."""
    grid = list(figure.subplots(math.ceil(len(panels) / columns), columns, squeeze=False).flat)
    for axes, (title, label, files) in zip(grid, panels, strict=False):
        sweep(axes, files)
        axes.set_title(title, fontsize=8.5, loc="left")
        axes.set_xlabel(label)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.supylabel("robust accuracy, last epoch", fontsize=8.5, color=MUTED)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=8)


def study(folder: str, name: str) -> dict[str, str]:
    """Return the files of a study by method."""
    return {method: folder.format(name, method) for method in STUDENTS}


def every_sweep(folder: str) -> list[Panel]:
    """Return a panel for each study of a folder."""
    return [("", label, study(folder, name)) for name, label in SWEEPS.items()]


def difficulty(figure: Figure) -> None:
    """Draw the share of training images that are right under attack at the end, by their difficulty for PGD-AT."""
    grid = figure.subplots(len(DYNAMICS), 1, sharex=True)
    kinds = {
        "easy": "right at the end, easy for the baseline",
        "ambiguous": "right at the end, ambiguous for the baseline",
        "hard": "right at the end, hard for the baseline",
        "unlearnable": "right at the end, unlearnable for the baseline",
        "wrong label,\nas labelled": "wrong labels: predicted at the end",
    }
    for axes, (data, file) in zip(grid, DYNAMICS.items(), strict=True):
        there = {name: column for name, column in kinds.items() if values(Arm(file, "AKD"), "last", column)}
        for number, (row, name) in enumerate((("PGD-AT", "PGD-AT"), ("AKD", "AKD, one weak early-stopped teacher"))):
            means, spreads = zip(
                *(over_seeds(values(Arm(file, row), "last", column)) for column in there.values()), strict=True
            )
            axes.barh(
                np.arange(len(there)) + 0.4 * number - 0.2, 100 * np.array(means), 0.38, xerr=100 * np.array(spreads),
                color=SERIES[number], label=name, error_kw={"elinewidth": 1, "capsize": 2},
            )  # fmt: skip
        axes.set_yticks(range(len(there)), list(there), fontsize=8)
        axes.invert_yaxis()
        axes.set_title(data, fontsize=8.5, loc="left")
    grid[-1].set_xlabel("right under attack at the end of training, %")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=8)


def steps(figure: Figure) -> None:
    """Draw robust accuracy over the steps of the training attack."""
    grid = figure.subplots(2, 1)
    for axes, (title, file) in zip(grid, STEPS.items(), strict=True):
        found = {1: "1 step", 2: "2 steps", 3: "3 steps", 5: "5 steps", 7: "7 steps", 10: "at"}
        for checkpoint, (_, marker, colour, fill) in CHECKPOINTS.items():
            seeds = (values(Arm(file, row), checkpoint, "robust_accuracy") for row in found.values())
            means, spreads = zip(*map(over_seeds, seeds), strict=True)
            axes.errorbar(list(found), means, spreads, color=colour, marker=marker, fillstyle=fill, capsize=2)
        axes.set_title(title.replace(")", " images)"), fontsize=8.5, loc="left")
        axes.set_ylabel("robust accuracy")
    grid[-1].set_xlabel("steps of PGD in training")
    checkpoint_legend(figure)


def sizes(figure: Figure) -> None:
    """Draw robust accuracy over the width of the student."""
    axes = figure.subplots()
    arms = (
        ("PGD-AT", "akd", "at, width {}", "-"),
        ("AKD, teacher of the full radius", "akd", "akd, width {}", (0, (5, 2))),
        ("AKD, teacher of three quarters of it", "akd-weak-teacher", "akd, width {}", (0, (1, 1.4))),
    )
    for number, (name, file, row, line) in enumerate(arms):
        means, spreads = zip(
            *(
                over_seeds(values(Arm(FASHION_WIDTH.format(file), row.format(width)), "last", "robust_accuracy"))
                for width in (4, 8, 16)
            ),
            strict=True,
        )
        axes.errorbar(
            [40.9, 81.7, 166.4], means, spreads, label=name, color=SERIES[number], linestyle=line, marker="o", capsize=2
        )
    axes.set_xscale("log")
    axes.set_xticks([40.9, 81.7, 166.4], ["41", "82", "166"])
    axes.minorticks_off()
    axes.set_ylim(0, 0.8)
    axes.set_xlabel("thousands of weights (CNN-A of width 4, 8 and 16)")
    axes.set_ylabel("robust accuracy, last epoch")
    figure.legend(loc="outside upper left", fontsize=8)


def speed(figure: Figure) -> None:
    """Draw how many times sooner something is done."""
    steps = {
        (row["model"], row["method"]): row["bf16_is_faster_by"]
        for row in read_json("training-step-zen5-two-threads-2026-11-29.json")["rows"]
    }
    autoattack = {}
    for name in ("resnet8", "resnet18"):
        median = median_round(f"autoattack-{name}-2026-11-23.json", "linf:8/255", "exact")
        autoattack[name] = median["ratio_to_authors"]["exact"]["all"]
    less = read_json("cheap-cifar10-resnet8-2026-11-23.json")["rows"]["ours, PGD-3, bf16"]["is_faster_by"]
    bars = {
        "training step, RSLAD, ResNet-8, bf16": steps["resnet8", "rslad"],
        "training step, RSLAD, ResNet-18, bf16": steps["resnet18", "rslad"],
        "training step, PGD-AT, ResNet-8, bf16": steps["resnet8", "at"],
        "training step, PGD-AT, ResNet-18, bf16": steps["resnet18", "at"],
        "whole training, as robust, ResNet-8, 3 steps, bf16": less,
        "AutoAttack, exact, ResNet-8": autoattack["resnet8"],
        "AutoAttack, exact, ResNet-18, short": autoattack["resnet18"],
    }
    axes = figure.subplots()
    axes.barh(range(len(bars)), list(bars.values()), 0.4, color=SERIES[0])
    for number, (name, ratio) in enumerate(bars.items()):
        axes.text(0.05, number - 0.38, f"{name}: {ratio:.2f}×", bbox=BEHIND_TEXT, va="center")
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_yticks([])
    axes.set_ylim(len(bars) - 0.6, -0.7)
    axes.set_xlabel("times as fast as the plain loop, or as the authors' AutoAttack")


IN_PERCENT = "robust accuracy, %"
FIVE = Group(
    title="digits, 250 images, PGD, 5 seeds",
    arms={
        "PGD-AT": Arm(FIVE_SEEDS, "at"),
        "PGD-AT + EMA": Arm(FIVE_SEEDS, "at-ema"),
        "AKD, 3 teachers": Arm(FIVE_SEEDS, "akd"),
    },
)
PARTS = [
    Group(
        title=title,
        arms={
            "PGD-AT": Arm(file.format("akd"), "at"),
            "AKD, 1 teacher": Arm(file.format("akd"), "akd, one weak teacher"),
            "AKD, 3 teachers": Arm(file.format("akd"), "akd, three of them"),
        },
    )
    for title, file in (
        ("CIFAR-10, 5,000 images, AutoAttack, 3 seeds", CIFAR),
        ("Fashion-MNIST, 500 images, AutoAttack, 3 seeds", FASHION),
    )
]
SEARCHED = Group(
    title="CIFAR-10, 5,000 images, AutoAttack, 3 seeds",
    arms={
        "PGD-AT, flips": Arm(SEARCH, "the recipe"),
        "PGD-AT, crops, EMA": Arm(SEARCH, "PGD-AT with what was found"),
        "AKD, crops, EMA": Arm(SEARCH, "what was found"),
    },
)
ALL_FILE = CIFAR_AGAIN.format("all-images-1000-test-images")
ALL = [
    Group(
        title="5,000 images, 40 epochs; 300 test images",
        arms={
            "PGD-AT": Arm(METHODS_FILE, "at"),
            "TRADES": Arm(METHODS_FILE, "trades"),
            "AKD, weak teacher": Arm(METHODS_FILE, "akd"),
            "RSLAD, weak teacher": Arm(METHODS_FILE, "rslad"),
        },
        checkpoints=("best",),
    ),
    Group(
        title="47,000 images, 10 epochs; 1,000 test images",
        arms={
            "PGD-AT": Arm(ALL_FILE, "at"),
            "TRADES": Arm(ALL_FILE, "trades"),
            "AKD, full-radius teacher": Arm(ALL_FILE, "akd-teacher-eps-1"),
            "RSLAD, full-radius teacher": Arm(ALL_FILE, "rslad-teacher-eps-1"),
        },
        checkpoints=("best",),
    ),
]
TEACHERS_FROM_OUTSIDE = Group(
    title="CIFAR-10, 5,000 images, AutoAttack, 3 seeds",
    arms={
        "PGD-AT": Arm(CIFAR.format("akd"), "at"),
        "own weak teacher": Arm(CIFAR.format("akd"), "akd, one weak teacher"),
        "own, full radius": Arm(CIFAR.format("akd"), "akd, one of full radius"),
        "certified CNN-A": Arm(PUBLIC, "akd-wide"),
        "ResNet-2B2, mixup": Arm(PUBLIC, "akd-sadv"),
    },
)
AGE = [
    ("Fashion-MNIST, 500 images, PGD-20", SWEEPS["teacher-age"], study(FASHION_PGD, "teacher-age")),
    ("digits, 250 images, PGD", SWEEPS["teacher-age"], study(DIGITS_PGD, "teacher-age")),
]
RADIUS = [
    ("Fashion-MNIST, 500 images, PGD-20", SWEEPS["teacher-eps"], study(FASHION_PGD, "teacher-eps")),
    ("digits, 250 images, PGD", SWEEPS["teacher-eps"], study(DIGITS_PGD, "teacher-eps")),
]
NUMBER = [
    (
        "CIFAR-10, 5,000 images, AutoAttack",
        SWEEPS["ensemble-seeds"],
        {"akd": CIFAR_AGAIN.format("ensemble-seeds-akd-runs")},
    ),
    ("Fashion-MNIST, 500 images, PGD-20", SWEEPS["ensemble-seeds"], study(FASHION_PGD, "ensemble-seeds")),
    ("digits, 250 images, PGD", SWEEPS["ensemble-seeds"], study(DIGITS_PGD, "ensemble-seeds")),
]

FIGURES: dict[str, tuple[Callable[[Figure], None], float]] = {
    "akd-over-pgd-at": (partial(dots, groups=[FIVE, *PARTS], column="robust_accuracy", label=IN_PERCENT), 4.6),
    "early-stopping": (partial(sweeps, panels=AGE), 4.6),
    "ensembles": (partial(sweeps, panels=NUMBER), 6.2),
    "weak-teachers": (partial(sweeps, panels=RADIUS), 4.6),
    "calibration": (
        partial(family_forest, family="calibration", unit="ECE under attack minus that of PGD-AT, points"),
        3.6,
    ),
    "carried-over": (
        partial(family_forest, family="carried-over", unit="difference of robust accuracy, points"),
        8.2,
    ),
    "hard-samples": (difficulty, 5.6),
    "methods": (methods_forest, 7.6),
    "all-images": (partial(dots, groups=ALL, column="robust_accuracy", label=IN_PERCENT), 3.4),
    "attack-steps": (steps, 4.6),
    "recipe": (partial(dots, groups=[SEARCHED], column="robust_accuracy", label=IN_PERCENT), 2.2),
    "public-teachers": (partial(dots, groups=[TEACHERS_FROM_OUTSIDE], column="robust_accuracy", label=IN_PERCENT), 2.9),
    "sizes": (sizes, 3.2),
    "performance": (speed, 4.0),
    "teacher-ranking": (teacher_ranking.scatter, 3.0),
    "guidelines-digits": (partial(sweeps, panels=every_sweep(DIGITS_PGD), columns=2), 6.6),
    "guidelines-fashion-mnist": (partial(sweeps, panels=every_sweep(FASHION_PGD), columns=2), 6.6),
}
"""The figures by their file's name: how they are drawn, and their height in inches."""


def svg(name: str) -> bytes:
    """Return a figure as a file."""
    paint, height = FIGURES[name]
    return render_file(draw(paint, width=WIDTH, height=height), "svg")
