"""The ranked table of all arms, one row each, for the page and for papers: seeds as mean ± standard deviation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from robustill.analysis.arms import Arm, common_kind
from robustill.analysis.evaluations import Evaluation
from robustill.analysis.runs import FinishedRun
from robustill.analysis.statistics import mean_std, student_interval
from robustill.core.formatting import csv_text, duration, latex_comment, latex_row, points
from robustill.report.comparison import Comparison, Gap, main_evaluation, with_strongest_baselines
from robustill.report.verdict import teacher_seconds
from robustill.runs.records import FIXED_ATTACK, attacked_kind

_NUMBERS = ("clean_accuracy", "robust_accuracy", "ece_clean", "ece_adversarial", "ece_pgd")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number of an arm over its seeds."""

    mean: float
    std: float
    """standard deviation over seeds; nan for one seed"""
    low: float
    """lower end of the 95 % interval: over images for one seed, over seeds for several"""
    high: float


@dataclass(frozen=True, kw_only=True)
class RankedRow:
    """One arm in the table."""

    arm: Arm
    runs: tuple[FinishedRun, ...]
    """the runs of its numbers: of an arm with a rank, those that were evaluated like the others"""
    rank: int | None
    """1 for the most robust arm at its best epoch; None if it was not evaluated like the others"""
    numbers: dict[str, Spread]
    """by the names of an evaluation's numbers, and `last_robust_accuracy`; what is not recorded is absent"""
    seconds: float | None
    """mean training time of a run"""
    teacher_seconds: float | None
    """mean training time of a run's teachers; None if there are none, or it is not recorded"""
    comparison: Comparison | None
    """with the baseline that is the most robust"""

    @property
    def gap(self) -> Gap | None:
        """The difference of robust accuracy at the best epoch from the baseline."""
        return None if self.comparison is None else self.comparison.robust


def rank(arms: Sequence[Arm], comparisons: Sequence[Comparison]) -> list[RankedRow]:
    """Return a row for each arm: the most robust first, then those that were not evaluated like most others."""
    kind = common_kind(arms)
    rows = [_row(arm, kind, comparisons) for arm in arms]
    ranked = [row for row in rows if "robust_accuracy" in row.numbers]
    ranked.sort(key=lambda row: -row.numbers["robust_accuracy"].mean)
    numbered = [replace(row, rank=number) for number, row in enumerate(ranked, start=1)]
    return [*numbered, *(row for row in rows if "robust_accuracy" not in row.numbers)]


def common_evaluation(arms: Sequence[Arm]) -> Evaluation | None:
    """Return an evaluation of the kind that the table compares, for its conditions."""
    kind = common_kind(arms)
    return next((run.main for arm in arms for run in arm.evaluated_as(kind)), None)


def _row(arm: Arm, kind: tuple[object, ...] | None, comparisons: Sequence[Comparison]) -> RankedRow:
    alike = arm.evaluated_as(kind)
    mains = [main_evaluation(run) for run in alike]
    lasts = [run.at_last for run in alike if run.at_last is not None]
    recorded = [name for name in _NUMBERS if mains and all(name in each.results for each in mains)]
    numbers = {name: _spread(mains, name) for name in recorded}
    if mains and len(lasts) == len(mains):
        numbers["last_robust_accuracy"] = _spread(lasts, "robust_accuracy")
    runs = alike or arm.runs
    seconds = [run.seconds for run in runs if run.seconds is not None]
    of_teachers = [teacher_seconds(run) for run in runs] if runs[0].teachers else []
    known = [each for each in of_teachers if each is not None]
    return RankedRow(
        arm=arm,
        runs=runs,
        rank=None,
        numbers=numbers,
        seconds=sum(seconds) / len(seconds) if seconds else None,
        teacher_seconds=sum(known) / len(known) if known and len(known) == len(of_teachers) else None,
        comparison=next((each for each in with_strongest_baselines(comparisons) if each.student is arm), None),
    )


def _spread(evaluations: Sequence[Evaluation], number: str) -> Spread:
    values = [each.results[number] for each in evaluations]
    mean, std, n = mean_std(values)
    if n == 1:
        low, high = evaluations[0].results.get(f"{number}_interval", (math.nan, math.nan))
    else:
        low, high = student_interval(values)
        low, high = max(low, 0.0), min(high, 1.0) if number.endswith("accuracy") else high
    return Spread(mean=mean, std=std, low=low, high=high)


def ranking_files(rows: Sequence[RankedRow], conditions: str) -> dict[str, bytes]:
    """Return the table as files for a paper, by name: ranking.csv with all digits, ranking.tex for booktabs."""
    return {"ranking.csv": csv_text(_csv_rows(rows)).encode(), "ranking.tex": _latex(rows, conditions).encode()}


def _csv_rows(rows: Sequence[RankedRow]) -> Iterable[Sequence[object]]:
    names = [*_NUMBERS, "last_robust_accuracy"]
    fields = ("mean", "std", "low", "high")
    gap_fields = ("difference", "std", "low", "high", "p_value")
    yield [
        *("rank", "arm", "seeds", "folders"),
        *(f"{name}_{field}" for name in names for field in fields),
        *("training_seconds", "teacher_seconds", "against"),
        *(f"robust_accuracy_difference_{field}".replace("difference_difference", "difference") for field in gap_fields),
    ]
    for row in rows:
        yield [
            *(row.rank, row.arm.name, len(row.runs), " ".join(str(run.path) for run in row.runs)),
            *(getattr(row.numbers.get(name), field, None) for name in names for field in fields),
            *(row.seconds, row.teacher_seconds, None if row.comparison is None else row.comparison.baseline.name),
            *(getattr(row.gap, field, None) for field in gap_fields),
        ]


def shown_ece(rows: Sequence[RankedRow]) -> tuple[str, str]:
    """Return the number that the table shows of calibration under attack, and the attack as its heading names it."""
    kind = attacked_kind(row.numbers for row in rows if row.numbers)
    return f"ece_{kind}", FIXED_ATTACK if kind == "pgd" else "attacked"


def _latex(rows: Sequence[RankedRow], conditions: str) -> str:
    ece, attack = shown_ece(rows)
    header = ("", "seeds", "clean, %", "robust, %", "robust, last, %", "ECE", f"ECE {attack}", "difference")
    lines = [latex_comment(conditions), rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule"]
    lines += [latex_row(header), r"\midrule"]
    lines += [latex_row(list(_latex_cells(row, ece))) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_cells(row: RankedRow, ece: str) -> Iterator[str]:
    yield row.arm.name
    yield str(len(row.runs))
    for name in ("clean_accuracy", "robust_accuracy", "last_robust_accuracy"):
        yield percent_cell(row.numbers.get(name))
    for name in ("ece_clean", ece):
        yield number_cell(row.numbers.get(name))
    yield difference_cell(row.gap)


def percent_cell(spread: Spread | None) -> str:
    """Format an accuracy in percent without the sign, with its standard deviation over seeds."""
    if spread is None:
        return "–"
    text = f"{100 * spread.mean:.1f}"
    return text if math.isnan(spread.std) else f"{text} ± {100 * spread.std:.1f}"


def number_cell(spread: Spread | None) -> str:
    """Format a number such as an ECE, with its standard deviation over seeds."""
    if spread is None:
        return "–"
    return f"{spread.mean:.3f}" if math.isnan(spread.std) else f"{spread.mean:.3f} ± {spread.std:.3f}"


def difference_cell(gap: Gap | None) -> str:
    """Format a difference in points with its 95 % interval."""
    return "–" if gap is None else f"{points(gap.difference)} ({points(gap.low)} to {points(gap.high)})"


def time_cell(row: RankedRow) -> str:
    """Format the training time of a run, with that of its teachers where it is recorded."""
    if row.seconds is None:
        return "–"
    text = duration(row.seconds)
    return text if row.teacher_seconds is None else f"{text} + {duration(row.teacher_seconds)}"
