"""Compare arms with their baselines image by image, and over seeds if there are several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.arms import Arm, common_kind, same_task
from robustill.analysis.evaluations import Evaluation
from robustill.analysis.runs import FinishedRun
from robustill.analysis.statistics import (
    SIGNIFICANCE_LEVEL,
    PairedDifference,
    holm,
    paired_difference,
    paired_over_seeds_and_images,
)
from robustill.core.formatting import show_value
from robustill.runs.records import Records

_UNREPORTED_KEYS = ("seed", "method", "teachers", "teacher_mean", "compute", "keep_every", "dynamics")
"""Parts of the configuration that belong to the method or do not change what is learned."""

_Kind = tuple[object, ...] | None
"""The kind of an evaluation, see `Evaluation.kind`."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Whether a student and its baseline classify each of the same images correctly.

    Args:
        index: int64 [N], the ids of the images, ascending.
        student: bool [N].
        baseline: bool [N].
    """

    index: NDArray[np.int64]
    student: NDArray[np.bool_]
    baseline: NDArray[np.bool_]

    @cached_property
    def difference(self) -> PairedDifference:
        """The student's accuracy minus the baseline's, over images."""
        return paired_difference(self.student, self.baseline)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A run and its baseline of the same seed, evaluated on the same images."""

    student: FinishedRun
    baseline: FinishedRun
    robust: Flags
    """under attack at the best epoch, as are all values but `last`"""
    clean: Flags
    last: Flags | None
    """under attack at the last epoch; None if either was not evaluated there"""

    @property
    def outcomes(self) -> dict[str, int]:
        """Number of images that both runs, only one of them, or neither classifies correctly under attack."""
        student, baseline = self.robust.student, self.robust.baseline
        return {
            "both": int((student & baseline).sum()),
            "only_student": int((student & ~baseline).sum()),
            "only_baseline": int((baseline & ~student).sum()),
            "neither": int((~student & ~baseline).sum()),
        }


@dataclass(frozen=True, kw_only=True)
class Gap:
    """An accuracy of two arms and their difference, the student's minus the baseline's."""

    student: float
    baseline: float
    difference: float
    std: float
    """standard deviation of the difference over seeds; nan for one seed"""
    low: float
    """lower end of its 95 % interval: over images for one seed, over seeds and images for several"""
    high: float
    p_value: float
    """of McNemar's test for one seed, of the t test over seeds and images for several; nan for two, see `is_decided`"""
    significant: bool
    num_seeds: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """An arm and its baseline, paired by seed: the same method with the same baseline, never several of either.

    All pairs are evaluated on the same images under the same attack.
    """

    student: Arm
    baseline: Arm
    pairs: tuple[Pair, ...]
    by_order: bool
    """whether only the order of the runs decides which of the two is the baseline"""

    @cached_property
    def robust(self) -> Gap:
        """Robust accuracy at the best epoch."""
        return _gap([each.robust for each in self.pairs])

    @cached_property
    def clean(self) -> Gap:
        """Clean accuracy at the best epoch."""
        return _gap([each.clean for each in self.pairs])

    @cached_property
    def last(self) -> Gap | None:
        """Robust accuracy at the last epoch; None if a run was not evaluated there."""
        pairs = [each.last for each in self.pairs if each.last is not None]
        if len(pairs) < len(self.pairs):
            return None
        return _gap(pairs)

    def means(self, number: str) -> tuple[float, float]:
        """Return the mean of a number of the main evaluations over the pairs: the student's, the baseline's."""
        runs = [(each.student, each.baseline) for each in self.pairs]
        first, second = zip(*([main_evaluation(run).results[number] for run in pair] for pair in runs), strict=True)
        return float(np.mean(first)), float(np.mean(second))

    @property
    def images(self) -> str:
        """Number and split of the images as text."""
        return main_evaluation(self.pairs[0].student).images

    @cached_property
    def differences(self) -> list[str]:
        """Differences between the two configurations other than the method and its averaging."""
        first, second = self.pairs[0].student, self.pairs[0].baseline
        ignored = [f"optim.{run.average} " for run in (first, second) if run.average is not None]
        if len(self.pairs) == 1 and first.seed != second.seed:
            ignored.append("data.split_seed ")
        differences = _config_differences(first.config, second.config)
        return [each for each in differences if not each.startswith(tuple(ignored))]


def main_evaluation(run: FinishedRun) -> Evaluation:
    """Return the main evaluation of a run that has one."""
    assert run.main is not None
    return run.main


def _gap(pairs: Sequence[Flags]) -> Gap:
    students, baselines = [each.student for each in pairs], [each.baseline for each in pairs]
    own, others = ([float(each.mean()) for each in flags] for flags in (students, baselines))
    means = {"student": float(np.mean(own)), "baseline": float(np.mean(others))}
    if len(pairs) == 1:
        pair = pairs[0].difference
        return Gap(
            **means,
            difference=pair.difference,
            std=float("nan"),
            low=pair.low,
            high=pair.high,
            p_value=pair.p_value,
            significant=pair.significant,
            num_seeds=1,
        )
    over_seeds = paired_over_seeds_and_images(np.stack(students), np.stack(baselines))
    return Gap(
        **means,
        difference=over_seeds.mean,
        std=over_seeds.std,
        low=over_seeds.low,
        high=over_seeds.high,
        p_value=over_seeds.p_value if over_seeds.is_decided else math.nan,
        significant=over_seeds.verdict in ("better", "worse"),
        num_seeds=over_seeds.num_seeds,
    )


def compare(arms: Sequence[Arm]) -> list[Comparison]:
    """Compare every distilled arm with every baseline of the same task that was evaluated on the same images.

    In a study, an arm is compared with the row that the study compares it with. Elsewhere a baseline is an arm without
    teachers. Standard training on clean images is never a baseline, and neither is an arm with another radius or
    another network, such as a weak teacher. For a task without such a pair, the arm named first is the baseline of the
    other arms.
    """
    evaluated = [arm for arm in arms if arm.evaluated]
    kind = common_kind(evaluated)
    comparisons = list(_compare_rows(evaluated, kind))
    others = [arm for arm in evaluated if arm.runs[0].row is None]
    students = [arm for arm in others if arm.runs[0].teachers]
    baselines = [arm for arm in others if not arm.runs[0].teachers and _may_be_baseline(arm)]
    comparisons += _compare_all(students, [arm for arm in baselines if not arm.runs[0].is_network], kind)
    unpaired = [arm for arm in others if _may_be_baseline(arm)]
    unpaired = [arm for arm in unpaired if not any(_same_task(arm, each.student) for each in comparisons)]
    while unpaired:
        first, *rest = [arm for arm in unpaired if _same_task(arm, unpaired[0])]
        comparisons += _compare_all(rest, [first], kind, by_order=True)
        unpaired = [arm for arm in unpaired if arm is not first and arm not in rest]
    return comparisons


def with_strongest_baselines(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return one comparison of each student: with the baseline that is the most robust at its best epoch."""
    chosen: dict[str, Comparison] = {}
    for each in comparisons:
        before = chosen.setdefault(each.student.name, each)
        if each.robust.baseline > before.robust.baseline:
            chosen[each.student.name] = each
    return list(chosen.values())


def after_holm(comparisons: Sequence[Comparison], *, at_last: bool = False) -> set[Comparison]:
    """Return the comparisons whose difference of robust accuracy is significant after Holm's correction.

    Args:
        comparisons: all comparisons of a page: the correction is for their number, without those that are not tested.
        at_last: the difference at the last epoch, instead of the best one.
    """
    gaps = {each: each.last if at_last else each.robust for each in comparisons}
    found = {each: gap for each, gap in gaps.items() if gap is not None}
    adjusted = holm([gap.p_value for gap in found.values()])
    return {
        each
        for (each, gap), p_value in zip(found.items(), adjusted, strict=True)
        if gap.significant and p_value < SIGNIFICANCE_LEVEL
    }


def _may_be_baseline(arm: Arm) -> bool:
    return arm.runs[0].method != "clean"


def _same_task(first: Arm, second: Arm) -> bool:
    return same_task(first.runs[0], second.runs[0])


def _compare_rows(arms: Sequence[Arm], kind: _Kind) -> Iterator[Comparison]:
    """Yield the comparisons that the tables of studies name."""
    rows = {(row.study, row.label): arm for arm in arms if (row := arm.runs[0].row) is not None}
    for (study, _), arm in rows.items():
        row = arm.runs[0].row
        baseline = None if row is None or row.against is None else rows.get((study, row.against))
        if baseline is not None:
            yield from _compare_all([arm], [baseline], kind)


def _compare_all(
    students: Sequence[Arm], baselines: Sequence[Arm], kind: _Kind, *, by_order: bool = False
) -> Iterator[Comparison]:
    for student in students:
        for baseline in baselines:
            pairs = list(_pairs(student, baseline)) if _same_task(student, baseline) or student.runs[0].row else []
            if pairs:
                yield Comparison(
                    student=student, baseline=baseline, pairs=tuple(_of_one_kind(pairs, kind)), by_order=by_order
                )


def _of_one_kind(pairs: Sequence[Pair], kind: _Kind) -> list[Pair]:
    """Return the pairs of one kind of evaluation: of the given one if there are any, else of the most frequent."""
    kinds = [main_evaluation(each.student).kind for each in pairs]
    chosen = kind if kind in kinds else max(kinds, key=kinds.count)
    return [pair for pair, own in zip(pairs, kinds, strict=True) if own == chosen]


def _pairs(student: Arm, baseline: Arm) -> Iterator[Pair]:
    """Yield the runs of the same seed that were evaluated alike; two single runs are paired whatever their seeds."""
    single = len(student.runs) == len(baseline.runs) == 1
    for first in student.evaluated:
        for second in baseline.evaluated:
            is_repetition = single or first.seed == second.seed
            if is_repetition and _same_stage(first, second) and _same_images(first.main, second.main):
                yield _pair(first, second)


def _same_stage(first: FinishedRun, second: FinishedRun) -> bool:
    """Return whether both are evaluated at their best epoch, or both at their last; networks have one state."""
    checkpoints = [main_evaluation(run) for run in (first, second)]
    stages = [each.checkpoint.removesuffix(f"-{each.average}") for each in checkpoints]
    return first.is_network or stages[0] == stages[1]


def _same_images(a: Evaluation | None, b: Evaluation | None) -> bool:
    """Return whether two evaluations cover the same images under the same conditions."""
    if a is None or b is None or a.kind != b.kind:
        return False
    first, second = np.argsort(a.records.index), np.argsort(b.records.index)
    return np.array_equal(a.records.label[first], b.records.label[second])


def _pair(student: FinishedRun, baseline: FinishedRun) -> Pair:
    a, b = main_evaluation(student).records, main_evaluation(baseline).records
    first, second = student.at_last, baseline.at_last
    last = None
    if first is not None and second is not None and _same_images(first, second):
        last = _flags(first.records, second.records, "robust")
    return Pair(
        student=student,
        baseline=baseline,
        robust=_flags(a, b, "robust"),
        clean=_flags(a, b, "clean_correct"),
        last=last,
    )


def _flags(student: Records, baseline: Records, name: str) -> Flags:
    order = np.argsort(student.index)
    return Flags(
        index=student.index[order],
        student=getattr(student, name)[order],
        baseline=getattr(baseline, name)[np.argsort(baseline.index)],
    )


def _config_differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*a, *b]):
        if not prefix and key in _UNREPORTED_KEYS:
            continue
        first, second = a.get(key), b.get(key)
        if isinstance(first, dict) and isinstance(second, dict):
            yield from _config_differences(first, second, f"{prefix}{key}.")
        elif first != second:
            yield f"{prefix}{key} ({show_value(first)} against {show_value(second)})"
