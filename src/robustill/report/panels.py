"""Panels of training and evaluation: each defines its plot, description and data for the page and for figure files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from robustill.analysis.calibration import reliability
from robustill.analysis.runs import FinishedRun
from robustill.core import formatting
from robustill.report import plots

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


def run_panels(runs: Sequence[FinishedRun]) -> dict[str, Panels]:
    """Return the panels of the runs by their section of the page; a section without data has no panels."""
    trained = [(number, run) for number, run in enumerate(runs) if run.metrics]
    evaluated = [(number, run) for number, run in enumerate(runs) if run.main is not None]
    return {
        "eps": list(_eps_panels(runs)),
        "training": [_training_panel(run, number) for number, run in trained],
        "together": list(_joint_panels(runs)) if trained else [],
        "reliability": [_reliability_panel(run, number, kind) for number, run in evaluated for kind in _KINDS],
        "classes": list(_class_panels(runs)) if evaluated else [],
    }


_KINDS = ("clean", "adversarial")
_TRAINING_COLUMNS = {
    "train_adversarial_accuracy": "training_adversarial_accuracy",
    "validation_clean_accuracy": "validation_clean_accuracy",
    "validation_robust_accuracy": "validation_robust_accuracy",
}


def _training_panel(run: FinishedRun, number: int) -> Panel:
    value = plots.best_validation_accuracy(run)
    best = ""
    if value:
        best = f"; the best is epoch {run.best} with a validation robust accuracy of {formatting.percent(value)}"

    def rows() -> Iterator[Row]:
        for line in run.metrics:
            values = {column: line.get(key) for key, column in _TRAINING_COLUMNS.items()}
            yield {"epoch": line["epoch"], **values, "best": line["epoch"] == run.best}

    return Panel(
        name=f"training-{number}",
        paint=plots.draw_training_accuracy(run, number),
        rows=rows,
        description=f"Accuracy of {run.name} over {run.metrics[-1]['epoch']} epochs{best}.",
        title=run.name,
        run=run.name,
    )


def _joint_panels(runs: Sequence[FinishedRun]) -> Iterator[Panel]:
    if len(runs) > 1 and any("validation_robust_accuracy" in line for run in runs for line in run.metrics):
        yield Panel(
            name="validation",
            paint=plots.draw_validation_robustness(runs),
            rows=lambda: _epoch_rows(runs, "validation_robust_accuracy", "robust_accuracy"),
            description="Robust accuracy on validation images over the epochs, all runs in one panel.",
            title="Validation robust accuracy",
        )
    if any("train_loss" in line for run in runs for line in run.metrics):
        yield Panel(
            name="loss",
            paint=plots.draw_training_loss(runs),
            rows=lambda: _epoch_rows(runs, "train_loss", "loss"),
            description="Training loss over the epochs, all runs in one panel.",
            title="Training loss",
        )


def _epoch_rows(runs: Sequence[FinishedRun], key: str, column: str) -> Iterator[Row]:
    for run in runs:
        for epoch, value in zip(*run.series(key), strict=True):
            yield {"run": run.name, "epoch": epoch, column: value, "best": epoch == run.best}


def _comparable_groups(runs: Sequence[FinishedRun]) -> list[tuple[str, list[FinishedRun]]]:
    """Return the runs once for each kind of main evaluation, those of other kinds as if they had not been evaluated.

    One figure never shows one attack beside another, or other images. A group is named by its attack and images where
    there are several. Runs keep their number, and with it their colour.
    """
    mains = [run.main for run in runs if run.main is not None]
    kinds = {main.kind: f"{main.attack} on {main.images}" for main in mains}
    groups = []
    for kind, name in kinds.items():
        shown = [
            run if run.main is not None and run.main.kind == kind else replace(run, evaluations=()) for run in runs
        ]
        groups.append((name if len(kinds) > 1 else "", shown))
    return groups


def _eps_panels(runs: Sequence[FinishedRun]) -> Iterator[Panel]:
    number = 0
    for name, group in _comparable_groups(runs):
        for panel in _eps_panels_of_group(group, name):
            yield replace(panel, name=f"eps-{number}")
            number += 1


def _eps_panels_of_group(runs: Sequence[FinishedRun], name: str) -> Iterator[Panel]:
    evaluated = [(run, run.main) for run in runs if run.main is not None and len(run.main.records.eps_grid)]
    norms = list(dict.fromkeys(evaluation.norm for _, evaluation in evaluated))
    for number, norm in enumerate(norms):
        curves = []
        for run, evaluation in evaluated:
            if evaluation.norm != norm:
                continue
            curve = ", ".join(
                f"{formatting.percent(row['robust_accuracy'])} at {row['eps']:.3g}"
                for row in evaluation.results["robust_at_eps"]
            )
            curves.append(f"{run.name}: {curve}")
        yield Panel(
            name=f"eps-{number}",
            paint=plots.draw_robustness_by_eps(runs, norm),
            rows=lambda norm=norm: _eps_rows(runs, norm),  # type: ignore[misc]
            description="; ".join(curves),
            title=", ".join(part for part in (norm if len(norms) > 1 else "", name) if part),
            height=3.0,
        )


def _eps_rows(runs: Sequence[FinishedRun], norm: str) -> Iterator[Row]:
    for run in runs:
        curve = plots.eps_curve(run, norm)
        if curve is None:
            continue
        assert run.main is not None
        num_images = len(run.main.records)
        for eps, value, low, high in zip(*curve, strict=True):
            yield {
                "run": run.name,
                "norm": norm,
                "eps": eps,
                "robust_accuracy": value,
                "low": low,
                "high": high,
                "num_images": num_images,
            }


def _reliability_panel(run: FinishedRun, number: int, kind: str) -> Panel:
    assert run.main is not None
    records, results = run.main.records, run.main.results
    probabilities = getattr(records, f"{kind}_probabilities")

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
        paint=plots.draw_reliability(probabilities, records.label, number),
        rows=rows,
        description=f"Reliability of {run.name} on {kind} images: ECE {results[f'ece_{kind}']:.3f}, "
        f"mean confidence {formatting.percent(results[f'mean_confidence_{kind}'])}.",
        title=f"{run.name}, {kind} images",
        run=run.name,
        height=3.2,
    )


def _class_panels(runs: Sequence[FinishedRun]) -> Iterator[Panel]:
    groups = _comparable_groups(runs)
    for number, (name, group) in enumerate(groups):
        for panel in _class_panels_of_group(group, name):
            yield panel if len(groups) == 1 else replace(panel, name=f"classes-{number}")


def _class_panels_of_group(runs: Sequence[FinishedRun], name: str) -> Iterator[Panel]:
    evaluated = [(run, run.main.records) for run in runs if run.main is not None]
    classes = evaluated[0][1].classes
    if len(classes) > _MAX_CLASSES or any(records.classes != classes for _, records in evaluated):
        return

    def rows() -> Iterator[Row]:
        for run, records in evaluated:
            for k, share in enumerate(plots.robust_by_class(records)):
                num_images = int((records.label == k).sum())
                yield {"run": run.name, "class": classes[k], "robust_accuracy": share, "num_images": num_images}

    yield Panel(
        name="classes",
        paint=plots.draw_class_robustness(runs),
        rows=rows,
        description="Robust accuracy by class, all runs in one panel.",
        title=name,
        height=1.1 + 0.2 * len(classes),
    )
