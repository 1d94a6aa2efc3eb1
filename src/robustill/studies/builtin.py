"""Ready studies: each a function from the runs of a seed to the rows of its table."""

from __future__ import annotations

from collections.abc import Callable

from robustill.core.errors import ConfigError
from robustill.methods import METHODS
from robustill.studies.design import Design, Row, StudyRuns, Subsets

_MIXES = (0.2, 0.4, 0.6, 0.8, 1.0)
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_NOISE = (0.0, 0.1, 0.2, 0.3, 0.4)
_MOST = 5
_STEPS = (1, 2, 3, 5, 7)
_WIDTHS = (0.25, 0.5, 1.0)


def alpha(runs: StudyRuns) -> Design:
    """The weight of the teacher beside the label, 0.2 to 1: AKD's alpha, the option `mix` of ARD, RSLAD and IAD."""
    option = runs.mixing_option()
    # AKD without its teacher is the baseline; the others without theirs still differ from it.
    values = _MIXES if option == "alpha" else (0.0, *_MIXES)
    rows = [
        _point(runs, f"{option} {value:g}", runs.student(f"{option}-{value:g}", options={option: value}), value)
        for value in values
    ]
    return Design(rows=(_baseline(runs), *rows), axis=f"{option}: weight of the teacher")


def teacher_age(runs: StudyRuns) -> Design:
    """How long the teacher was trained: every kept epoch, its last, and its best on held-out images."""
    teacher = runs.teacher()
    rows = [
        _point(runs, f"teacher's epoch {epoch}", runs.student(f"age-{epoch}", [f"{teacher}@epoch-{epoch}"]), epoch)
        for epoch in runs.ages
    ]
    last = _point(runs, "teacher's last epoch", runs.student("age-last", [f"{teacher}@last"]), runs.teacher_epochs)
    best = Row(
        label="teacher's best epoch", run=runs.student("age-best", [f"{teacher}@best"]), against=runs.baseline_label
    )
    return Design(rows=(_baseline(runs), *rows, last, best), axis="teacher's epoch")


def ensemble_seeds(runs: StudyRuns) -> Design:
    """1 to 5 teachers that differ in their seed, the best epoch of each."""
    teachers = [f"{runs.teacher(number)}@best" for number in range(_MOST)]
    rows = [_several(runs, count, runs.student(f"seeds-{count}", teachers[:count])) for count in range(1, _MOST + 1)]
    return Design(rows=(_baseline(runs), *rows), axis="number of teachers (seeds)")


def ensemble_ages(runs: StudyRuns) -> Design:
    """1 to 5 ages of one teacher: its best epoch, and then its kept epochs before the last, the latest first."""
    teacher = runs.teacher()
    ages = [f"{teacher}@best", *(f"{teacher}@epoch-{epoch}" for epoch in reversed(runs.ages))][:_MOST]
    rows = [_several(runs, count, runs.student(f"ages-{count}", ages[:count])) for count in range(1, len(ages) + 1)]
    return Design(rows=(_baseline(runs), *rows), axis="number of teachers (ages of one run)")


def teacher_eps(runs: StudyRuns) -> Design:
    """The radius that the teacher was trained against, from 0 (ordinary training) to the student's."""
    rows = []
    for share in _SHARES:
        name = runs.student(f"teacher-eps-{share:g}", [f"{runs.teacher(share=share)}@best"])
        rows.append(_point(runs, f"teacher's eps × {share:g}", name, share))
    return Design(rows=(_baseline(runs), *rows), axis="teacher's eps / student's eps")


def guidelines(runs: StudyRuns) -> Design:
    """What matters in a teacher, in short: stopped early or not, one or three, its radius; and TRADES beside it all.

    Every other teacher is compared with the first teacher's best epoch, seed by seed, and that with the baseline.
    """
    baseline, first = _baseline(runs), runs.teacher()
    best = Row(label=f"{runs.method}, one weak teacher", run=runs.student(""), against=baseline.label)
    other = {
        "its last epoch": runs.student("age-last", [f"{first}@last"]),
        "three of them": runs.student("seeds-3", [f"{runs.teacher(number)}@best" for number in range(3)]),
        "one of full radius": runs.student("teacher-eps-1", [f"{runs.teacher(share=1.0)}@best"]),
        "an ordinary one": runs.student("teacher-eps-0", [f"{runs.teacher(share=0.0)}@best"]),
    }
    rows = [Row(label=f"{runs.method}, {label}", run=run, against=best.label) for label, run in other.items()]
    baselines: tuple[Row, ...] = (baseline,)
    if baseline.label != "trades":
        baselines += (Row(label="trades", run=runs.student("", method="trades"), against=baseline.label),)
    return Design(rows=(*baselines, best, *rows))


def attack_steps(runs: StudyRuns) -> Design:
    """How many steps the training's adversary takes, 1 to 7, and growing from 1: what a cheaper one costs in accuracy.

    The steps are 2.5·eps/steps long (Madry et al. 2018), and 1.25·eps where there is one (Wong et al. 2020).
    """
    eps, most = float(runs.recipe["threat"]["eps"]), int(runs.recipe["attack"]["steps"])
    rows = []
    for steps in (each for each in _STEPS if each < most):
        size = eps * (1.25 if steps == 1 else 2.5 / steps)
        name = runs.baseline(tag=f"steps-{steps}", attack={"steps": steps, "step_size": size, "first_steps": None})
        label = f"{steps} step{'s' * (steps > 1)}"
        series, against = runs.baseline_label, runs.baseline_label
        rows.append(Row(label=label, run=name, series=series, value=steps, against=against))
    growing = runs.baseline(tag="steps-growing", attack={"first_steps": 1})
    rows.append(Row(label=f"1 step, growing to {most}", run=growing, against=runs.baseline_label))
    return Design(rows=(_baseline(runs), *rows), axis="steps of the training's adversary")


def methods(runs: StudyRuns) -> Design:
    """All methods under one budget: the same epochs, images and teachers, a robust one and a natural one."""
    rows = [
        Row(label=name, run=runs.student("", method=name), against=runs.baseline_label)
        for name in METHODS
        if name != runs.baseline_label
    ]
    return Design(rows=(_baseline(runs), *rows))


def student_width(runs: StudyRuns) -> Design:
    """How small the student may be: a quarter, half and all of its width, beside the baseline; one teacher for all.

    The teacher has the student's radius: a weaker one may fail on the adversarial images that it is shown.
    """
    teacher, rows = f"{runs.teacher(share=1.0)}@best", []
    for width in sorted({max(1, round(share * runs.width)) for share in _WIDTHS}):
        sized = runs.of_width(width)
        plain = Row(
            label=f"{runs.baseline_label}, width {width}",
            run=sized.baseline(),
            series=runs.baseline_label,
            value=width,
        )
        label = f"{runs.method}, width {width}"
        run = sized.student("teacher-eps-1", [teacher])
        student = Row(label=label, run=run, series=runs.method, value=width, against=plain.label)
        rows += [plain, student]
    return Design(rows=tuple(rows), axis="width of the student")


def label_noise(runs: StudyRuns) -> Design:
    """Wrong training labels, 0 to 40 %: the baseline and the student, whose teacher has the same wrong labels."""
    rows = []
    for noise in _NOISE:
        plain = f"{runs.baseline_label}, {noise:.0%} wrong"
        rows.append(Row(label=plain, run=runs.baseline(noise), series=runs.baseline_label, value=noise))
        name = runs.student("", noise=noise)
        rows.append(
            Row(label=f"{runs.method}, {noise:.0%} wrong", run=name, series=runs.method, value=noise, against=plain)
        )
    return Design(rows=tuple(rows), axis="share of wrong training labels")


def memorisation(runs: StudyRuns, *, folds: int = 3, partitions: int = 3) -> Design:
    """What is known by heart: what the baseline and the student gain on each image from training on it.

    Each is trained once on everything, and `partitions` times on all but each of `folds` random folds, its teacher on
    the same images. `--study.folds` is at least 2: the share trained on is 1 − 1/folds.
    """
    if folds < 2:
        raise ConfigError(f"--study.folds is {folds}: expected at least 2, or nothing would be left to train on")
    parts = [runs.without(fold, folds) for fold in range(folds * partitions)]
    student = Row(label=runs.method, run=runs.student(""), against=runs.baseline_label)
    return Design(
        rows=(_baseline(runs), student),
        subsets=(
            Subsets(row=runs.baseline_label, runs=tuple(part.baseline() for part in parts), folds=folds),
            Subsets(row=student.label, runs=tuple(part.student("") for part in parts), folds=folds),
        ),
    )


STUDIES: dict[str, Callable[..., Design]] = {
    "guidelines": guidelines,
    "alpha": alpha,
    "teacher-age": teacher_age,
    "ensemble-seeds": ensemble_seeds,
    "ensemble-ages": ensemble_ages,
    "teacher-eps": teacher_eps,
    "attack-steps": attack_steps,
    "methods": methods,
    "student-width": student_width,
    "label-noise": label_noise,
    "memorisation": memorisation,
}
OF_NO_METHOD = (methods, attack_steps)
"""Those that take no --method: their students have all of them, or none."""


def _baseline(runs: StudyRuns) -> Row:
    return Row(label=runs.baseline_label, run=runs.baseline())


def _point(runs: StudyRuns, label: str, run: str, value: float) -> Row:
    return Row(label=label, run=run, series=runs.method, value=value, against=runs.baseline_label)


def _several(runs: StudyRuns, count: int, run: str) -> Row:
    return _point(runs, f"{count} teacher{'s' * (count > 1)}", run, count)
