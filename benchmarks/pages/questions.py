"""The comparisons that each table of docs/results asks about."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from paired import Arm, Comparison, Tested, test

CIFAR = "studies-cifar10-2026-11-24/guidelines-{}-runs.csv"
CIFAR_AGAIN = "studies-cifar10-2026-11-29/{}.csv"
FASHION = "studies-fashion-mnist-2026-11-24/guidelines-{}-runs.csv"
FASHION_PGD = "studies-fashion-mnist-2026-11-23/{}-{}-runs.csv"
FASHION_CLIPPED = "studies-fashion-mnist-2026-11-23/clipped/{}-{}-runs.csv"
FASHION_WIDTH = "studies-fashion-mnist-2026-11-24/student-width-{}-runs.csv"
DIGITS = "studies-digits-2026-11-24/guidelines-{}-runs.csv"
DIGITS_PGD = "studies-digits-2026-11-23/{}-{}-runs.csv"
FIVE_SEEDS = "digits-seeds-2026-11-30.json"
FIVE_SEEDS_IMAGES = "digits-seeds-2026-11-30-images.json"
SEARCH = "recipe-search-2026-11-24.json"
PUBLIC = "studies-cifar10-2026-11-24/public-teachers.json"

GUIDELINES = {"CIFAR-10 (5,000)": CIFAR, "Fashion-MNIST (500)": FASHION, "digits (250)": DIGITS}
"""The three data sets of the guideline studies, all under AutoAttack, three seeds each."""


def within(data: str, file: str, first: str, second: str, label: str, column: str = "robust_accuracy") -> Comparison:
    """Compare two rows of one file."""
    return Comparison(label=label, data=data, first=Arm(file, first), second=Arm(file, second), column=column)


def guidelines(
    first: str, second: str, label: str, *, method: str = "akd", column: str = "robust_accuracy"
) -> Iterator[Comparison]:
    """Compare two rows of the guideline studies on each data set; a row may contain {} for the method."""
    for data, file in GUIDELINES.items():
        name = file.format(method)
        yield within(data, name, first.format(method), second.format(method), label, column)


WEAK, LAST, THREE, FULL, ORDINARY = (
    "{}, one weak teacher", "{}, its last epoch", "{}, three of them", "{}, one of full radius", "{}, an ordinary one",
)  # fmt: skip

WIDTH_16 = FASHION_WIDTH.format("akd")


FIVE_SEEDS_COLUMNS = {
    "robust_accuracy": "robust",
    "clean_accuracy": "clean",
    "ece_adversarial": "ECE under attack",
    "ece_clean": "ECE clean",
}
FIVE_SEEDS_DIFFERENCES = [
    within("digits (250), five seeds", FIVE_SEEDS, "akd", row, f"{of}: AKD − {name}", column)
    for column, of in FIVE_SEEDS_COLUMNS.items()
    for row, name in (("at", "PGD-AT"), ("at-ema", "PGD-AT + EMA"))
]
FIVE_SEEDS_AVERAGED = [
    within("digits (250), five seeds", FIVE_SEEDS, "akd-ema", row, f"{of}: AKD + EMA − {name}", column)
    for column, of in FIVE_SEEDS_COLUMNS.items()
    for row, name in (("akd", "AKD"), ("at-ema", "PGD-AT + EMA"))
]
"""Do averaged weights help a student that has teachers?"""


def over_pgd_at(column: str) -> list[Comparison]:
    """AKD beside PGD-AT on the parts of the data sets, with what cures overfitting besides, and on all images."""
    all_cifar = CIFAR_AGAIN.format("all-images-1000-test-images")
    return [
        *guidelines(WEAK, "at", "AKD, one teacher − PGD-AT", column=column),
        *guidelines(THREE, "at", "AKD, three teachers − PGD-AT", column=column),
        Comparison(
            label="AKD, three teachers − PGD-AT, both with crops and EMA", data="CIFAR-10 (5,000)",
            first=Arm(SEARCH, "what was found"), second=Arm(SEARCH, "PGD-AT with what was found"), column=column,
        ),
        Comparison(
            label="AKD, one teacher − PGD-AT", data="CIFAR-10 (all)", first=Arm(all_cifar, "akd-teacher-eps-1"),
            second=Arm(all_cifar, "at"), column=column, checkpoints=("best",),
        ),
        Comparison(
            label="AKD, one teacher − PGD-AT", data="Fashion-MNIST (all)", first=Arm(WIDTH_16, "akd, width 16"),
            second=Arm(WIDTH_16, "at, width 16"), column=column, checkpoints=("best",),
        ),
    ]  # fmt: skip


ENSEMBLES = [
    *guidelines(THREE, WEAK, "three teachers − one"),
    *(
        within(data, file, "5 teachers", "1 teacher", label)
        for data, file, label in (
            ("CIFAR-10 (5,000; 300 test images)", CIFAR_AGAIN.format("ensemble-seeds-akd-runs"), "five teachers − one"),
            ("Fashion-MNIST (500; PGD-20)", FASHION_PGD.format("ensemble-seeds", "akd"), "five teachers − one"),
            ("digits (250; PGD)", DIGITS_PGD.format("ensemble-seeds", "akd"), "five teachers − one"),
            ("Fashion-MNIST (500; PGD-20)", FASHION_PGD.format("ensemble-ages", "akd"), "five ages − the best epoch"),
            ("digits (250; PGD)", DIGITS_PGD.format("ensemble-ages", "akd"), "five ages − the best epoch"),
        )
    ),
]

WEAK_TEACHERS = [
    *guidelines(WEAK, FULL, "three quarters − all of the radius"),
    *guidelines(WEAK, ORDINARY, "three quarters − none of it (ordinary training)"),
    *guidelines(ORDINARY, "at", "ordinary teacher − no teacher"),
]

RUINED = [
    Comparison(
        label=f"student of width {width}",
        data="Fashion-MNIST (all)",
        first=Arm(FASHION_WIDTH.format("akd-weak-teacher"), f"akd, width {width}"),
        second=Arm(WIDTH_16, f"akd, width {width}"),
    )
    for width in (4, 8, 16)
]


def over_calibration(column: str) -> list[Comparison]:
    """AKD beside PGD-AT, by calibration."""
    return [
        *guidelines(WEAK, "at", "AKD, one teacher − PGD-AT", column=column),
        *guidelines(THREE, "at", "AKD, three teachers − PGD-AT", column=column),
    ]


def teacher_age(method: str, name: str, column: str) -> Iterator[Comparison]:
    """The teacher's best epoch beside its last one, for a method, on the three data sets."""
    yield within("CIFAR-10 (5,000)", CIFAR.format(method), WEAK.format(method), LAST.format(method), name, column)
    folder = FASHION_CLIPPED if method == "ard" else FASHION_PGD
    for data, files in (("Fashion-MNIST (500; PGD-20)", folder), ("digits (250; PGD)", DIGITS_PGD)):
        ages = ("teacher's best epoch", "teacher's last epoch")
        yield within(data, files.format("teacher-age", method), *ages, name, column)


def carried_over() -> Iterator[Comparison]:
    """The guidelines with ARD and RSLAD in the place of AKD."""
    for method, name in (("ard", "ARD"), ("rslad", "RSLAD")):
        cifar = CIFAR.format(method)
        weak, three, full = (row.format(method) for row in (WEAK, THREE, FULL))
        yield from teacher_age(method, f"{name}: teacher's best epoch − its last", "robust_accuracy")
        for study, first, second, cifar_rows, label in (
            ("ensemble-seeds", "3 teachers", "1 teacher", (three, weak), f"{name}: three teachers − one"),
            ("teacher-eps", "teacher's eps × 0.75", "teacher's eps × 1", (weak, full),
             f"{name}: three quarters − all of the radius"),
        ):  # fmt: skip
            yield within("CIFAR-10 (5,000)", cifar, *cifar_rows, label)
            for data, files in (("Fashion-MNIST (500; PGD-20)", FASHION_PGD), ("digits (250; PGD)", DIGITS_PGD)):
                yield within(data, files.format(study, method), first, second, label)


def early_stopping_calibration() -> Iterator[Comparison]:
    """What the teacher's age does to the student's calibration under attack."""
    yield from guidelines(WEAK, LAST, "AKD", column="ece_adversarial")
    yield from teacher_age("ard", "ARD", "ece_adversarial")
    yield from teacher_age("rslad", "RSLAD", "ece_adversarial")


ALL_IMAGES = [
    Comparison(
        label=f"{name} − PGD-AT, {of}", data="CIFAR-10 (all)",
        first=Arm(CIFAR_AGAIN.format("all-images-1000-test-images"), row),
        second=Arm(CIFAR_AGAIN.format("all-images-1000-test-images"), "at"),
        column=column, checkpoints=("best",),
    )
    for column, of in (("robust_accuracy", "robust"), ("clean_accuracy", "clean"))
    for row, name in (("akd-teacher-eps-1", "AKD"), ("rslad-teacher-eps-1", "RSLAD"), ("trades", "TRADES"))
]  # fmt: skip

STEPS = {
    "CIFAR-10 (5,000)": CIFAR_AGAIN.format("attack-steps-runs"),
    "Fashion-MNIST (500)": "studies-fashion-mnist-2026-11-23/attack-steps-runs.csv",
}
ATTACK_STEPS = [
    within(data, file, row, "at", f"{row.replace(', growing', ' growing')} − 10 steps")
    for data, file in STEPS.items()
    for row in ("7 steps", "5 steps", "3 steps", "2 steps", "1 step", "1 step, growing to 10")
]

RECIPE = [
    Comparison(
        label=label, data="CIFAR-10 (5,000)", first=Arm(SEARCH, first), second=Arm(SEARCH, second), column=column
    )
    for column, of in (("robust_accuracy", "robust"), ("clean_accuracy", "clean"))
    for first, second, label in (
        ("PGD-AT with what was found", "the recipe", f"{of}: PGD-AT with crops and EMA − PGD-AT with flips"),
        ("what was found", "the recipe", f"{of}: AKD with crops and EMA − PGD-AT with flips"),
        ("what was found", "PGD-AT with what was found", f"{of}: AKD − PGD-AT, both with crops and EMA"),
    )
]

PUBLIC_TEACHERS = [
    Comparison(
        label=f"{of}: teacher is the {name} − PGD-AT", data="CIFAR-10 (5,000)", first=Arm(PUBLIC, row),
        second=Arm(CIFAR.format("akd"), "at"), column=column,
    )
    for column, of in (("robust_accuracy", "robust"), ("clean_accuracy", "clean"))
    for row, name in (("akd-wide", "certified CNN-A"), ("akd-sadv", "ResNet-2B2 with mixup"))
]  # fmt: skip

TRADES = list(guidelines("trades", "at", "TRADES − PGD-AT"))

SIZES = [
    Comparison(
        label=f"PGD-AT of width {width} − of width 16",
        data="Fashion-MNIST (all)",
        first=Arm(WIDTH_16, f"at, width {width}"),
        second=Arm(WIDTH_16, "at, width 16"),
        checkpoints=("best",),
    )
    for width in (4, 8)
]

METHODS_FILE = CIFAR_AGAIN.format("methods-runs")
METHODS = {
    "clean": ("clean", "none", ""),
    "kd": ("KD", "1", ""),
    "trades": ("TRADES", "none", ""),
    "mart": ("MART", "none", ""),
    "dkl": ("DKL", "none", "published with averaged weights; none here"),
    "akd": ("AKD", "1", ""),
    "ard": ("ARD", "1", ""),
    "rslad": ("RSLAD", "1", ""),
    "iad": ("IAD-I", "1", ""),
    "iad2": ("IAD-II", "2", ""),
    "kdswa": ("KD+SWA", "2", "without its average"),
    "kdswa*": ("KD+SWA", "2", "averaged, as published"),
    "adaad": ("AdaAD", "1", ""),
    "adaiad": ("AdaIAD", "1", ""),
    "mtard": ("MTARD", "2", ""),
    "igdm": ("IGDM", "1", ""),
    "saad": ("SAAD", "1", "without its average"),
    "saad*": ("SAAD", "1", "averaged, as published"),
    "fair_ard": ("Fair-ARD", "1", ""),
    "peerad": ("PeerAiD", "a peer", "`as_coded` false; published with averaged weights, none here"),
}
"""Rows of the study of all methods: name, teachers that were trained beforehand, remark; * is at averaged weights."""

ALL_METHODS = [
    Comparison(
        label=row, data="CIFAR-10 (5,000)", first=Arm(METHODS_FILE, row.rstrip("*")), second=Arm(METHODS_FILE, "at"),
        averaged=row.endswith("*"),
    )
    for row in METHODS
]  # fmt: skip

DYNAMICS = {
    "CIFAR-10": "changes-cifar10-2026-11-24.json",
    "Fashion-MNIST": "changes-fashion-mnist-2026-11-23.json",
    "digits": "changes-digits-2026-11-23.json",
}
"""What distillation changes in training: PGD-AT beside AKD from one weak teacher, three seeds."""

CHANGED = {
    "true labels: epoch learned": ("epoch in which it is learned, median", 1),
    "true labels: times forgotten": ("times forgotten", 2),
    "true labels: right at the end": ("true labels: right at the end", 3),
    "wrong labels: predicted at the end": ("wrong labels: predicted at the end", 3),
    "right at the end, easy for the baseline": ("right at the end: easy for PGD-AT", 3),
    "right at the end, ambiguous for the baseline": ("… ambiguous", 3),
    "right at the end, hard for the baseline": ("… hard", 3),
    "right at the end, unlearnable for the baseline": ("… robustly unlearnable", 3),
    "gap between training and held-out, last epoch": ("gap between training and validation, last epoch", 3),
}
"""What is compared in training: the column of the results, its name on the page, and its decimals."""
CHANGES = [
    Comparison(
        label=column,
        data=data,
        first=Arm(file, "AKD"),
        second=Arm(file, "PGD-AT"),
        column=column,
        checkpoints=("last",),
    )
    for data, file in DYNAMICS.items()
    for column in CHANGED
    if not (data == "CIFAR-10" and column.startswith("wrong"))
]

FAMILIES = {
    "five-seeds-differences": FIVE_SEEDS_DIFFERENCES,
    "five-seeds-averaged": FIVE_SEEDS_AVERAGED,
    "akd-over-pgd-at": over_pgd_at("robust_accuracy"),
    "akd-over-pgd-at-clean": over_pgd_at("clean_accuracy"),
    "early-stopping": list(guidelines(WEAK, LAST, "teacher's best epoch − its last")),
    "early-stopping-calibration": list(early_stopping_calibration()),
    "ensembles": ENSEMBLES,
    "weak-teachers": WEAK_TEACHERS,
    "ruined": RUINED,
    "calibration": over_calibration("ece_adversarial"),
    "calibration-clean": over_calibration("ece_clean"),
    "carried-over": list(carried_over()),
    "dynamics": CHANGES,
    "methods": ALL_METHODS,
    "mislabelled": TRADES,
    "all-images": ALL_IMAGES,
    "attack-steps": ATTACK_STEPS,
    "recipe": RECIPE,
    "public-teachers": PUBLIC_TEACHERS,
    "sizes": SIZES,
}
"""The tables of comparisons. Each is one family: Holm's correction counts all its differences at both epochs."""


@cache
def results(family: str) -> list[Tested]:
    """Return the differences of a table, with Holm's correction over all of them."""
    return test(FAMILIES[family])
