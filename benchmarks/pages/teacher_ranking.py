"""What the ranking of teachers predicted, and what their students then did: tables and a figure of one page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from paired import RESULTS

from robustill.analysis.gain_model import (
    GainModel,
    Prediction,
    Ridge,
    choose_penalty,
    fit_gain_model,
    fit_ridge,
    leave_groups_out,
)
from robustill.analysis.statistics import correlation, rank_correlation
from robustill.report.plots import INK, MUTED, SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAIRS = "teacher-pairs-2026-11-30.json"
NAMES = {"digits": "digits (250)", "fashion_mnist": "Fashion-MNIST (1,000)", "cifar10": "CIFAR-10 (1,000)"}
ALPHAS = (0.5, 1.0)


@cache
def pairs() -> dict[str, Any]:
    """Return the table of `benchmarks/studies/teacher_pairs.py`."""
    found: dict[str, Any] = json.loads((RESULTS / PAIRS).read_text(encoding="utf-8"))
    return found


def rows() -> list[tuple[str, Mapping[str, Any]]]:
    """Return the data set and the row of every teacher."""
    return [(dataset, row) for dataset, page in pairs()["datasets"].items() for row in page["teachers"]]


def features() -> Any:
    """Return the features of every teacher, [n,F]."""
    return np.array([row["features"] for _, row in rows()], dtype=np.float64)


def groups() -> list[str]:
    """Return the data set of every teacher."""
    return [dataset for dataset, _ in rows()]


def gains(epoch: str = "best") -> Any:
    """Return what the students of every teacher gained at each α, [n,A]."""
    return np.array([[row["gains"][f"{alpha:g}"][epoch] for alpha in ALPHAS] for _, row in rows()])


@cache
def left_out() -> Any:
    """Return the predictions of every teacher by a fit to the other data sets, [n,A]."""
    return leave_groups_out(features(), gains(), groups())


@cache
def left_out_model(dataset: str) -> GainModel:
    """Return the model that is fitted to the other data sets, with the intervals that it then has."""
    of = np.array(groups())
    others = of != dataset
    return fit_gain_model(features()[others], gains()[others], list(of[others]), pairs()["features"], ALPHAS, {})


def intervals() -> list[dict[float, Prediction]]:
    """Return the prediction of every teacher by the model that is fitted to the other data sets, by α."""
    return [left_out_model(dataset).predict(x[None])[0] for dataset, x in zip(groups(), features(), strict=True)]


@cache
def suggested_alphas() -> Any:
    """Return the number of the α that is suggested for each teacher, [n]."""
    return np.array([int(np.argmax([each[alpha].low for alpha in ALPHAS])) for each in intervals()])


def predictors() -> dict[str, Any]:
    """Return what teachers can be ranked by, the larger the better, [n] each; the regression has one for each α."""
    x, names = features(), list(pairs()["features"])
    return {
        "robust accuracy of the teacher": x[:, names.index("robust")],
        "accuracy on the attacks of the baselines": x[:, names.index("transfer")],
        "entropy on unlearnable images": x[:, names.index("entropy_unlearnable")],
        "entropy elsewhere": x[:, names.index("entropy_elsewhere")],
        "calibration error there, negated": -x[:, names.index("ece_transfer")],
    }


def number(value: float) -> str:
    """Return a correlation with two digits and a proper minus sign."""
    return f"{value:+.2f}".replace("-", "−")


def points(value: float) -> str:
    """Return a difference in points, signed."""
    return f"{100 * value:+.1f}".replace("-", "−")


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """Return a table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def correlations() -> str:
    """Return the rank correlation of each predictor with the gains, by data set and α, at the best and last epoch."""
    of, lines = np.array(groups()), []
    columns = [(dataset, alpha) for dataset in dict.fromkeys(groups()) for alpha in range(len(ALPHAS))]
    candidates: dict[str, list[Any]] = {"**the regression, data set left out**": [left_out()[:, 0], left_out()[:, 1]]}
    candidates |= {name: [value, value] for name, value in predictors().items()}
    for name, by_alpha in candidates.items():
        cells = []
        for dataset, alpha in columns:
            is_in = of == dataset
            found = [rank_correlation(by_alpha[alpha][is_in], gains(epoch)[is_in, alpha]) for epoch in EPOCHS]
            cells.append(" / ".join(map(number, found)))
        lines.append([name, *cells])
    head = ["ranked by", *(f"{NAMES[dataset]}, α {ALPHAS[alpha]:g}" for dataset, alpha in columns)]
    return markdown(head, lines)


EPOCHS = ("best", "last")


def teachers() -> str:
    """Return what was predicted of every teacher without its data set, and what its students gained."""
    lines = []
    for number_of, (dataset, row) in enumerate(rows()):
        predicted = left_out()[number_of]
        m = row["measures"]
        cells = [NAMES[dataset], row["name"], f"{100 * m['robust_accuracy']:.0f}", f"{m['entropy_unlearnable']:.2f}"]
        for column, alpha in enumerate(ALPHAS):
            own = [row["gains"][f"{alpha:g}"][epoch] for epoch in EPOCHS]
            cells += [points(predicted[column]), " / ".join(map(points, own))]
        lines.append(cells)
    head = ["data", "teacher", "robust, %", "entropy, bin"]
    for alpha in ALPHAS:
        head += [f"α {alpha:g}: predicted", "gained, best / last"]
    return markdown(head, lines)


def error(values: Any) -> float:
    """Return the root mean square, in points."""
    return 100 * float(np.sqrt(np.square(values).mean()))


def choices() -> str:
    """Return, by data set, what the choice of the ranking gained beside other ways to choose."""
    of, lines = np.array(groups()), []
    names = [row["name"] for _, row in rows()]
    robust = predictors()["robust accuracy of the teacher"]
    for dataset in dict.fromkeys(groups()):
        inside = np.flatnonzero(of == dataset)
        own, predicted = gains()[inside], left_out()[inside]
        suggested = suggested_alphas()[inside]
        at = int(predicted[np.arange(len(inside)), suggested].argmax())
        alpha = suggested[at]
        strongest = int(robust[inside].argmax())
        best, best_alpha = np.unravel_index(int(own.argmax()), own.shape)
        every = np.arange(len(inside))
        interval = correlation(predicted[every, suggested], own[every, suggested])
        lines.append(
            [
                NAMES[dataset],
                f"{names[inside[at]]}, α {ALPHAS[alpha]:g}: {points(own[at, alpha])}",
                f"{names[inside[strongest]]}: {points(own[strongest, 0])} / {points(own[strongest, 1])}",
                f"{names[inside[best]]}, α {ALPHAS[best_alpha]:g}: {points(own[best, best_alpha])}",
                f"{points(own[:, 0].mean())} / {points(own[:, 1].mean())}",
                f"{number(interval.rho)} [{number(interval.low)}, {number(interval.high)}]",
                f"{error(predicted - own):.1f} / {error(own):.1f}",
            ]
        )
    head = [
        "left out",
        "the choice of the ranking",
        "the most robust teacher, α 0.5 / 1",
        "the best of all, in hindsight",
        "the mean teacher, α 0.5 / 1",
        "rank correlation at the suggested α [95 %]",
        "error of the prediction / of predicting 0, points",
    ]
    return markdown(head, lines)


def fitted() -> Ridge:
    """Return the regression that the package has, fitted to all data sets."""
    x, y = features(), gains()
    return fit_ridge(x, y, choose_penalty(x, y))


def weights() -> str:
    """Return the coefficients of the regression that the package has: points a standard deviation of each feature."""
    ridge = fitted()
    lines = [
        [name.replace("_", " "), *(points(value) for value in row)]
        for name, row in zip(pairs()["features"], ridge.coefficients, strict=True)
    ]
    return markdown(["feature", *(f"α {alpha:g}" for alpha in ALPHAS)], lines)


def scatter(figure: Figure) -> None:
    """Draw what students gained over what was predicted without their data set, for both α."""
    of, markers = np.array(groups()), ("o", "s", "^")
    axes = figure.subplots(1, len(ALPHAS))
    for column, (alpha, each) in enumerate(zip(ALPHAS, axes, strict=True)):
        predicted, own = 100 * left_out()[:, column], 100 * gains()[:, column]
        ends = [min(predicted.min(), own.min()) - 1, max(predicted.max(), own.max()) + 1]
        each.plot(ends, ends, color=MUTED, linewidth=0.8)
        for dataset, marker, colour in zip(dict.fromkeys(groups()), markers, SERIES, strict=False):
            inside = of == dataset
            each.plot(
                predicted[inside], own[inside], marker, color=colour, label=NAMES[dataset] if column == 0 else None
            )
        each.set_title(f"α {alpha:g}", color=INK, fontsize=8.2)
        each.set_xlabel("predicted, points")
    axes[0].set_ylabel("gained, points")
    figure.legend(loc="outside upper center", ncols=len(dict.fromkeys(groups())))


TABLES = {
    "teacher-ranking-choices": choices,
    "teacher-ranking-correlations": correlations,
    "teacher-ranking": teachers,
    "teacher-ranking-weights": weights,
}
