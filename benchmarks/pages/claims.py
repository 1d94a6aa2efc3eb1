"""The first table of docs/results: what was claimed, and what was seen of it here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from paired import Tested
from questions import METHODS, results
from tables import (
    BOARD,
    WHY_EARLY_STOPPING,
    WHY_EARLY_STOPPING_ON_CIFAR10,
    compared_with_akd,
    markdown,
    median_round,
    points,
    read_json,
    recorded,
    study_rows,
)

from robustill.analysis.statistics import SeedDifference
from robustill.studies.board import read_rows
from robustill.studies.board_table import compared
from robustill.studies.tracks import CHECKPOINTS


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement, and where it was put to the test.

    Args:
        text: the statement; "paper" or "ours" says whose it is.
        page: of docs/results.
        family: the table whose correction counts.
        only: says which rows of that table belong to the claim.
        sign: 1 if the claim says that the difference is positive, else −1.
    """

    text: str
    page: str
    family: str
    only: Callable[[Tested], bool] = lambda _: True
    sign: int = 1


def labelled(*labels: str) -> Callable[[Tested], bool]:
    """Return a condition: the row has one of these labels."""
    return lambda tested: tested.comparison.label in labels


PAPER = (
    Claim(text="AKD is more robust than PGD-AT: digits", page="akd-over-pgd-at", family="five-seeds-differences",
          only=labelled("robust: AKD − PGD-AT")),
    Claim(text="… on CIFAR-10 and Fashion-MNIST", page="akd-over-pgd-at", family="akd-over-pgd-at",
          only=lambda each: each.comparison.label == "AKD, one teacher − PGD-AT"
          and each.comparison.data in ("CIFAR-10 (5,000)", "Fashion-MNIST (500)")),
    Claim(text="AKD is more accurate on clean images: digits", page="akd-over-pgd-at", family="five-seeds-differences",
          only=labelled("clean: AKD − PGD-AT")),
    Claim(text="… on CIFAR-10 and Fashion-MNIST", page="akd-over-pgd-at", family="akd-over-pgd-at-clean",
          only=lambda each: each.comparison.label == "AKD, one teacher − PGD-AT"
          and each.comparison.data in ("CIFAR-10 (5,000)", "Fashion-MNIST (500)")),
    Claim(text="AKD is better calibrated under attack: digits", page="akd-over-pgd-at", family="five-seeds-differences",
          sign=-1, only=labelled("ECE under attack: AKD − PGD-AT")),
    Claim(text="… on three data sets, three seeds", page="calibration", family="calibration", sign=-1,
          only=labelled("AKD, three teachers − PGD-AT")),
    Claim(text="AKD is better calibrated on clean images: digits", page="akd-over-pgd-at", sign=-1,
          family="five-seeds-differences", only=labelled("ECE clean: AKD − PGD-AT")),
    Claim(text="… on three data sets, three seeds", page="calibration", family="calibration-clean", sign=-1,
          only=labelled("AKD, three teachers − PGD-AT")),
    Claim(text="An early-stopped teacher makes a more robust student than its last epoch", page="early-stopping",
          family="early-stopping"),
    Claim(text="… and one that is better calibrated under attack", page="early-stopping",
          family="early-stopping-calibration", sign=-1, only=labelled("AKD")),
    Claim(text="Three teachers make a more robust student than one", page="ensembles", family="ensembles",
          only=labelled("three teachers − one")),
    Claim(text="A weak teacher makes a more robust student than one of the full radius", page="weak-teachers",
          family="weak-teachers", only=labelled("three quarters − all of the radius")),
    Claim(text="Early stopping carries over to RSLAD", page="carried-over", family="carried-over",
          only=labelled("RSLAD: teacher's best epoch − its last")),
    Claim(text="… and to ARD", page="carried-over", family="carried-over",
          only=labelled("ARD: teacher's best epoch − its last")),
    Claim(text="… by calibration under attack, RSLAD and ARD", page="early-stopping",
          family="early-stopping-calibration", sign=-1, only=labelled("ARD", "RSLAD")),
    Claim(text="AKD memorises fewer wrong labels", page="hard-samples", family="dynamics", sign=-1,
          only=labelled("wrong labels: predicted at the end")),
    Claim(text="AKD fits fewer of the hard images", page="hard-samples", family="dynamics", sign=-1,
          only=labelled("right at the end, hard for the baseline")),
)  # fmt: skip

OURS = (
    Claim(text="AKD is more robust than PGD-AT with averaged weights: digits", page="akd-over-pgd-at",
          family="five-seeds-differences", only=labelled("robust: AKD − PGD-AT + EMA")),
    Claim(text="Where PGD-AT has crops and averaged weights, teachers still add robustness", page="recipe",
          family="recipe", only=labelled("robust: AKD − PGD-AT, both with crops and EMA")),
    Claim(text="Where nothing is overfitted, a teacher still adds robustness", page="all-images",
          family="akd-over-pgd-at", only=lambda each: each.comparison.data.endswith("(all)")),
    Claim(text="TRADES is more robust than PGD-AT where a fifth of the labels is wrong", page="methods",
          family="mislabelled", only=lambda each: not each.comparison.data.startswith("CIFAR")),
    Claim(text="A teacher of too small a radius ruins its student", page="weak-teachers", family="ruined", sign=-1),
    Claim(text="One attack step in training costs robustness", page="attack-steps", family="attack-steps", sign=-1,
          only=labelled("1 step − 10 steps")),
    Claim(text="Three attack steps cost robustness", page="attack-steps", family="attack-steps", sign=-1,
          only=labelled("3 steps − 10 steps")),
    Claim(text="Networks that others trained on ten times the images teach more than none", page="public-teachers",
          family="public-teachers", only=lambda each: each.comparison.label.startswith("robust")),
)  # fmt: skip


def verdict(claim: Claim, rows: Iterable[Tested], checkpoint: str) -> str:
    """Return what was seen at a checkpoint.

    Seen: a difference of the claim's sign survives Holm's correction over its table, and none of the other sign does.
    Undecided: none survives, but most means have the claim's sign. Not seen: they have not. The pairs are the seeds of
    all data sets, and how many of them have the claim's sign.
    """
    there = [each for each in rows if checkpoint in each.differences]
    agree = [each for each in there if claim.sign * each.differences[checkpoint].mean > 0]
    decided = [each for each in there if each.survives(checkpoint)]
    for_it = [each.comparison.data.partition(" (")[0] for each in decided if each in agree]
    against = [each.comparison.data.partition(" (")[0] for each in decided if each not in agree]
    if for_it or against:
        words = (["seen: " + ", ".join(dict.fromkeys(for_it))] if for_it else []) + (
            ["the opposite: " + ", ".join(dict.fromkeys(against))] if against else []
        )
        return "; ".join(words)
    by_seed = [claim.sign * one > 0 for each in there for one in each.differences[checkpoint].by_seed]
    word = "undecided" if 2 * len(agree) > len(there) else "not seen"
    return f"{word} ({sum(by_seed)} of {len(by_seed)} pairs)"


def row(claim: Claim) -> list[str]:
    """Return a claim as a row of the table."""
    rows = [each for each in results(claim.family) if claim.only(each)]
    checkpoints = [name for name in ("best", "last") if any(name in each.differences for each in rows)]
    verdicts = {name: verdict(claim, rows, name) for name in checkpoints}
    if len(set(verdicts.values())) == 1:
        words = verdicts[checkpoints[0]]
    else:
        words = "<br>".join(f"{name}: {text}" for name, text in verdicts.items())
    several = len({each.comparison.label for each in rows}) > 1
    lines = []
    for each in rows:
        found = (each.differences[name] for name in checkpoints if name in each.differences)
        numbers = " / ".join(f"{points(one.mean)} [{points(one.low)}, {points(one.high)}]" for one in found)
        name = f"{each.comparison.data}, {short(each.comparison.label)}" if several else each.comparison.data
        lines.append(f"{name}: {numbers}")
    return [claim.text, words, "<br>".join(lines), f"[{claim.page}]({claim.page}.md)"]


def short(label: str) -> str:
    """Return what tells a row from the others of its claim."""
    return label.removeprefix("robust: teacher is the ").removesuffix(" − PGD-AT").removesuffix(", one teacher")


def methods() -> list[str]:
    """Return the row of the nineteen methods."""
    every = [(each, name, one) for each in results("methods") for name, one in each.differences.items()]
    gains = sorted(((one.mean, METHODS[each.comparison.label][0], name) for each, name, one in every), reverse=True)
    surviving = [
        f"{METHODS[each.comparison.label][0]}, {name} epoch: {points(one.mean)}"
        for each, name, one in every
        if each.survives(name)
    ]
    largest = ", ".join(f"{method} {points(mean)} ({name})" for mean, method, name in gains[:2])
    return [
        "One of nineteen methods is more robust than PGD-AT",
        "seen" if any(each.survives(name) and one.mean > 0 for each, name, one in every) else "undecided",
        f"CIFAR-10 (5,000): largest means {largest}; what survives Holm: {'; '.join(surviving)}",
        "[methods](methods.md)",
    ]  # fmt: skip


def decided(text: str, page: str, found: Mapping[str, Sequence[SeedDifference]]) -> list[str]:
    """Return a claim that differences in robust accuracy decide, which hold over seeds and images.

    Args:
        text: the claim.
        page: the page of its table.
        found: the differences at the best and at the last epoch, by a key of DATA.
    """
    verdicts: tuple[dict[str, list[str]], ...] = ({}, {})
    numbers = []
    for key, differences in found.items():
        data, images = DATA[key]
        numbers.append(
            f"{images}, {differences[0].num_seeds} seeds: "
            + " / ".join(f"{points(each.mean)} [{points(each.low)}, {points(each.high)}]" for each in differences)
        )
        for words, each in zip(verdicts, differences, strict=True):
            word = {"better": "seen", "worse": "the opposite", "noise": "undecided"}[each.verdict]
            words.setdefault(word, []).append(data)
    best, last = (
        "undecided"
        if list(words) == ["undecided"]
        else "; ".join(f"{word}: {', '.join(words[word])}" for word in words)
        for words in verdicts
    )
    return [
        text,
        best if best == last else f"best: {best}<br>last: {last}",
        "over seeds and images<br>" + "<br>".join(numbers),
        f"[{page}]({page}.md)",
    ]


DATA = {"digits": ("digits", "digits (250)"), "small": ("CIFAR-10", "CIFAR-10 (5,000)")}


def of_why_early_stopping(text: str, row: str) -> list[str]:
    """Return a claim that a row of why-early-stopping decides, for the row that it was compared with."""
    files = {"digits": WHY_EARLY_STOPPING, "small": WHY_EARLY_STOPPING_ON_CIFAR10}
    return decided(
        text,
        "early-stopping",
        {key: [recorded(each) for each in study_rows(file) if each["row"] == row] for key, file in files.items()},
    )


def on_board(
    text: str, name: str, differences: Callable[[str], Mapping[tuple[str, str, str], SeedDifference]]
) -> list[str]:
    """Return a claim that the rows of a method on the board decide, by its robust accuracy on each track."""
    found = {
        track: [differences(track)[name, checkpoint, "robust_accuracy"] for checkpoint in CHECKPOINTS] for track in DATA
    }
    return decided(text, "rivals", found)


def compared_with_baseline(track: str) -> Mapping[tuple[str, str, str], SeedDifference]:
    """Return the rows of a track minus PGD-AT, both with averaged weights, corrected over the whole track."""
    return compared(read_rows(BOARD, track))


def of_the_board() -> list[list[str]]:
    """Return what the board decides, on digits and on CIFAR-10."""
    return [
        on_board("AKD is more robust than PGD-AT, both with averaged weights", "AKD + EMA",
                 compared_with_baseline),
        on_board("RSLAD is, too", "RSLAD + EMA", compared_with_baseline),
        on_board("TE, without a teacher, is, too", "TE + EMA", compared_with_baseline),
        on_board("TE is more robust than AKD", "TE + EMA", compared_with_akd),
    ]  # fmt: skip


def autoattack() -> list[str]:
    """Return the row of AutoAttack beside the authors' code."""
    images = differ = 0
    ratios = []
    for model in ("resnet8", "resnet18", *PUBLIC_NETWORKS):
        file = f"autoattack-{model}-2026-11-23.json"
        for threat in dict.fromkeys(each["threat"] for each in read_json(file)["results"]):
            median = median_round(file, threat, "exact")
            images += median["images"]
            differ += len(median["differ_from_authors"]["exact"])
            ratios.append(median["ratio_to_authors"]["exact"]["all"])
    return [
        "AutoAttack gives the verdicts of the authors' code, sooner", f"on {images - differ:,} of {images:,} images",
        f"{min(ratios):.1f} to {max(ratios):.1f} times as fast on {len(ratios)} networks and threats",
        "[performance](performance.md)",
    ]  # fmt: skip


PUBLIC_NETWORKS = [
    f"cifar10-{name}"
    for name in (
        "abcrown_cifar_cnn_a_adv4",
        "abcrown_cifar_wide",
        "abcrown_resnet2b",
        "mnbab_resnet_2b2_bn_mixup_sadv_8.0_bs128_lr-1",
    )
]


def claims() -> str:
    """Return the table of all claims."""
    head = ("claim", "verdict", "difference in points, best / last epoch [95 % over seeds]", "page")
    whose = (["**The paper's**", "", "", ""], ["**Ours**", "", "", ""])
    early = of_why_early_stopping(
        "An early-stopped teacher makes a more robust student than its last epoch: five seeds", "best epoch"
    )
    tempered = of_why_early_stopping(
        "A temperature of 4 gives the students of a teacher's last epoch what they lack", "last epoch, temperature 4"
    )
    rows = [
        whose[0],
        early,
        *map(row, PAPER),
        whose[1],
        tempered,
        *map(row, OURS),
        *of_the_board(),
        methods(),
        autoattack(),
    ]
    return markdown(head, rows)
