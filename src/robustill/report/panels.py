"""Panels of training and evaluation: each defines its plot, description and data for the page and for figure files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from robustill.analysis.arms import Arm
from robustill.analysis.calibration import reliability
from robustill.analysis.evaluations import Evaluation
from robustill.analysis.runs import FinishedRun
from robustill.core import formatting
from robustill.report import curves, plots
from robustill.report.curves import Numbered
from robustill.runs.records import FIXED_ATTACK, attacked_kind

_MAX_CLASSES = 30
"""Maximum number of classes that remain legible in one panel."""

Row = dict[str, Any]
"""One row of a figure's data by column; all rows of a figure have the same columns."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure, for the page and for files."""

    name: str
    """unique on the page, safe in a file name"""
    paint: plots.Draw
    rows: Callable[[], Iterable[Row]]
    """returns the data behind the figure, at least one row"""
    description: str
    """text for readers who cannot see the figure"""
    title: str = ""
    run: str = ""
    """name of the run, if the figure shows one run alone"""
    height: float = 2.75
    """in inches"""

    @property
    def file(self) -> str:
        """The name of its files without a suffix; it ends with the run's name as far as file names allow."""
        run = re.sub(r"[^A-Za-z0-9._]+", "-", self.run)[-60:].strip("-.")
        return f"{self.name}-{run}" if run else self.name

    def svg(self) -> str:
        """Return the figure as an SVG element of the page."""
        return plots.render_inline_svg(plots.draw(self.paint, height=self.height), self.name, self.description)


Panels = list[Panel]


def run_panels(arms: Sequence[Arm], runs: Sequence[FinishedRun]) -> dict[str, Panels]:
    """Return the panels by their section of the page; a section without data has no panels.

    Args:
        arms: all arms of the page; those after the first six are grey in figures that hold several.
        runs: the runs that have figures of their own, by their number on the page: one run of each of the first arms.
    """
    limits = curves.training_limits(runs)
    attacked = attacked_kind(run.main.results for run in runs if run.main is not None)
    return {
        "eps": list(_eps_panels(arms)),
        "training": [_training_panel(run, number, limits) for number, run in enumerate(runs) if run.metrics],
        "together": list(_joint_panels(arms)),
        "reliability": [
            _reliability_panel(run, run.main, number, kind)
            for number, run in enumerate(runs)
            if run.main is not None
            for kind in ("clean", attacked)
        ],
        "classes": list(_class_panels(arms)),
    }


_TRAINING_COLUMNS = {
    "train_adversarial_accuracy": "training_adversarial_accuracy",
    "validation_clean_accuracy": "validation_clean_accuracy",
    "validation_robust_accuracy": "validation_robust_accuracy",
}


def _training_panel(run: FinishedRun, number: int, limits: tuple[float, float] | None) -> Panel:
    value = curves.best_validation_accuracy(run)
    best = ""
    if value:
        best = f"; the best is epoch {run.best_epoch} with a validation robust accuracy of {formatting.percent(value)}"
    keys = {run.validation_key(key): column for key, column in _TRAINING_COLUMNS.items()}

    def rows() -> Iterator[Row]:
        for line in run.metrics:
            values = {column: line.get(key) for key, column in keys.items()}
            yield {"epoch": line["epoch"], **values, "best": line["epoch"] == run.best_epoch}

    return Panel(
        name=f"training-{number}",
        paint=curves.draw_training_accuracy(run, number, limits),
        rows=rows,
        description=f"Accuracy of {run.name} over {run.metrics[-1]['epoch']} epochs{best}.",
        title=run.name,
        run=run.name,
        height=2.9,
    )


def _joint_panels(arms: Sequence[Arm]) -> Iterator[Panel]:
    """Yield the validation accuracy of all arms, if there are several, and their training loss."""
    metrics = (
        ("validation", "validation_robust_accuracy", "robust_accuracy", "Validation robust accuracy"),
        ("loss", "train_loss", "loss", "Training loss"),
    )
    for name, key, column, title in metrics:
        shown = [arm for arm in arms if curves.mean_series(arm, key)[0]]
        is_loss = name == "loss"
        if not shown or (len(arms) == 1 and len(arms[0].runs) == 1 and not is_loss):
            continue
        seeds = max(len(arm.runs) for arm in shown)
        mean = "" if seeds == 1 else f", mean of up to {seeds} seeds"
        yield Panel(
            name=name,
            paint=curves.draw_over_epochs(arms, key, title.lower(), is_share=not is_loss),
            rows=lambda key=key, column=column: _epoch_rows(arms, key, column),  # type: ignore[misc]
            description=f"{title} over the epochs{mean}, {len(shown)} in one panel.",
            title=title,
            height=2.5 + plots.legend_height([arm.name for arm in shown]),
        )


def _epoch_rows(arms: Sequence[Arm], key: str, column: str) -> Iterator[Row]:
    for arm in arms:
        best = arm.runs[0].best_epoch if len(arm.runs) == 1 else None
        for epoch, mean, std in zip(*curves.mean_series(arm, key), strict=True):
            yield {"run": arm.name, "epoch": epoch, column: mean, "std": std, "best": epoch == best}


def _comparable_groups(arms: Sequence[Arm]) -> list[tuple[Evaluation, list[Numbered]]]:
    """Return the evaluated arms once for each kind of main evaluation, with one of these evaluations.

    One figure never shows one attack beside another, or other images. Arms keep their number, and with it their colour.
    """
    groups: dict[tuple[Any, ...], tuple[Evaluation, list[Numbered]]] = {}
    for number, arm in enumerate(arms):
        for run in arm.evaluated[:1]:
            assert run.main is not None
            alike = replace(arm, runs=arm.evaluated_as(run.main.kind))
            groups.setdefault(run.main.kind, (run.main, []))[1].append((number, alike))
    return list(groups.values())


def _group_title(groups: Sequence[tuple[Evaluation, list[Numbered]]], evaluation: Evaluation) -> str:
    """Name the evaluation where there are several."""
    return f"{evaluation.attack} on {evaluation.images}, {evaluation.threat}" if len(groups) > 1 else ""


def _eps_panels(arms: Sequence[Arm]) -> Iterator[Panel]:
    groups = _comparable_groups(arms)
    number = 0
    for evaluation, group in groups:
        drawn = [(index, arm) for index, arm in group if curves.eps_curve(arm) is not None]
        if not drawn:
            continue
        descriptions = []
        for _, arm in drawn:
            grid, shares, *_ = curves.eps_curve(arm) or ([], [])
            points = zip(grid, shares, strict=True)
            curve = ", ".join(f"{formatting.percent(share)} at {eps:.3g}" for eps, share in points)
            descriptions.append(f"{arm.name}: {curve}")
        yield Panel(
            name=f"eps-{number}",
            paint=curves.draw_robustness_by_eps(drawn, evaluation.norm),
            rows=lambda drawn=drawn, norm=evaluation.norm: _eps_rows(drawn, norm),  # type: ignore[misc]
            description="; ".join(descriptions),
            title=_group_title(groups, evaluation),
            height=2.7 + plots.legend_height([arm.name for _, arm in drawn]),
        )
        number += 1


def _eps_rows(arms: Sequence[Numbered], norm: str) -> Iterator[Row]:
    for _, arm in arms:
        num_images = len(arm.evaluated[0].main.records) if arm.evaluated[0].main is not None else 0
        for eps, value, low, high in zip(*(curves.eps_curve(arm) or ([], [], [], [])), strict=True):
            row: Row = {"run": arm.name, "norm": norm, "eps": eps, "robust_accuracy": value, "low": low, "high": high}
            yield {**row, "num_images": num_images, "num_seeds": len(arm.evaluated)}


def _reliability_panel(run: FinishedRun, evaluation: Evaluation, number: int, kind: str) -> Panel:
    records, results = evaluation.records, evaluation.results
    probabilities = getattr(records, f"{kind}_probabilities")
    images = f"{FIXED_ATTACK if kind == 'pgd' else kind} images"

    def rows() -> Iterator[Row]:
        diagram = reliability(probabilities, records.label)
        for k, num_images in enumerate(diagram.count):
            yield {
                "low": diagram.edges[k],
                "high": diagram.edges[k + 1],
                "num_images": num_images,
                "mean_confidence": diagram.mean_confidence[k] if num_images else None,
                "accuracy": diagram.accuracy[k] if num_images else None,
            }

    return Panel(
        name=f"reliability-{kind}-{number}",
        paint=curves.draw_reliability(probabilities, records.label, number),
        rows=rows,
        description=f"Reliability of {run.name} on {images}: ECE {results[f'ece_{kind}']:.3f}, "
        f"mean confidence {formatting.percent(results[f'mean_confidence_{kind}'])}.",
        title=f"{run.name}, {images}: ECE {results[f'ece_{kind}']:.3f}",
        run=run.name,
        height=3.2,
    )


def _class_panels(arms: Sequence[Arm]) -> Iterator[Panel]:
    groups = [(evaluation, arms) for evaluation, arms in _comparable_groups(arms) if arms[0][0] < plots.MAX_COLOURED]
    for number, (evaluation, group) in enumerate(groups):
        classes = evaluation.records.classes
        if len(classes) > _MAX_CLASSES or any(_classes(arm) != classes for _, arm in group):
            continue
        names = [arm.name for _, arm in group]
        yield Panel(
            name="classes" if len(groups) == 1 else f"classes-{number}",
            paint=curves.draw_class_robustness(group),
            rows=lambda group=group: _class_rows(group),  # type: ignore[misc]
            description="Robust accuracy by class, all in one panel.",
            title=_group_title(groups, evaluation),
            height=0.9 + 0.2 * len(classes) + plots.legend_height(names),
        )


def _classes(arm: Arm) -> tuple[str, ...]:
    main = arm.evaluated[0].main
    return () if main is None else main.records.classes


def _class_rows(arms: Sequence[Numbered]) -> Iterator[Row]:
    for _, arm in arms:
        main = arm.evaluated[0].main
        assert main is not None
        for k, share in enumerate(curves.robust_by_class(arm)):
            num_images = int((main.records.label == k).sum())
            yield {
                "run": arm.name,
                "class": main.records.classes[k],
                "robust_accuracy": share,
                "num_images": num_images,
            }
