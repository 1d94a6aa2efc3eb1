"""Compare students with their baselines and state the results in sentences, each backed by a test or a plain fact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from robustill.analysis.calibration import temperature_scaling
from robustill.analysis.runs import Evaluation, FinishedRun
from robustill.analysis.statistics import PairedDifference, format_p, mean_std, paired_difference
from robustill.analysis.summary import result_warnings
from robustill.core.formatting import SPACE, join_with_and, percent, points, show_value

_SAME_CONDITIONS = ("data", "split", "data_fingerprint", "threat", "suite")
"""Conditions that must agree before two evaluations are compared."""

_UNREPORTED_KEYS = ("method", "teachers", "teacher_mean", "compute", "keep_every")
"""Parts of the configuration that belong to the method or do not change what is learned."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A student, or another run that takes its place, and its baseline, evaluated on the same images."""

    student: FinishedRun
    baseline: FinishedRun
    student_evaluation: Evaluation
    baseline_evaluation: Evaluation
    robust: PairedDifference
    clean: PairedDifference
    outcomes: dict[str, int]
    """number of images that both runs, only one of them, or neither classifies correctly under attack"""
    differences: list[str]
    """other differences between the two configurations"""

    @property
    def headline(self) -> str:
        """One sentence that says whether the student is more or less robust, or not significantly different."""
        student_accuracy = percent(self.student_evaluation.results["robust_accuracy"])
        baseline_accuracy = percent(self.baseline_evaluation.results["robust_accuracy"])
        numbers = f"{student_accuracy} against {baseline_accuracy} of {self.student_evaluation.images}"
        if not self.robust.significant:
            return (
                f"{self.student.name} and {self.baseline.name} do not differ significantly in robust accuracy: "
                f"{numbers}."
            )
        word = "more" if self.robust.difference > 0 else "less"
        return f"{self.student.name} is {word} robust than {self.baseline.name}: {numbers}."

    @property
    def details(self) -> list[str]:
        """The tests behind the headline, and the other differences between the two runs."""
        student_accuracy = percent(self.student_evaluation.results["clean_accuracy"])
        baseline_accuracy = percent(self.baseline_evaluation.results["clean_accuracy"])
        lines = [
            f"Robust accuracy: {_describe_test(self.robust)}",
            f"Clean accuracy: {student_accuracy} against {baseline_accuracy}; {_describe_test(self.clean)}",
        ]
        if self.differences:
            lines.append(f"The two runs differ in more than the method: {join_with_and(self.differences)}.")
        return lines


def compare(runs: Sequence[FinishedRun]) -> list[Comparison]:
    """Compare every distilled student with every baseline of the same task that was evaluated on the same images.

    A baseline is a run without teachers. Runs with the same seed are paired where both sides have that seed. Standard
    training on clean images is never a baseline, and neither is a run with another radius or another network, such as
    a weak teacher. For a task without such a pair, the run named first is the baseline of the other runs.
    """
    students = [run for run in runs if run.teachers]
    baselines = [run for run in runs if not run.teachers and run.method != "clean"]
    comparisons = _pair_runs(students, baselines)
    unpaired = [run for run in runs if run.method != "clean" and run.evaluations]
    unpaired = [run for run in unpaired if not any(_same_task(run, each.student) for each in comparisons)]
    while unpaired:
        first, *others = [run for run in unpaired if _same_task(run, unpaired[0])]
        # A run of the first method with another seed is the baseline of the others with that seed. If the task has
        # runs of that method alone, they are compared with the first.
        seeds = [run for run in others if run.get("method") == first.get("method") and _seed(run) != _seed(first)]
        rest = [run for run in others if run not in seeds]
        comparisons += _pair_runs(rest, [first, *seeds]) if rest else _pair_runs(others, [first])
        unpaired = [run for run in unpaired if run is not first and run not in others]
    return comparisons


def is_by_order(comparison: Comparison) -> bool:
    """Return whether only the order of the runs decides which of the two is the baseline."""
    return bool(comparison.baseline.teachers) or not comparison.student.teachers


def headline(runs: Sequence[FinishedRun], comparisons: Sequence[Comparison]) -> str:
    """Return the first sentence of the page."""
    if len(comparisons) == 1:
        return comparisons[0].headline
    if comparisons:
        return _headline_of_several(comparisons)
    if len(runs) == 1 and runs[0].main is not None:
        results = runs[0].main.results
        return (
            f"{runs[0].name} correctly classifies {percent(results['clean_accuracy'])} of {runs[0].main.images}, "
            f"and {percent(results['robust_accuracy'])} under attack."
        )
    if any(run.evaluations for run in runs):
        return "No verdict: no two of these runs can be compared."
    return "No verdict: no run has been evaluated yet."


def _headline_of_several(comparisons: Sequence[Comparison]) -> str:
    better = sum(each.robust.significant and each.robust.difference > 0 for each in comparisons)
    worse = sum(each.robust.significant and each.robust.difference < 0 for each in comparisons)
    mean, std, n = mean_std([each.robust.difference for each in comparisons])
    subject = "the distilled student"
    if any(map(is_by_order, comparisons)):
        baselines = list(dict.fromkeys(each.baseline.name for each in comparisons))
        subject = f"with {join_with_and(baselines)} the other run"
    undecided = n - better - worse
    std_points = 100 * std
    return (
        f"In {n} comparisons {subject} is more robust in {better} and less robust in {worse}; "
        f"there is no significant difference in {undecided}. Mean difference {points(mean)} ± {std_points:.1f} points."
    )


def reasons(runs: Sequence[FinishedRun], comparisons: Sequence[Comparison]) -> list[str]:
    """Return the sentences that support or qualify the headline."""
    if len(comparisons) == 1:
        lines = comparisons[0].details
    else:
        lines = [f"{each.headline} {_describe_test(each.robust)}" for each in comparisons]
    by_order = dict.fromkeys(each.baseline.name for each in comparisons if is_by_order(each))
    if by_order:
        lines.append(
            "No student could be compared with a run without teachers. The other runs are compared with "
            f"{join_with_and(list(by_order))}, which comes first. To compare with another run, name that run first."
        )
    if comparisons:
        seeds = {run.get("seed") for each in comparisons for run in (each.student, each.baseline)}
        trained = "They rest on one training seed" if len(seeds) == 1 else f"They rest on {len(seeds)} training seeds"
        lines.append(
            f"The intervals account for the choice of test images only. {trained}; another seed may give another "
            "difference."
        )
    elif len(runs) > 1:
        lines = [
            "A comparison needs two runs with the same network, data and threat, neither of them standard training, "
            "both evaluated on the same images under the same attack."
        ]
    return lines


def evaluation_warnings(run: FinishedRun, evaluation: Evaluation) -> Iterator[str]:
    """Yield the reasons to distrust the robust accuracy of an evaluation that its records reveal."""
    results, stages = evaluation.results, evaluation.records.stages
    yield from map(str, evaluation.conditions.get("warnings") or [])
    if evaluation.is_subset:
        yield f"A subset: {results['num_images']} of {evaluation.of_images} {evaluation.split} images."
    yield from result_warnings(evaluation.records)
    if results["robust_at_eps"] and len(stages) > 1 and "curve" not in evaluation.conditions:
        yield (
            "The curve of robust accuracy against eps is of an earlier version, which took the whole suite at the "
            "radius of the threat and one run of PGD elsewhere: evaluate again for one attack at all radii."
        )
    curve = [(row["eps"], row["robust_accuracy"]) for row in results["robust_at_eps"]]
    half_an_image = 0.5 / results["num_images"]
    rising = [after[0] for before, after in pairwise(curve) if after[1] > before[1] + half_an_image]
    if rising:
        yield (
            f"Robust accuracy rises at eps {rising[0]:g}, although a larger ball contains every image of a smaller "
            "one: the attack is too weak, or the gradient is masked."
        )
    chance = 1 / len(evaluation.records.classes)
    if curve and run.eps and curve[-1][0] >= 3 * run.eps and curve[-1][1] > chance:
        yield (
            f"At eps {curve[-1][0]:g} robust accuracy is still {percent(curve[-1][1])}, above chance: "
            "the gradient may be masked."
        )


def temperature_sentences(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """Yield how a temperature fitted on validation images changes the calibration of each run's main evaluation."""
    for run in runs:
        if run.main is None:
            continue
        validation = [each for each in run.evaluations if _is_validation_of(each, run.main)]
        if not validation:
            continue
        for kind in ("clean", "adversarial"):
            yield _temperature_sentence(run.name, kind, validation[0], run.main)


def _temperature_sentence(name: str, kind: str, validation: Evaluation, main: Evaluation) -> str:
    fitted, reported = (
        (getattr(each.records, f"{kind}_probabilities"), each.records.label) for each in (validation, main)
    )
    scaling = temperature_scaling(fitted, reported)
    word = "overconfident" if scaling.temperature > 1 else "underconfident"
    before, after = scaling.before["ece"], scaling.after["ece"]
    return (
        f"{name} on {kind} images: a temperature of {scaling.temperature:.2f}, fitted on {validation.images} where "
        f"the network is {word}, changes the ECE from {before:.3f} to {after:.3f}."
    )


def _is_validation_of(evaluation: Evaluation, main: Evaluation) -> bool:
    """Return whether an evaluation covers the validation images with the weights and the attack of another."""
    return evaluation.split == "validation" != main.split and all(
        evaluation.conditions.get(key) == main.conditions.get(key) for key in ("checkpoint", "threat", "suite")
    )


def _describe_test(result: PairedDifference) -> str:
    verdict = "significant" if result.significant else "not significant"
    p_value = format_p(result.p_value).replace(" ", SPACE)
    return (
        f"difference {points(result.difference)} points, 95 % interval {points(result.low)} to {points(result.high)}, "
        f"McNemar p{SPACE}{p_value}: {verdict}."
    )


def _pair_runs(students: Sequence[FinishedRun], baselines: Sequence[FinishedRun]) -> list[Comparison]:
    comparisons = []
    for student in students:
        candidates = [run for run in baselines if _same_task(student, run)]
        same_seed = [run for run in candidates if _seed(run) == _seed(student)]
        for baseline in same_seed or candidates:
            pair = _comparable_evaluations(student, baseline)
            if pair is not None:
                comparisons.append(_compare_pair(student, baseline, *pair))
    return comparisons


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
    """Return whether two evaluations cover the same images under the same conditions."""
    if any(a.conditions.get(key) != b.conditions.get(key) for key in _SAME_CONDITIONS):
        return False
    if a.records.stages != b.records.stages:
        return False
    first, second = np.argsort(a.records.index), np.argsort(b.records.index)
    return all(
        np.array_equal(getattr(a.records, name)[first], getattr(b.records, name)[second]) for name in ("index", "label")
    )


def _compare_pair(student: FinishedRun, baseline: FinishedRun, first: Evaluation, second: Evaluation) -> Comparison:
    a, b = first.records, second.records
    order_a, order_b = np.argsort(a.index), np.argsort(b.index)
    robust_a, robust_b = a.robust[order_a], b.robust[order_b]
    return Comparison(
        student=student,
        baseline=baseline,
        student_evaluation=first,
        baseline_evaluation=second,
        robust=paired_difference(robust_a, robust_b),
        clean=paired_difference(a.clean_correct[order_a], b.clean_correct[order_b]),
        outcomes={
            "both": int((robust_a & robust_b).sum()),
            "only_student": int((robust_a & ~robust_b).sum()),
            "only_baseline": int((robust_b & ~robust_a).sum()),
            "neither": int((~robust_a & ~robust_b).sum()),
        },
        differences=list(_config_differences(student.config, baseline.config)),
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
