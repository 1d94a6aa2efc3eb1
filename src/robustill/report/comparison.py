"""Is the student better, and can that be believed: sentences, each from a test or a plain fact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from robustill.analysis.calibration import temperature_scaling
from robustill.analysis.runs import Evaluation, FinishedRun
from robustill.analysis.statistics import PairedDifference, format_p, mean_std, paired_difference
from robustill.core.formatting import SPACE, join_with_and, percent, points, show_value

_SAME = ("data", "split", "data_fingerprint", "threat", "suite")
"""Conditions that must agree before two evaluations are compared."""

_MAY_DIFFER = ("method", "teachers", "teacher_mean", "compute", "keep_every")
"""Configuration that the method brings with it, or that does not change what is learned."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A student, or whatever else is judged, and its baseline on the same images."""

    student: FinishedRun
    baseline: FinishedRun
    first: Evaluation
    second: Evaluation
    robust: PairedDifference
    clean: PairedDifference
    outcomes: dict[str, int]
    """images that both, only one, or neither classifies right under attack"""
    differences: list[str]
    """what else differs between the two configurations"""

    @property
    def headline(self) -> str:
        """One sentence: better, worse, or not to be told apart."""
        figures = (
            f"{percent(self.first.results['robust_accuracy'])} against "
            f"{percent(self.second.results['robust_accuracy'])} of {self.first.images}"
        )
        if not self.robust.significant:
            return f"{self.student.name} and {self.baseline.name} cannot be told apart in robust accuracy: {figures}."
        word = "more" if self.robust.difference > 0 else "less"
        return f"{self.student.name} is {word} robust than {self.baseline.name}: {figures}."

    @property
    def details(self) -> list[str]:
        """The tests behind the headline, and what they do not cover."""
        lines = [
            f"Robust accuracy: {_tested(self.robust)}",
            f"Clean accuracy: {percent(self.first.results['clean_accuracy'])} against "
            f"{percent(self.second.results['clean_accuracy'])}; {_tested(self.clean)}",
        ]
        if self.differences:
            lines.append(f"The two runs differ in more than the method: {join_with_and(self.differences)}.")
        return lines


def compare(runs: Sequence[FinishedRun]) -> list[Comparison]:
    """Every distilled student with every baseline that was trained for the same task and evaluated on the same images.

    Runs of one seed are paired with each other where both sides have it. Ordinary training is no baseline, and neither
    is a run against another radius or of another network, such as a weak teacher. Of a task without such a pair, the
    first run named is the baseline of the others.
    """
    students = [run for run in runs if run.teachers]
    found = _pairs(students, [run for run in runs if not run.teachers and run.method != "clean"])
    left = [run for run in runs if run.method != "clean" and run.evaluations]
    left = [run for run in left if not any(_same_task(run, each.student) for each in found)]
    while left:
        first, *others = [run for run in left if _same_task(run, left[0])]
        # Another seed of the first is what the others of that seed are compared with; alone, it is one of them.
        seeds = [run for run in others if run.get("method") == first.get("method") and _seed(run) != _seed(first)]
        rest = [run for run in others if run not in seeds]
        found += _pairs(rest, [first, *seeds]) if rest else _pairs(others, [first])
        left = [run for run in left if run is not first and run not in others]
    return found


def is_by_order(comparison: Comparison) -> bool:
    """Whether the order of the runs alone says which of the two is the baseline."""
    return bool(comparison.baseline.teachers) or not comparison.student.teachers


def headline(runs: Sequence[FinishedRun], comparisons: Sequence[Comparison]) -> str:
    """The page's first sentence."""
    if len(comparisons) == 1:
        return comparisons[0].headline
    if comparisons:
        better = sum(each.robust.significant and each.robust.difference > 0 for each in comparisons)
        worse = sum(each.robust.significant and each.robust.difference < 0 for each in comparisons)
        mean, std, n = mean_std([each.robust.difference for each in comparisons])
        who = "the distilled student"
        if any(map(is_by_order, comparisons)):
            who = f"with {join_with_and(list(dict.fromkeys(each.baseline.name for each in comparisons)))} the other run"
        return (
            f"In {n} comparisons {who} is more robust in {better} and less robust in {worse}; "
            f"{n - better - worse} cannot be told from noise. Mean difference {points(mean)} ± {100 * std:.1f} points."
        )
    if len(runs) == 1 and runs[0].main is not None:
        results = runs[0].main.results
        return (
            f"{runs[0].name} classifies {percent(results['clean_accuracy'])} of {runs[0].main.images}, "
            f"and {percent(results['robust_accuracy'])} under attack."
        )
    if any(run.evaluations for run in runs):
        return "No verdict: nothing here can be compared."
    return "No verdict: nothing has been evaluated yet."


def reasons(runs: Sequence[FinishedRun], comparisons: Sequence[Comparison]) -> list[str]:
    """What belongs directly under the first sentence."""
    if len(comparisons) == 1:
        lines = comparisons[0].details
    else:
        lines = [f"{each.headline} {_tested(each.robust)}" for each in comparisons]
    by_order = dict.fromkeys(each.baseline.name for each in comparisons if is_by_order(each))
    if by_order:
        lines.append(
            "No student could be compared with a run without teachers: the others are compared with "
            f"{join_with_and(list(by_order))}, named first. Name another run first to compare with that one."
        )
    if comparisons:
        seeds = {run.get("seed") for each in comparisons for run in (each.student, each.baseline)}
        trained = "one training seed stands" if len(seeds) == 1 else f"{len(seeds)} training seeds stand"
        lines.append(
            f"The intervals cover the choice of test images. {trained.capitalize()} behind them; another seed may give "
            "another difference."
        )
    elif len(runs) > 1:
        lines = [
            "A comparison takes two runs of the same network, data and threat, neither of them ordinary training, both "
            "evaluated on the same images under the same attack."
        ]
    return lines


def doubts(run: FinishedRun, evaluation: Evaluation) -> Iterator[str]:
    """What speaks against the robust accuracy of an evaluation, as far as its records can tell."""
    results, stages = evaluation.results, evaluation.records.stages
    yield from map(str, evaluation.conditions.get("warnings") or [])
    if evaluation.is_subset:
        yield f"A subset: {results['num_images']} of {evaluation.of_images} {evaluation.split} images."
    if stages and all(stage.lower().startswith(("pgd", "fgsm")) for stage in stages):
        yield (
            f"The attack is {evaluation.attack} alone. It gives an upper bound; AutoAttack may find adversarial images "
            "where it did not."
        )
    curve = [(row["eps"], row["robust_accuracy"]) for row in results["robust_at_eps"]]
    rising = [b[0] for a, b in pairwise(curve) if b[1] > a[1] + 0.5 / results["num_images"]]
    if rising:
        yield (
            f"Robust accuracy rises at eps {rising[0]:g}, although a larger ball holds every image of a smaller one: "
            "the attack is too weak, or the gradient is masked."
        )
    classes = len(evaluation.records.classes)
    if curve and run.eps and curve[-1][0] >= 3 * run.eps and curve[-1][1] > 1 / classes:
        yield (
            f"At eps {curve[-1][0]:g} robust accuracy is still {percent(curve[-1][1])}, above chance: "
            "the gradient may be masked."
        )


def temperatures(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """What one temperature, fitted on the held-out part, does to the calibration of a run's main evaluation."""
    for run in runs:
        main = run.main
        held_out = next((each for each in run.evaluations if main is not None and _fits(each, main)), None)
        if main is None or held_out is None:
            continue
        for kind in ("clean", "adversarial"):
            fitted, reported = (
                (getattr(each.records, f"{kind}_probabilities"), each.records.label) for each in (held_out, main)
            )
            found = temperature_scaling(fitted, reported)
            word = "too sure" if found.temperature > 1 else "too modest"
            yield (
                f"{run.name} on {kind} images: a temperature of {found.temperature:.2f}, fitted on {held_out.images} "
                f"where it is {word}, takes the ECE from {found.before['ece']:.3f} to {found.after['ece']:.3f}."
            )


def _fits(held_out: Evaluation, main: Evaluation) -> bool:
    return held_out.split == "validation" != main.split and all(
        held_out.conditions.get(key) == main.conditions.get(key) for key in ("checkpoint", "threat", "suite")
    )


def _tested(found: PairedDifference) -> str:
    verdict = "beyond noise" if found.significant else "cannot be told from noise"
    return (
        f"difference {points(found.difference)} points, 95 % interval {points(found.low)} to {points(found.high)}, "
        f"McNemar p{SPACE}{format_p(found.p_value).replace(' ', SPACE)}: {verdict}."
    )


def _pairs(students: Sequence[FinishedRun], baselines: Sequence[FinishedRun]) -> list[Comparison]:
    found = []
    for student in students:
        fitting = [run for run in baselines if _same_task(student, run)]
        same_seed = [run for run in fitting if _seed(run) == _seed(student)]
        for baseline in same_seed or fitting:
            pair = _comparable_evaluations(student, baseline)
            if pair is not None:
                found.append(_compared(student, baseline, *pair))
    return found


def _seed(run: FinishedRun) -> Any:
    return run.get("seed")


def _same_task(a: FinishedRun, b: FinishedRun) -> bool:
    return all(a.get(key) == b.get(key) for key in ("data.name", "model", "threat"))


def _comparable_evaluations(a: FinishedRun, b: FinishedRun) -> tuple[Evaluation, Evaluation] | None:
    for first in a.evaluations:
        for second in b.evaluations:
            if first.checkpoint == second.checkpoint and _same_images(first, second):
                return first, second
    return None


def _same_images(a: Evaluation, b: Evaluation) -> bool:
    if any(a.conditions.get(key) != b.conditions.get(key) for key in _SAME) or a.records.stages != b.records.stages:
        return False
    first, second = np.argsort(a.records.index), np.argsort(b.records.index)
    return all(
        np.array_equal(getattr(a.records, name)[first], getattr(b.records, name)[second]) for name in ("index", "label")
    )


def _compared(student: FinishedRun, baseline: FinishedRun, first: Evaluation, second: Evaluation) -> Comparison:
    a, b = first.records, second.records
    order_a, order_b = np.argsort(a.index), np.argsort(b.index)
    robust_a, robust_b = a.robust[order_a], b.robust[order_b]
    return Comparison(
        student=student,
        baseline=baseline,
        first=first,
        second=second,
        robust=paired_difference(robust_a, robust_b),
        clean=paired_difference(a.clean_correct[order_a], b.clean_correct[order_b]),
        outcomes={
            "both": int((robust_a & robust_b).sum()),
            "only_student": int((robust_a & ~robust_b).sum()),
            "only_baseline": int((robust_b & ~robust_a).sum()),
            "neither": int((~robust_a & ~robust_b).sum()),
        },
        differences=list(_differences(student.config, baseline.config)),
    )


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*a, *b]):
        if not prefix and key in _MAY_DIFFER:
            continue
        first, second = a.get(key), b.get(key)
        if isinstance(first, dict) and isinstance(second, dict):
            yield from _differences(first, second, f"{prefix}{key}.")
        elif first != second:
            yield f"{prefix}{key} ({show_value(first)} against {show_value(second)})"
