"""The tables of docs/results, as Markdown, from the files of benchmarks/results."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import teacher_ranking
from paired import RESULTS, Arm, Difference, Tested, flags, over_seeds, values
from questions import (
    CHANGED,
    CIFAR_AGAIN,
    DYNAMICS,
    FAMILIES,
    FIVE_SEEDS,
    FIVE_SEEDS_IMAGES,
    METHODS,
    METHODS_FILE,
    SEARCH,
    results,
)

from robustill.analysis.method_names import METHOD_NAMES
from robustill.analysis.statistics import SeedDifference, corrected, paired_over_seeds_and_images
from robustill.studies.board import read_rows
from robustill.studies.table import COMPARED, difference_of
from robustill.studies.tracks import CHECKPOINTS

DIGITS_STUDIES = "studies-digits-2026-11-30"
WHY_EARLY_STOPPING = f"{DIGITS_STUDIES}/why-early-stopping.csv"
WHY_EARLY_STOPPING_ON_CIFAR10 = "studies-cifar10-2026-11-30/why-early-stopping.csv"
GROWTH = "growth-2026-11-30.json"
BOARD = RESULTS.parents[1] / "docs" / "board"


def number(value: float, digits: int = 3) -> str:
    """Return a number with a proper minus sign; a zero has no sign."""
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def points(value: float) -> str:
    """Return a difference in points, signed."""
    text = f"{100 * value:+.1f}"
    return text.replace("-", "−") if float(text) else text[1:]


def p_text(p: float) -> str:
    """Return a p-value as a cell."""
    return "< 0.001" if p < 0.001 else "1" if p >= 0.995 else f"{p:.2g}"


def effect(each: Difference) -> str:
    """Return a difference with its standard deviation and 95 % interval, in points."""
    return f"{points(each.mean)} ± {100 * each.std:.1f} [{points(each.low)}, {points(each.high)}]"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("|  |", "| |").replace("|  |", "| |")


def cells(tested: Tested) -> list[str]:
    """Return, for the best and the last epoch, a difference and its corrected p-value; bold if it survives."""
    found = []
    for checkpoint in ("best", "last"):
        each = tested.differences.get(checkpoint)
        if each is None:
            found += ["", ""]
            continue
        text = effect(each)
        found += [f"**{text}**" if tested.survives(checkpoint) else text, p_text(tested.corrected[checkpoint])]
    return found


HEAD = ("best epoch: points ± SD [95 %]", "p, Holm", "last epoch: points ± SD [95 %]", "p, Holm")


def family(name: str) -> str:
    """Return the comparisons of one page."""
    rows = [
        [each.comparison.label, each.comparison.data, str(len(each.differences["best"].by_seed)), *cells(each)]
        for each in results(name)
    ]
    return markdown(("difference", "training images", "seeds", *HEAD), rows)


def mean_pair(arm: Arm, column: str, checkpoints: Sequence[str] = ("best", "last")) -> str:
    """Return the means at the best and the last epoch."""
    return " / ".join(number(over_seeds(values(arm, checkpoint, column))[0]) for checkpoint in checkpoints)


def mean_std_pair(arm: Arm, column: str, checkpoints: Sequence[str] = ("best", "last")) -> str:
    """Return mean and standard deviation at the best and the last epoch."""
    pairs = (over_seeds(values(arm, checkpoint, column)) for checkpoint in checkpoints)
    return " / ".join(f"{number(mean)} ± {number(std)}" for mean, std in pairs)


def students(rows: Sequence[tuple[str, str, Arm]]) -> str:
    """Return means over seeds of students: name, networks trained for one of them, and where it is recorded."""
    columns = ("clean_accuracy", "robust_accuracy", "ece_clean", "ece_adversarial")
    return markdown(
        ("student", "networks trained", "clean, best / last", "robust", "ECE clean", "ECE under attack"),
        [
            [name, trained, *(mean_std_pair(arm, column) for column in columns[:2]),
             *(mean_pair(arm, column) for column in columns[2:])]
            for name, trained, arm in rows
        ],
    )  # fmt: skip


def five_seeds_over_images() -> str:
    """Return the differences of accuracy on the digits, with intervals over seeds alone and over seeds and images."""
    rows = []
    for each in results("five-seeds-differences"):
        kind = each.comparison.column.removesuffix("_accuracy")
        if kind not in ("robust", "clean"):
            continue
        line = [each.comparison.label]
        for checkpoint, one in each.differences.items():
            students = (each.comparison.first.row, each.comparison.second.row)
            both = paired_over_seeds_and_images(
                *(flags(FIVE_SEEDS_IMAGES, student, checkpoint, kind) for student in students)
            )
            line += [
                f"{points(one.mean)} [{points(one.low)}, {points(one.high)}]",
                f"[{points(both.low)}, {points(both.high)}]",
            ]
        rows.append(line)
    head = ("over seeds (Student)", "over seeds and images")
    return markdown(("difference", *(f"{name} epoch, {of}" for name in ("best", "last") for of in head)), rows)


FIVE_SEEDS_STUDENTS = (
    ("PGD-AT", "1", Arm(FIVE_SEEDS, "at")),
    ("PGD-AT + EMA 0.99", "1", Arm(FIVE_SEEDS, "at-ema")),
    ("AKD, three weak early-stopped teachers", "4", Arm(FIVE_SEEDS, "akd")),
    ("AKD + EMA 0.99, the same teachers", "4", Arm(FIVE_SEEDS, "akd-ema")),
)
RECIPE_STUDENTS = (
    ("PGD-AT, flips: `cifar10_part_at`", "1", Arm(SEARCH, "the recipe")),
    ("PGD-AT, crops, flips, EMA: `cifar10_part_teacher`", "1", Arm(SEARCH, "PGD-AT with what was found")),
    ("AKD α 0.5 from three of these: `cifar10_part_akd`", "4", Arm(SEARCH, "what was found")),
)


def all_images() -> str:
    """Return the students of all images of CIFAR-10, at their best epoch on 1,000 test images."""
    file = CIFAR_AGAIN.format("all-images-1000-test-images")
    rows = []
    for name, trained, row in (
        ("PGD-AT", "1", "at"), ("TRADES, β 6", "1", "trades"), ("AKD, α 0.8", "2", "akd-teacher-eps-1"),
        ("RSLAD", "2", "rslad-teacher-eps-1"),
    ):  # fmt: skip
        cells = [over_seeds(values(Arm(file, row), "best", column)) for column in
                 ("clean_accuracy", "robust_accuracy", "ece_clean", "ece_adversarial")]  # fmt: skip
        rows.append(
            [name, trained, *(f"{number(mean)} ± {number(std)}" for mean, std in cells[:2]),
             *(number(mean) for mean, _ in cells[2:])]
        )  # fmt: skip
    return markdown(("student", "networks trained", "clean", "robust", "ECE clean", "ECE under attack"), rows)


def methods() -> str:
    """Return every method beside PGD-AT on CIFAR-10."""
    baseline = Arm(METHODS_FILE, "at")
    rows = [
        ["PGD-AT", "none", mean_pair(baseline, "clean_accuracy"), mean_std_pair(baseline, "robust_accuracy"),
         "", "", "", "", mean_pair(baseline, "ece_adversarial"), ""]
    ]  # fmt: skip
    for each in results("methods"):
        arm = each.comparison.first
        name, teachers, remark = METHODS[each.comparison.label]
        endings = ("best-swa", "last-swa") if each.comparison.averaged else ("best", "last")
        rows.append(
            [name, teachers, mean_pair(arm, "clean_accuracy", endings), mean_std_pair(arm, "robust_accuracy", endings),
             *cells(each), mean_pair(arm, "ece_adversarial", endings), remark]
        )  # fmt: skip
    return markdown(
        ("method", "teachers", "clean, best / last", "robust", *HEAD, "ECE under attack", "averaged weights"), rows
    )


def dynamics() -> str:
    """Return what distillation changes in training, on the three data sets."""
    tested = {(each.comparison.data, each.comparison.column): each for each in results("dynamics")}
    rows = []
    for column, (title, digits) in CHANGED.items():
        line = [title]
        for data in DYNAMICS:
            each = tested.get((data, column))
            if each is None:
                line.append("")
                continue
            baseline, student = (
                number(over_seeds(values(arm, "last", column))[0], digits)
                for arm in (each.comparison.second, each.comparison.first)
            )
            change = each.differences["last"]
            sign = "" if change.mean < 0 else "+"
            text = f"{baseline} → {student} ({sign}{number(change.mean, digits)} ± {number(change.std, digits)})"
            line.append(f"**{text}**" if each.survives("last") else text)
        rows.append(line)
    return markdown(("training images under attack, PGD-AT → AKD", *DYNAMICS), rows)


def sizes() -> str:
    """Return what small networks weigh and how fast they answer."""
    names = {
        "at-width-4": "CNN-A of width 4, 28×28",
        "at-width-8": "… of width 8",
        "at": "… of width 16",
        "teacher-0": "ResNet-8 of width 16, 28×28",
        "akd": "ResNet-2B2, 32×32",
        "teacher-0-crop+flip-ema-0.99-share-0.75-resnet8-16": "ResNet-8 of width 16, 32×32",
    }
    found: dict[str, Any] = {}
    for file in ("student-sizes-fashion-mnist-2026-11-24.json", "student-sizes-2026-11-24.json"):
        found |= read_json(file)["seconds"]
    robust = {
        f"at-width-{width}" if width != 16 else "at": mean_pair(
            Arm("studies-fashion-mnist-2026-11-24/student-width-akd-runs.csv", f"at, width {width}"),
            "robust_accuracy", ("best",),
        )
        for width in (4, 8, 16)
    }  # fmt: skip
    rows = [
        [names[key], f"{each['parameters']:,}", f"{each['bytes'] / 1000:.0f} kB", f"{each['operations'] / 1e6:.2f}",
         f"{1000 * each['float32 one']:.2f} / {1000 * each['bf16 one']:.2f} ms",
         f"{128 / each['float32 many']:,.0f} / {128 / each['bf16 many']:,.0f}", robust.get(key, "")]
        for key, each in found.items()
    ]  # fmt: skip
    return markdown(
        ("network", "weights", "file", "MFLOP an image", "one image, fp32 / bf16", "images/s, fp32 / bf16",
         "robust, PGD-AT"), rows,
    )  # fmt: skip


def steps() -> str:
    """Return a training step beside a plain loop, on three machines."""
    runs = (
        ("two threads, Zen 4", "training-step-two-threads-2026-11-23.json"),
        ("one thread, Zen 4", "training-step-one-thread-2026-11-23.json"),
        ("two threads, another Zen 4", "training-step-two-threads-2026-11-29.json"),
        ("two threads, Zen 5", "training-step-zen5-two-threads-2026-11-29.json"),
    )
    networks = {
        "resnet8": "ResNet-8, batch 128",
        "resnet18": "ResNet-18, batch 32",
        "mobilenetv2": "MobileNetV2, batch 32",
    }
    methods = {"rslad": "RSLAD", "at": "PGD-AT", "rslad-wide": "RSLAD, WideResNet-34-10 teaches from its cache"}
    rows = []
    for where, file in runs:
        for each in read_json(file)["rows"]:
            rows.append(
                [networks[each["model"]], methods[each["method"]], where, f"{each['seconds']['plain']:.2f} s",
                 f"{each['torchattacks_is_faster_by']:.2f}×" if "torchattacks_is_faster_by" in each else "",
                 f"{each['art_is_faster_by']:.2f}×" if "art_is_faster_by" in each else "",
                 f"{each['fp32_is_faster_by']:.2f}×",
                 f"{each['bf16_is_faster_by']:.2f}× ({each['bf16_quartiles'][0]:.2f}–{each['bf16_quartiles'][1]:.2f})",
                 f"{100 * each['share_of_bf16_peak']:.0f} %"]
            )  # fmt: skip
    return markdown(
        ("network", "method", "processor", "plain step", "torchattacks", "ART", "ours fp32", "ours bf16 (quartiles)",
         "of the bf16 peak"), rows,
    )  # fmt: skip


def median_round(file: str, threat: str, mode: str) -> Any:
    """Return the round of the median ratio to the authors' code, for exact or fast mode."""
    rounds = [each for each in read_json(file)["results"] if each["threat"] == threat]
    return sorted(rounds, key=lambda each: each["ratio_to_authors"][mode]["all"])[len(rounds) // 2]


def autoattack() -> str:
    """Return standard AutoAttack beside the authors' code; the median round where there are several."""
    files = (
        ("autoattack-resnet8-2026-11-23.json", "ResNet-8 of width 16, a few minutes' training"),
        ("autoattack-resnet18-2026-11-23.json", "ResNet-18, 20 steps and 500 queries"),
        ("autoattack-cifar10-abcrown_cifar_cnn_a_adv4-2026-11-23.json", "public CNN-A"),
        ("autoattack-cifar10-abcrown_cifar_wide-2026-11-23.json", "public CNN-A, wide"),
        ("autoattack-cifar10-abcrown_resnet2b-2026-11-23.json", "public ResNet-2B"),
        (
            "autoattack-cifar10-mnbab_resnet_2b2_bn_mixup_sadv_8.0_bs128_lr-1-2026-11-23.json",
            "public ResNet-2B2, mixup",
        ),
    )
    rows = []
    for file, name in files:
        for threat in dict.fromkeys(each["threat"] for each in read_json(file)["results"]):
            exact, fast = (median_round(file, threat, mode) for mode in ("exact", "fast"))
            robust, differ = exact["robust"], exact["differ_from_authors"]
            outside, seconds = (sum(exact[of]["exact"].values()) for of in ("outside_seconds", "seconds"))
            rows.append(
                [
                    name,
                    threat,
                    str(exact["images"]),
                    f"{robust['authors']} / {robust['exact']} / {robust['fast']}",
                    f"{len(differ['exact'])} / {len(differ['fast'])}",
                    f"{exact['ratio_to_authors']['exact']['all']:.2f}×",
                    f"{fast['ratio_to_authors']['fast']['all']:.2f}×",
                    f"{100 * outside / seconds:.0f} %",
                ]
            )
    return markdown(
        ("network", "threat", "images", "robust: authors / exact / fast", "flags that differ: exact / fast",
         "exact is faster by", "fast", "outside the passes"), rows,
    )  # fmt: skip


def less_time() -> str:
    """Return whole trainings of equal robust accuracy for less time."""
    files = (
        ("ResNet-8 of width 16, CIFAR-10, 4,000 images", "cheap-cifar10-resnet8-2026-11-23.json"),
        ("CNN-A, Fashion-MNIST, 500 images", "cheap-fashion-mnist-2026-11-23.json"),
        ("ResNet-18, CIFAR-10, 1,000 images, 48 steps more", "cheap-cifar10-resnet18-2026-11-29.json"),
    )
    rows = []
    for where, file in files:
        for name, each in read_json(file)["rows"].items():
            best, last = (over_seeds(dict(enumerate(each[f"robust, {when}"]))) for when in ("best", "last"))
            rows.append(
                [where, name, *(f"{number(mean)} ± {number(std)}" for mean, std in (best, last)),
                 f"{each['seconds']:.0f}", f"{each['is_faster_by']:.2f}×"]
            )  # fmt: skip
    return markdown(("network and images", "training", "robust, best", "robust, last", "seconds", "faster by"), rows)


def cost() -> str:
    """Return how cost grows, beside its forecast."""
    rows = []
    for name, each in read_json("cost-2026-11-23.json")["rows"].items():
        measured, forecast = each["images_per_second"], each["forecast_images_per_second"]
        rows.append(
            [
                name.replace("from here", "ResNet-8 of width 16, 32×32, PGD-AT, PGD-10, from which one thing grows"),
                f"{each['images']:,}",
                f"{each['step_gflops_an_image']:.2f}",
                *(f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" for rate in (forecast, measured)),
                f"{100 * (forecast / measured - 1):+.0f} %".replace("-", "−").replace("+0 %", "0 %"),
                f"{measured * each['step_gflops_an_image']:,.0f}",
                f"{each['megabytes']:,}",
            ]
        )
    head = ("what grows", "images", "GFLOP a step and image", "images/s forecast", "images/s", "error", "GFLOP/s", "MB")
    return markdown(head, rows)


def growth(*columns: tuple[str, str, str]) -> str:
    """Return the rows of growth that have these numbers.

    Args:
        columns: the heading, the number, and how it is formatted.
    """
    found = read_json(GROWTH)["rows"]
    rows = [
        [name, *(format(each[key], style).replace("%", " %") for _, key, style in columns)]
        for name, each in found.items()
        if columns[0][1] in each
    ]
    assert rows, f"{GROWTH} has no {columns[0][1]}"
    return markdown(("what grows", *(head for head, _, _ in columns)), rows)


def published_students() -> str:
    """Return what networks of timm and torchvision do as students."""
    words = {True: "yes", False: "no"}
    rows = []
    for each in read_json("timm-students-2026-11-30.json")["rows"]:
        fold = each["fold"]["value"] or {"batchnorms": 0, "folded": 0, "speedup": 1.0}
        ran = [
            words[each[name]["runs"]]
            for name in ("train", "bf16", "ddp", "reopen", "pt2", "onnx", "folder", "evaluate")
        ]
        folded = f"{fold['folded']} of {fold['batchnorms']}" if fold["batchnorms"] else "none to fold"
        rows.append([f"`{each['network']}`", *ran, folded, f"{fold['speedup']:.2f}×"])
    done = ("trains", "bf16", "two processes", "opens again", ".pt2", ".onnx", "folder", "PGD-20")
    head = ("network", *done, "BatchNorms folded", "attack faster by")
    return markdown(head, rows)


def int8_students(file: str) -> str:
    """Return what three files of each student have as they are shipped: mean and standard deviation over seeds."""
    seeds = read_json(file)["seeds"].values()
    columns = {
        "clean_accuracy": "clean",
        "robust_accuracy": "robust as shipped",
        "transfer": "transfer",
        "bpda": "BPDA",
        "white-box": "white box",
        "square": "Square",
    }
    rows = []
    for row in next(iter(seeds)):
        values = [[each[row][column] for each in seeds] for column in columns]
        cells = [f"{np.mean(each):.3f} ± {np.std(each, ddof=1):.3f}" for each in values]
        size, ms = (np.median([each[row][column] for each in seeds]) for column in ("bytes", "ms_32"))
        rows.append([row, *cells, f"{size:,.0f}", f"{ms:.2f}"])
    return markdown(("file", *columns.values(), "bytes", "ms, batch 32"), rows)


def int8_differences(file: str) -> str:
    """Return the differences in robust accuracy as shipped, over seeds and test images, corrected by Holm's method."""
    seeds = read_json(file)["seeds"].values()
    names = list(next(iter(seeds)))
    robust = {name: np.array([[bit == "1" for bit in each[name]["images"]] for each in seeds]) for name in names}
    pairs = [(second, first) for number, first in enumerate(names) for second in names[number + 1 :]]
    found = corrected([paired_over_seeds_and_images(robust[one], robust[other]) for one, other in pairs])
    rows = [
        [
            f"{one} − {other}",
            f"{points(each.mean)} ± {100 * each.std:.1f} [{points(each.low)}, {points(each.high)}]",
            f"{each.p_value:.2g}",
            each.verdict,
        ]
        for (one, other), each in zip(pairs, found, strict=True)
    ]
    return markdown(("difference, points", "± over seeds [95 %]", "p after Holm", "verdict"), rows)


def mobile_students() -> str:
    """Return what the files of timm's networks have as they are shipped."""
    names = {"mobilenetv3": "MobileNetV3-small 0.5", "efficientnet": "EfficientNet-lite0"}
    families = {"transfer": "transfer", "bpda": "BPDA", "white-box": "white box", "square": "Square"}
    rows = []
    for network, files in read_json("mobile-students-2026-11-30.json")["files"].items():
        for file, each in files.items():
            found = [each["clean_accuracy"], *(each["alone"][family] for family in families)]
            low, high = each["interval"]
            rows.append(
                [
                    f"{names[network]}, {file}",
                    *(f"{each[key]:,}" for key in ("parameters", "bytes")),
                    *(f"{ms:.3g}" for ms in each["ms"]),
                    *(f"{value:.3f}" for value in found),
                    f"{each['robust_accuracy']:.3f} [{low:.2f}, {high:.2f}]",
                ]
            )
    head = ("file", "weights", "bytes", "ms, 1", "ms, 32", "clean", *families.values(), "as shipped [95 %]")
    return markdown(head, rows)


def recorded_study(file: str, checkpoints: Sequence[str] = ("best", "last")) -> str:
    """Return the table of a study as the library wrote it, with differences that hold over seeds and test images."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for each in study_rows(file):
        if each["checkpoint"] in checkpoints:
            found.setdefault(each["row"], {})[each["checkpoint"]] = each
    rows = []
    for row, by_checkpoint in found.items():
        both = list(by_checkpoint.values())
        line = [METHOD_NAMES.get(row, row)]
        for column in ("clean_accuracy", "robust_accuracy", "ece_adversarial"):
            numbers = ((float(each[f"{column}_mean"]), float(each[f"{column}_std"])) for each in both)
            line.append(" / ".join(f"{number(mean)} ± {number(std)}" for mean, std in numbers))
        against = both[0]["against"]
        line += [
            METHOD_NAMES.get(against, against or "–"),
            *(recorded_difference(each) if against else "–" for each in both),
        ]
        rows.append(line)
    head = ("student", "clean, best / last", "robust", "ECE under attack", "minus", *HEAD_OF_RECORDED)
    return markdown(head, rows)


def study_rows(file: str) -> list[dict[str, str]]:
    """Return the lines of a study's table: one for each row and checkpoint."""
    with (RESULTS / file).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


HEAD_OF_RECORDED = ("robust, best epoch: points ± SD [95 %], p after Holm", "robust, last epoch")


def recorded(row: dict[str, str]) -> SeedDifference:
    """Return the difference in robust accuracy of a row that the library wrote, after Holm's correction."""
    mean, std, low, high, p = (
        float(row[f"robust_accuracy_difference_{each}"]) for each in ("mean", "std", "low", "high", "p_value")
    )
    return SeedDifference(mean=mean, std=std, low=low, high=high, p_value=p, num_seeds=int(row["seeds"]))


def recorded_difference(row: dict[str, str]) -> str:
    """Return the difference in robust accuracy of a row that the library wrote; bold if it survives the correction."""
    each = recorded(row)
    interval = f"[{points(each.low)}, {points(each.high)}]"
    text = f"{points(each.mean)} ± {100 * each.std:.1f} {interval}, {p_text(each.p_value)}"
    return text if each.verdict == "noise" else f"**{text}**"


def teacher_probabilities(file: str, heads: Mapping[str, str], only: str = "") -> str:
    """Return what teachers say of some images at their best epoch and at their last, over seeds.

    Args:
        file: the results.
        heads: the headings of the numbers, by their names in the file.
        only: which rows: the beginning of their names, which is left out.
    """
    seeds = read_json(file)["seeds"].values()
    rows = []
    for name in next(iter(seeds)):
        if not name.startswith(only):
            continue
        line = [f"teacher's {name.removeprefix(only).replace(', ', ' epoch, ')} images"]
        for part in heads:
            mean, std = over_seeds({seed: each[name][part] for seed, each in enumerate(seeds)})
            line.append(f"{number(mean)} ± {number(std)}")
        rows.append(line)
    return markdown(("probability of", *heads.values()), rows)


def compared_with_akd(track: str) -> dict[tuple[str, str, str], SeedDifference]:
    """Return the rows of a track of the board minus that of AKD, by name, checkpoint and number, corrected together."""
    by_name = {row.name: row for row in read_rows(BOARD, track)}
    akd = by_name.pop("AKD + EMA")
    differences = {
        (name, checkpoint, kind): difference_of(row.flags(checkpoint, kind), akd.flags(checkpoint, kind))
        for name, row in by_name.items()
        for kind in COMPARED
        for checkpoint in CHECKPOINTS
    }
    assert None not in differences.values(), "all rows of a track have seeds from 0 on"
    return dict(zip(differences, corrected(list(differences.values())), strict=True))


def beside_akd(track: str) -> str:
    """Return the rows of a track of the board minus that of AKD, over seeds and test images."""
    found = compared_with_akd(track)
    rows: dict[str, list[str]] = {}
    for (name, _, _), each in found.items():
        text = f"{points(each.mean)} [{points(each.low)}, {points(each.high)}], {p_text(each.p_value)}"
        rows.setdefault(name, [name]).append(text if each.verdict == "noise" else f"**{text}**")
    head = ("minus AKD + EMA", "clean, best epoch: points [95 %], p after Holm", "clean, last", "robust, best",
            "robust, last")  # fmt: skip
    ordered = sorted(rows, key=lambda name: -found[name, CHECKPOINTS[0], "robust_accuracy"].mean)
    return markdown(head, [rows[name] for name in ordered])


def read_json(file: str) -> Any:
    """Return a file of results."""
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


TABLES: dict[str, Callable[[], str]] = {
    **{name: partial(family, name) for name in FAMILIES if name != "methods"},
    "methods": methods,
    "five-seeds": partial(students, FIVE_SEEDS_STUDENTS),
    "five-seeds-images": five_seeds_over_images,
    "recipe-students": partial(students, RECIPE_STUDENTS),
    "all-images-students": all_images,
    "dynamics": dynamics,
    "network-sizes": sizes,
    "steps": steps,
    "autoattack": autoattack,
    "less-time": less_time,
    "cost": cost,
    "growth-images": partial(
        growth,
        ("µs an image and epoch", "microseconds_an_image_and_epoch", ",.0f"),
        ("memory, MB", "megabytes", ",.0f"),
        ("run on disk, MB", "megabytes_on_disk", ",.1f"),
        ("its page, s", "page_seconds", ".1f"),
    ),
    "growth-photographs": partial(
        growth,
        ("opening, s", "opening_seconds", ".1f"),
        ("images/s", "images_per_second", ".1f"),
        ("cores busy", "busy", ".0%"),
        ("memory, MB", "megabytes", ",.0f"),
    ),
    "growth-processes": partial(
        growth,
        ("processes", "processes", "d"),
        ("threads each", "threads", "d"),
        ("images/s", "images_per_second", ".0f"),
    ),
    "published-students": published_students,
    "int8-students": partial(int8_students, "int8-students-2026-11-30.json"),
    "int8-mobilenetv2-differences": partial(int8_differences, "int8-mobilenetv2-2026-11-30.json"),
    "int8-mobilenetv2": partial(int8_students, "int8-mobilenetv2-2026-11-30.json"),
    "mobile-students": mobile_students,
    "beside-akd-digits": partial(beside_akd, "digits"),
    "beside-akd-small": partial(beside_akd, "small"),
    "why-early-stopping": partial(recorded_study, WHY_EARLY_STOPPING),
    "why-early-stopping-cifar10": partial(recorded_study, WHY_EARLY_STOPPING_ON_CIFAR10),
    "mislabelled-images": partial(
        teacher_probabilities,
        "mislabelled-images-2026-11-30.json",
        {"true class": "the true class", "wrong label": "the wrong label", "others": "the eight others"},
    ),
    "doubted-images": partial(
        teacher_probabilities,
        "doubted-images-2026-11-30.json",
        {
            "label": "the label",
            "instead": "what people say instead",
            "others": "the eight others",
            "instead of wrong": "what people say, of all but the label",
        },
        only="two, ",
    ),
    "true-labels": partial(recorded_study, f"{DIGITS_STUDIES}/true-labels.csv", CHECKPOINTS),
    **teacher_ranking.TABLES,
}
"""The tables by the names that the pages give them."""
