"""The built-in studies: each is a function from the runs of one seed to the rows of the study's table."""

from __future__ import annotations

from collections.abc import Callable

from robustill.core.formatting import slug
from robustill.core.validation import check_integer
from robustill.methods import METHODS
from robustill.studies.design import Design, Row, StudyRuns, Subsets

_MIXING_WEIGHTS = (0.2, 0.4, 0.6, 0.8, 1.0)
_EPS_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_NOISE_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4)
_MAX_TEACHERS = 5
_ATTACK_STEPS = (1, 2, 3, 5, 7)
_WIDTH_SHARES = (0.25, 0.5, 1.0)
_TEMPERATURES = (2.0, 4.0)
# The usual 0.1 is a weaker baseline: on the digits, 0.4 gave most of the calibration that AKD gave (docs/results).
_LABEL_SMOOTHING = 0.4


def alpha(runs: StudyRuns) -> Design:
    """The weight of the teacher against the label, from 0.2 to 1: AKD's alpha, or `mix` of ARD, RSLAD and IAD."""
    option = runs.mixing_option()
    # At weight 0 AKD is the baseline itself; the other methods still differ from it.
    values = _MIXING_WEIGHTS if option == "alpha" else (0.0, *_MIXING_WEIGHTS)
    rows = [
        _point(runs, f"{option} {value:g}", runs.student(f"{option}-{value:g}", options={option: value}), value)
        for value in values
    ]
    return Design(rows=(_baseline(runs), *rows), axis=f"{option}: weight of the teacher")


def teacher_age(runs: StudyRuns) -> Design:
    """The age of the teacher: each saved epoch of its training, its last one, and its best one on validation images."""
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
    """Ensembles of 1 to 5 teachers with different seeds, each at its best epoch."""
    teachers = [f"{runs.teacher(number)}@best" for number in range(_MAX_TEACHERS)]
    rows = [
        _ensemble_row(runs, count, runs.student(f"seeds-{count}", teachers[:count]))
        for count in range(1, _MAX_TEACHERS + 1)
    ]
    return Design(rows=(_baseline(runs), *rows), axis="number of teachers (seeds)")


def ensemble_ages(runs: StudyRuns) -> Design:
    """Ensembles of 1 to 5 epochs of one teacher: its best epoch, then those saved before its last, latest first."""
    teacher = runs.teacher()
    ages = [f"{teacher}@best", *(f"{teacher}@epoch-{epoch}" for epoch in reversed(runs.ages))][:_MAX_TEACHERS]
    rows = [
        _ensemble_row(runs, count, runs.student(f"ages-{count}", ages[:count])) for count in range(1, len(ages) + 1)
    ]
    return Design(rows=(_baseline(runs), *rows), axis="number of teachers (ages of one run)")


def why_early_stopping(runs: StudyRuns) -> Design:
    """What an early-stopped teacher has that its last epoch lacks: temperatures and two controls, for AKD.

    Students of the last epoch are taught at temperatures of 1, 2 and 4. Students of the best and of the last epoch are
    also taught with the probabilities of the wrong classes permuted, and with distributions of the same entropy that
    do not distinguish the wrong classes (`method.wrong_classes`). All are compared with the student of the last epoch
    as it is, and those of the best epoch with the student of the best epoch.
    """
    teacher, baseline = runs.teacher(), _baseline(runs)
    last = Row(label="last epoch", run=runs.student("age-last", [f"{teacher}@last"]), against=baseline.label)
    best = Row(label="best epoch", run=runs.student("age-best", [f"{teacher}@best"]), against=last.label)
    rows = [baseline, last, best]
    for temperature in _TEMPERATURES:
        name = runs.student(f"last-t-{temperature:g}", [f"{teacher}@last"], options={"temperature": temperature})
        rows.append(Row(label=f"last epoch, temperature {temperature:g}", run=name, against=last.label))
    for row, age in ((last, "last"), (best, "best")):
        for control, words in (("permuted", "permuted"), ("even", "alike")):
            options = {"wrong_classes": control}
            name = runs.student(f"{age}-{control}", [f"{teacher}@{age}"], options=options)
            rows.append(Row(label=f"{row.label}, wrong classes {words}", run=name, against=row.label))
    return Design(rows=tuple(rows))


def teacher_eps(runs: StudyRuns) -> Design:
    """The radius of the teacher's threat, from 0 (ordinary training) to the student's own."""
    rows = []
    for share in _EPS_SHARES:
        name = runs.student(f"teacher-eps-{share:g}", [f"{runs.teacher(share=share)}@best"])
        rows.append(_point(runs, f"teacher's eps × {share:g}", name, share))
    return Design(rows=(_baseline(runs), *rows), axis="teacher's eps / student's eps")


def guidelines(runs: StudyRuns) -> Design:
    """The choice of the teacher in short: its best or last epoch, one or three, its radius; and rivals without one.

    The student of the first teacher's best epoch is compared with the baseline, seed by seed, and all other students
    with that one. The rivals are label smoothing, the recipe's own best epoch as the teacher, the recipe with as many
    epochs as that student and its teacher cost together, and TRADES; `--optim.ema 0.99` adds the averages of all
    weights.
    """
    baseline, first = _baseline(runs), runs.teacher()
    best = Row(label=f"{runs.method}, one weak teacher", run=runs.student(""), against=baseline.label)
    others = {
        "its last epoch": runs.student("age-last", [f"{first}@last"]),
        "three of them": runs.student("seeds-3", [f"{runs.teacher(number)}@best" for number in range(3)]),
        "one of full radius": runs.student("teacher-eps-1", [f"{runs.teacher(share=1.0)}@best"]),
        "an ordinary one": runs.student("teacher-eps-0", [f"{runs.teacher(share=0.0)}@best"]),
    }
    rows = [Row(label=f"{runs.method}, {label}", run=run, against=best.label) for label, run in others.items()]
    baselines: tuple[Row, ...] = (baseline, *rivals(runs))
    if baseline.label != "trades":
        baselines += (Row(label="trades", run=runs.student("", method="trades"), against=baseline.label),)
    return Design(rows=(*baselines, best, *rows))


def attack_steps(runs: StudyRuns) -> Design:
    """The steps of the training attack: 1 to 7, and growing from 1; the accuracy that a cheaper attack costs.

    The step size is 2.5·eps/steps (Madry et al. 2018), or 1.25·eps for a single step (Wong et al. 2020).
    """
    eps = float(runs.recipe["threat"]["eps"])
    max_steps = int(runs.recipe["attack"]["steps"])
    baseline = runs.baseline_label
    rows = []
    for steps in _ATTACK_STEPS:
        if steps >= max_steps:
            continue
        step_size = eps * (1.25 if steps == 1 else 2.5 / steps)
        attack = {"steps": steps, "step_size": step_size, "first_steps": None}
        name = runs.baseline(tag=f"steps-{steps}", attack=attack)
        label = "1 step" if steps == 1 else f"{steps} steps"
        rows.append(Row(label=label, run=name, series=baseline, value=steps, against=baseline))
    growing = runs.baseline(tag="steps-growing", attack={"first_steps": 1})
    rows.append(Row(label=f"1 step, growing to {max_steps}", run=growing, against=baseline))
    return Design(rows=(_baseline(runs), *rows), axis="steps of the training attack")


def methods(runs: StudyRuns) -> Design:
    """All methods under one budget: the same epochs, images, robust teacher and natural teacher.

    Beside the recipe stand its label smoothing, AKD with the recipe's own best epoch as the teacher, and the recipe
    with as many epochs as AKD and its teacher cost together; `--optim.ema 0.99` adds the averages of all weights.
    """
    rows = [
        Row(label=name, run=runs.student("", method=name), against=runs.baseline_label)
        for name in METHODS
        if name != runs.baseline_label
    ]
    return Design(rows=(_baseline(runs), *rivals(runs), *rows))


def entry(runs: StudyRuns) -> Design:
    """One method beside the recipe itself, with the teachers of its roles: what a row of the board is made of."""
    baseline, options = _baseline(runs), runs.method_options
    if runs.method == runs.baseline_label and not options:
        return Design(rows=(baseline,))
    tag = "-".join(f"{key}-{value}" for key, value in options.items())
    run = runs.student(slug(tag), method=runs.method, options=options)
    label = f"{runs.method}, {tag}" if tag else runs.method
    return Design(rows=(baseline, Row(label=label, run=run, against=baseline.label)))


def student_width(runs: StudyRuns) -> Design:
    """The size of the student: a quarter, half and all of its width, each with its baseline; one teacher for all.

    The teacher is trained with the student's radius, since a weaker one may fail on the student's adversarial images.
    Each network is also exported in float32 and in int8 and attacked as it is shipped, if the extra `export` is there.
    """
    teacher = f"{runs.teacher(share=1.0)}@best"
    rows = []
    widths = [share * runs.width for share in _WIDTH_SHARES]
    if isinstance(runs.width, int):
        widths = [max(1, round(width)) for width in widths]
    for width in sorted(set(widths)):
        sized = runs.with_width(width)
        plain = Row(
            label=f"{runs.baseline_label}, width {width:g}",
            run=sized.baseline(),
            series=runs.baseline_label,
            value=width,
        )
        label = f"{runs.method}, width {width:g}"
        run = sized.student("teacher-eps-1", [teacher])
        student = Row(label=label, run=run, series=runs.method, value=width, against=plain.label)
        rows += [plain, student]
    return Design(rows=tuple(rows), axis="width of the student", ship=True)


def label_noise(runs: StudyRuns) -> Design:
    """Noisy training labels, 0 to 40 %: the baseline and the student, whose teacher has the same noisy labels."""
    rows = []
    for noise in _NOISE_SHARES:
        plain = f"{runs.baseline_label}, {noise:.0%} wrong"
        rows.append(Row(label=plain, run=runs.baseline(noise), series=runs.baseline_label, value=noise))
        name = runs.student("", noise=noise)
        rows.append(
            Row(label=f"{runs.method}, {noise:.0%} wrong", run=name, series=runs.method, value=noise, against=plain)
        )
    return Design(rows=tuple(rows), axis="share of wrong training labels")


def memorisation(runs: StudyRuns, *, folds: int = 3, partitions: int = 3) -> Design:
    """Memorisation: how much more often an image is classified correctly if it was trained on, per image.

    The baseline and the student are trained once on all images, and for each of `partitions` random partitions once
    without each of its `folds` folds, their teachers on the same images. `--study.folds` is at least 2; each of these
    trainings has a share of 1 − 1/folds of the images.
    """
    check_integer("--study.folds", folds, at_least=2)  # one fold would leave no image to train on
    check_integer("--study.partitions", partitions, at_least=1)
    parts = [runs.without_fold(fold, folds) for fold in range(folds * partitions)]
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
    "why-early-stopping": why_early_stopping,
    "ensemble-seeds": ensemble_seeds,
    "ensemble-ages": ensemble_ages,
    "teacher-eps": teacher_eps,
    "attack-steps": attack_steps,
    "methods": methods,
    "entry": entry,
    "student-width": student_width,
    "label-noise": label_noise,
    "memorisation": memorisation,
}
WITHOUT_METHOD = (methods, attack_steps, why_early_stopping)
"""The studies that take no --method: one trains students with every method, one trains none, and one is about AKD."""


def _baseline(runs: StudyRuns) -> Row:
    return Row(label=runs.baseline_label, run=runs.baseline())


def rivals(runs: StudyRuns) -> tuple[Row, ...]:
    """Return the rows of what needs no other teacher: label smoothing, AKD from the recipe's own best epoch, and time.

    The last one is the recipe with as many epochs as the study's student and its teacher cost together.
    """
    baseline = runs.baseline_label
    # A study of AKD has its options.
    method = None if runs.method == "akd" else "akd"
    smoothed = runs.baseline(tag="smoothing", optim={"label_smoothing": _LABEL_SMOOTHING})
    own = runs.student("self-best", [f"{runs.baseline()}@best"], method=method)
    longer = runs.equal_compute(runs.student(""))
    return (
        Row(label=f"{baseline}, label smoothing {_LABEL_SMOOTHING:g}", run=smoothed, against=baseline),
        Row(label="akd, its own best epoch", run=own, against=baseline),
        Row(label=f"{baseline}, with the compute of {runs.method}", run=longer, against=baseline),
    )


def _point(runs: StudyRuns, label: str, run: str, value: float) -> Row:
    return Row(label=label, run=run, series=runs.method, value=value, against=runs.baseline_label)


def _ensemble_row(runs: StudyRuns, count: int, run: str) -> Row:
    label = "1 teacher" if count == 1 else f"{count} teachers"
    return _point(runs, label, run, count)
