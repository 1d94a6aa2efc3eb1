"""Every panel of training and evaluation: what is drawn, said and tabulated, once for the page and for a paper."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from robustill.analysis.calibration import reliability
from robustill.analysis.runs import FinishedRun
from robustill.core import formatting
from robustill.report import plots as figures

_MOST_CLASSES = 30
"""More than these would not be told apart in one panel."""

Row = dict[str, Any]
"""One line of a figure's data by column; every line of a figure has the same columns."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure, on the page and in a paper."""

    name: str
    """unique on the page, safe in a file name"""
    paint: figures.Draw
    rows: Callable[[], Iterable[Row]]
    """the data behind it, at least one line"""
    description: str
    """for who cannot see it"""
    title: str = ""
    run: str = ""
    """whose it is, if it is one run's alone"""
    height: float = 2.75
    """in inches"""

    @property
    def file(self) -> str:
        """The name of its files, without a suffix: a run's name ends it as far as file names allow."""
        run = re.sub(r"[^A-Za-z0-9._]+", "-", self.run)[-60:].strip("-.")
        return f"{self.name}-{run}" if run else self.name

    def svg(self) -> str:
        """An element of the page."""
        return figures.inline_svg(figures.draw(self.paint, height=self.height), self.name, self.description)


Panels = list[Panel]


def panels(runs: Sequence[FinishedRun]) -> dict[str, Panels]:
    """Rows of panels by their place on the page; a place without data has none."""
    trained = [(number, run) for number, run in enumerate(runs) if run.metrics]
    evaluated = [(number, run) for number, run in enumerate(runs) if run.main is not None]
    return {
        "eps": list(_eps(runs)),
        "training": [_training(run, number) for number, run in trained],
        "together": list(_together(runs)) if trained else [],
        "reliability": [_reliability(run, number, kind) for number, run in evaluated for kind in _KINDS],
        "classes": list(_classes(runs)) if evaluated else [],
    }


_KINDS = ("clean", "adversarial")
_TRAINING = {
    "train_adversarial_accuracy": "training_adversarial_accuracy",
    "validation_clean_accuracy": "held_out_clean_accuracy",
    "validation_robust_accuracy": "held_out_robust_accuracy",
}


def _training(run: FinishedRun, number: int) -> Panel:
    best: dict[str, Any] = next((line for line in run.metrics if line["epoch"] == run.best), {})
    value = best.get("validation_robust_accuracy")
    chosen = f"; best is epoch {run.best} with {formatting.percent(value)} robust accuracy held out" if value else ""

    def rows() -> Iterator[Row]:
        for line in run.metrics:
            values = {column: line.get(key) for key, column in _TRAINING.items()}
            yield {"epoch": line["epoch"], **values, "best": line["epoch"] == run.best}

    return Panel(
        name=f"training-{number}",
        paint=figures.training_accuracy(run, number),
        rows=rows,
        description=f"Accuracy of {run.name} over {run.metrics[-1]['epoch']} epochs{chosen}.",
        title=run.name,
        run=run.name,
    )


def _together(runs: Sequence[FinishedRun]) -> Iterator[Panel]:
    if len(runs) > 1 and any("validation_robust_accuracy" in line for run in runs for line in run.metrics):
        yield Panel(
            name="held-out",
            paint=figures.held_out_robustness(runs),
            rows=lambda: _over_epochs(runs, "validation_robust_accuracy", "robust_accuracy"),
            description="Robust accuracy on held-out images over the epochs, all runs in one panel.",
            title="Robust accuracy, held out",
        )
    if any("train_loss" in line for run in runs for line in run.metrics):
        yield Panel(
            name="loss",
            paint=figures.training_loss(runs),
            rows=lambda: _over_epochs(runs, "train_loss", "loss"),
            description="Training loss over the epochs, all runs in one panel.",
            title="Training loss",
        )


def _over_epochs(runs: Sequence[FinishedRun], key: str, column: str) -> Iterator[Row]:
    for run in runs:
        for epoch, value in zip(*run.series(key), strict=True):
            yield {"run": run.name, "epoch": epoch, column: value, "best": epoch == run.best}


def _eps(runs: Sequence[FinishedRun]) -> Iterator[Panel]:
    shown = [(run, run.main) for run in runs if run.main is not None and len(run.main.records.eps_grid)]
    norms = list(dict.fromkeys(evaluation.norm for _, evaluation in shown))
    for number, norm in enumerate(norms):
        told = []
        for run, evaluation in shown:
            curve = ", ".join(
                f"{formatting.percent(row['robust_accuracy'])} at {row['eps']:.3g}"
                for row in evaluation.results["robust_at_eps"]
            )
            told += [f"{run.name}: {curve}"] if evaluation.norm == norm else []
        yield Panel(
            name=f"eps-{number}",
            paint=figures.robust_against_eps(runs, norm),
            rows=lambda norm=norm: _eps_rows(runs, norm),  # type: ignore[misc]
            description="; ".join(told),
            title=norm if len(norms) > 1 else "",
            height=3.0,
        )


def _eps_rows(runs: Sequence[FinishedRun], norm: str) -> Iterator[Row]:
    for run in runs:
        curve = figures.eps_curve(run, norm)
        for eps, value, low, high in [] if curve is None else zip(*curve, strict=True):
            assert run.main is not None
            images = len(run.main.records)
            yield {
                "run": run.name,
                "norm": norm,
                "eps": eps,
                "robust_accuracy": value,
                "low": low,
                "high": high,
                "num_images": images,
            }


def _reliability(run: FinishedRun, number: int, kind: str) -> Panel:
    assert run.main is not None
    records, results = run.main.records, run.main.results
    probabilities = getattr(records, f"{kind}_probabilities")

    def rows() -> Iterator[Row]:
        found = reliability(probabilities, records.label)
        for k, images in enumerate(found.count):
            yield {
                "low": found.edges[k],
                "high": found.edges[k + 1],
                "num_images": images,
                "mean_confidence": found.mean_confidence[k] if images else None,
                "accuracy": found.accuracy[k] if images else None,
            }

    return Panel(
        name=f"reliability-{kind}-{number}",
        paint=figures.reliability_diagram(probabilities, records.label, number),
        rows=rows,
        description=f"Reliability of {run.name} on {kind} images: ECE {results[f'ece_{kind}']:.3f}, "
        f"mean confidence {formatting.percent(results[f'mean_confidence_{kind}'])}.",
        title=f"{run.name}, {kind} images",
        run=run.name,
        height=3.2,
    )


def _classes(runs: Sequence[FinishedRun]) -> Iterator[Panel]:
    found = [(run, run.main.records) for run in runs if run.main is not None]
    first = found[0][1].classes
    if len(first) > _MOST_CLASSES or any(records.classes != first for _, records in found):
        return

    def rows() -> Iterator[Row]:
        for run, records in found:
            for k, share in enumerate(figures.robust_by_class(records)):
                images = int((records.label == k).sum())
                yield {"run": run.name, "class": first[k], "robust_accuracy": share, "num_images": images}

    yield Panel(
        name="classes",
        paint=figures.class_robustness(runs),
        rows=rows,
        description="Robust accuracy by class, all runs in one panel.",
        height=1.1 + 0.2 * len(first),
    )
