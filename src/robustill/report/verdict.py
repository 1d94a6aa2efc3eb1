"""The sentences of the page: what is gained and what it costs, each backed by a test or a plain fact; and warnings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from robustill.analysis.arms import Arm, common_kind
from robustill.analysis.evaluations import Evaluation
from robustill.analysis.runs import FinishedRun, find_teacher
from robustill.analysis.statistics import format_p, student_interval
from robustill.analysis.summary import result_warnings
from robustill.core.formatting import SPACE, join_with_and, percent, points
from robustill.report.comparison import Comparison, Gap, after_holm, main_evaluation, with_strongest_baselines
from robustill.runs.directory import split_checkpoint
from robustill.runs.records import FIXED_ATTACK, attacked_kind

_SMALL_ECE = 0.005
"""Differences of the ECE below this one are not mentioned in the headline."""


def headline(arms: Sequence[Arm], comparisons: Sequence[Comparison]) -> str:
    """Return the first sentence of the page: what is gained at the best and at the last epoch."""
    if comparisons:
        only = _of_one_student(comparisons)
        return _headline_of_several(arms, comparisons) if only is None else _gain(only, comparisons)
    evaluated = [arm for arm in arms if arm.evaluated]
    if len(evaluated) == len(arms) == 1:
        return _headline_of_one(arms[0])
    if evaluated:
        return "No verdict: no two of these can be compared."
    return "No verdict: no run has been evaluated yet."


def price(comparisons: Sequence[Comparison]) -> str:
    """Return what else a single student gains and what it costs, in two sentences; nothing for several students."""
    only = _of_one_student(comparisons)
    return "" if only is None else _cost(only)


def _of_one_student(comparisons: Sequence[Comparison]) -> Comparison | None:
    """Return the comparison of the only student with its most robust baseline; None if there are several students."""
    strongest = with_strongest_baselines(comparisons)
    return strongest[0] if len(strongest) == 1 else None


def describe_tests(comparisons: Sequence[Comparison]) -> list[str]:
    """Return the tests of all comparisons."""
    return [line for each in comparisons for line in _details(each, is_only=len(comparisons) == 1)]


def reasons(arms: Sequence[Arm], comparisons: Sequence[Comparison]) -> list[str]:
    """Return the sentences that qualify the headline and the tests."""
    lines = []
    by_order = dict.fromkeys(each.baseline.name for each in comparisons if each.by_order)
    if by_order:
        lines.append(
            f"No arm without teachers is a baseline here: the others are compared with "
            f"{join_with_and(list(by_order))}, which comes first. To compare with another one, name it first."
        )
    tested = [each for each in comparisons if not math.isnan(each.robust.p_value)]
    if len(tested) > 1:
        kept = len(after_holm(comparisons))
        single = sum(each.robust.significant for each in tested)
        found = (
            f"{single} significant, {kept} of them after Holm's correction for their number, which the headline and "
            "the table apply"
            if single
            else "none significant"
        )
        without = "" if len(tested) == len(comparisons) else ", without those of two seeds"
        lines.append(
            f"Each comparison is tested alone. Of the {len(tested)} differences at the best epoch{without}: {found}."
        )
    if comparisons:
        lines.append(_scope(comparisons))
    elif len(arms) > 1:
        lines.append(
            "A comparison needs two runs with the same network, data and threat, neither of them standard training, "
            "both evaluated at the same checkpoint, on the same images, under the same attack."
        )
    return lines


def _scope(comparisons: Sequence[Comparison]) -> str:
    """Say what the intervals account for."""
    seeds = max(each.robust.num_seeds for each in comparisons)
    if seeds == 1:
        return (
            "The intervals account for the choice of test images only. Another training seed may give another "
            "difference: train several, and the page shows their spread."
        )
    return (
        f"The intervals account for the {seeds} training seeds and for the choice of the test images, which the seeds "
        "share."
    )


def _gain(comparison: Comparison, comparisons: Sequence[Comparison]) -> str:
    """Return the sentence on robust accuracy at the best and at the last epoch, after Holm's correction over all."""
    is_significant = comparison in after_holm(comparisons)
    student, baseline, gap = comparison.student.name, comparison.baseline.name, comparison.robust
    at = "" if comparison.last is None else " at the best epoch"
    numbers = f"{percent(gap.student)} against {percent(gap.baseline)} of {comparison.images}"
    numbers += f", {gap.num_seeds} seeds" if gap.num_seeds > 1 else ", one seed"
    if is_significant:
        word = "more" if gap.difference > 0 else "less"
        text = f"{student} is {word} robust than {baseline}{at} ({numbers})"
    else:
        text = f"{student} and {baseline} do not differ significantly in robust accuracy{at} ({numbers})"
    last = comparison.last
    if last is None:
        return f"{text}."
    numbers = f"{percent(last.student)} against {percent(last.baseline)}"
    if comparison not in after_holm(comparisons, at_last=True):
        return (
            f"{text}, and not at the last ({numbers})."
            if not is_significant
            else (f"{text}; at the last the difference is not significant ({numbers}).")
        )
    word = "more" if last.difference > 0 else "less"
    return f"{text}, and {word} robust at the last ({numbers})."


def _cost(comparison: Comparison) -> str:
    """Return what else is gained and what it costs: clean accuracy, calibration, training time."""
    gains: list[str] = []
    costs: list[str] = []
    clean = comparison.clean
    if clean.significant:
        (gains if clean.difference > 0 else costs).append(
            f"{points(abs(clean.difference)).lstrip('+')} points of clean accuracy"
        )
    kind = attacked_kind(
        main_evaluation(run).results for each in comparison.pairs for run in (each.student, each.baseline)
    )
    attack = FIXED_ATTACK if kind == "pgd" else "attack"
    for number, name in ((f"ece_{kind}", f"ECE under {attack}"), ("ece_clean", "clean ECE")):
        student, baseline = comparison.means(number)
        if abs(student - baseline) >= _SMALL_ECE:
            (gains if student < baseline else costs).append(f"{name} {student:.3f} against {baseline:.3f}")
    costs += _training_cost(comparison)
    sentences = []
    if gains:
        sentences.append(f"It also gains: {join_with_and(gains)}.")
    if costs:
        sentences.append(f"It costs: {join_with_and(costs)}.")
    return " ".join(sentences)


def _training_cost(comparison: Comparison) -> list[str]:
    """Return the training time as a multiple of the baseline's, with that of the teachers where it is recorded."""
    own = [each.student.seconds for each in comparison.pairs]
    baseline = [each.baseline.seconds for each in comparison.pairs]
    if not all(own) or not all(baseline):
        return []
    total = sum(filter(None, baseline))
    text = f"{sum(filter(None, own)) / total:.1f} times the training time"
    if not comparison.student.runs[0].teachers:
        return [text]
    teachers = [teacher_seconds(each.student) for each in comparison.pairs]
    if any(seconds is None for seconds in teachers):
        return [f"{text} (that of its teachers is not known here)"]
    both = sum(filter(None, own)) + sum(filter(None, teachers))
    return [f"{text} ({both / total:.1f} times with its teachers)"]


def teacher_seconds(run: FinishedRun) -> float | None:
    """Return the training time of a run's teachers; None if it is not known of all of them."""
    # Several epochs of one run are one training.
    specs = {str(each.get("spec")) for each in run.teachers}
    runs = {str(Path(split_checkpoint(spec.partition(":")[2])[0])): spec for spec in specs}
    found = [find_teacher(spec, beside=run.path) for spec in runs.values()]
    seconds = [None if each is None else each.seconds for each in found]
    return None if None in seconds else float(sum(filter(None, seconds)))


def _headline_of_one(arm: Arm) -> str:
    mains = [main_evaluation(run) for run in arm.evaluated_as(common_kind([arm]))]
    results, images = mains[0].results, mains[0].images
    if len(mains) == 1:
        return (
            f"{arm.name} correctly classifies {percent(results['clean_accuracy'])} of {images}, "
            f"and {percent(results['robust_accuracy'])} under attack."
        )
    values = [each.results["robust_accuracy"] for each in mains]
    low, high = student_interval(values)
    return (
        f"{arm.name} correctly classifies {percent(float(np.mean(values)))} of {images} under attack, "
        f"the mean of {len(values)} seeds (95 % interval {100 * low:.1f} to {100 * high:.1f})."
    ).replace("95 %", f"95{SPACE}%")


def _headline_of_several(arms: Sequence[Arm], comparisons: Sequence[Comparison]) -> str:
    """Name the most robust arm, and count how many are more and less robust than their most robust baseline."""
    strongest = with_strongest_baselines(comparisons)
    baselines = {each.baseline.name for each in strongest}
    against = baselines.pop() if len(baselines) == 1 else "the most robust baseline of each"
    kept = after_holm(comparisons)
    best = _counts([each.robust for each in strongest if each in kept], len(strongest))
    sentences = [*_most_robust(arms, comparisons), f"Compared with {against}, {best} at the best epoch."]
    if all(each.last is not None for each in strongest):
        kept = after_holm(comparisons, at_last=True)
        lasts = [each.last for each in strongest if each in kept and each.last is not None]
        sentences.append(f"At the last epoch, {_counts(lasts, len(strongest))}.")
    return " ".join(sentences)


def _most_robust(arms: Sequence[Arm], comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Name the most robust of the compared arms that the table ranks, if there are two: those evaluated like most."""
    kind = common_kind(arms)
    compared = {arm.name: arm for each in comparisons for arm in (each.student, each.baseline)}
    mains = {name: [main_evaluation(run) for run in arm.evaluated_as(kind)] for name, arm in compared.items()}
    values = {
        name: float(np.mean([each.results["robust_accuracy"] for each in own])) for name, own in mains.items() if own
    }
    if len(values) > 1:
        top = max(values, key=lambda name: values[name])
        yield (
            f"{top} is the most robust of {len(values)} compared at the best epoch: {percent(values[top])} of "
            f"{mains[top][0].images}."
        )


def _counts(significant: Sequence[Gap], number: int) -> str:
    """Count the significant differences of a number of students."""
    if not significant:
        return "none differs significantly"
    better = sum(gap.difference > 0 for gap in significant)
    worse = len(significant) - better
    count, word = (better, "more") if better else (worse, "less")
    verb = "is" if count == 1 else "are"
    text = f"{count} of {number} {verb} significantly {word} robust"
    return f"{text} and {worse} less" if better and worse else text


def _details(comparison: Comparison, *, is_only: bool) -> Iterator[str]:
    """Yield the tests behind the headline, and the other differences between the two arms."""
    prefix = "Robust" if is_only else f"{comparison.student.name} against {comparison.baseline.name}, robust"
    yield f"{prefix} accuracy at the best epoch: {_describe_test(comparison.robust)}"
    if comparison.last is not None:
        yield f"{prefix} accuracy at the last epoch: {_describe_test(comparison.last)}"
    if is_only:
        clean = comparison.clean
        numbers = f"{percent(clean.student)} against {percent(clean.baseline)}"
        yield f"Clean accuracy at the best epoch: {numbers}; {_describe_test(clean)}"
    if comparison.differences:
        what = "The two differ" if is_only else f"{comparison.student.name} and {comparison.baseline.name} differ"
        yield f"{what} in more than the method: {join_with_and(comparison.differences)}."


def _describe_test(gap: Gap) -> str:
    verdict = "significant" if gap.significant else "not significant"
    difference = f"difference {points(gap.difference)} points"
    interval = f"95{SPACE}% interval {points(gap.low)} to {points(gap.high)}"
    if gap.num_seeds == 2:
        return f"{difference} ± {100 * gap.std:.1f} over 2 seeds, which decide nothing: train a third."
    if gap.num_seeds > 1:
        return f"{difference} ± {100 * gap.std:.1f} over {gap.num_seeds} seeds, {interval}: {verdict}."
    p_value = format_p(gap.p_value).replace(" ", SPACE)
    return f"{difference}, {interval}, McNemar p{SPACE}{p_value}: {verdict}."


def masking_lines(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """Yield what the check of gradient masking found, for the evaluations in which it found nothing."""
    found: dict[str, list[str]] = {}
    for run in runs:
        masking = None if run.main is None else run.main.conditions.get("masking")
        if isinstance(masking, Mapping) and not masking.get("reasons"):
            line = f"Gradient masking was looked for on {masking.get('images')} images: {masking.get('verdict')}"
            found.setdefault(line, []).append(run.name)
    for line, names in found.items():
        yield f"{line}." if len(names) == len(runs) else f"{line} ({join_with_and(names)})."


def evaluation_warnings(evaluation: Evaluation) -> Iterator[str]:
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
