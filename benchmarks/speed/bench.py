"""Has the speed changed? Every ratio of `make bench` beside the recorded one, in one table at the end.

    python benchmarks/speed/bench.py             # what `make bench` runs: some minutes of one core
    python benchmarks/speed/bench.py --record    # also adds what it finds to benchmarks/results/bench.json

Whole training steps beside a plain loop, steps beside the passes of their networks, steps of every method, standard
AutoAttack beside the authors' code with flags compared image by image, and the start of the command line. One thread,
in processor time, so that other work on the machine counts little; every ratio is of runs that take turns, and larger
is faster: a median over the rounds, with its quartiles. The recorded median is the middle one of the recorded runs, and
its spread reaches from their lowest quartile to their highest: processes differ, too. A ratio has moved if its
quartiles lie outside that spread. Ends with exit code 1 if the flags of AutoAttack differ from the authors'.

AutoAttack needs images that stay robust, since these take nearly all of its time, and images that do not. Its network
is a ResNet-8 that is adversarially trained for a few seconds on the digits of the package, resized to 32×32 pixels.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import autoattack
import method_steps
import startup
import step_overhead
import torch
import training_step
from torch import Tensor, nn

from robustill import load_data, load_network, pgd, recipe, train
from robustill.core.device import environment
from robustill.losses import ce
from robustill.methods import METHODS
from robustill.threat import Threat

RECORDED = Path(__file__).parents[1] / "results" / "bench.json"
THREAT = Threat(norm="linf", eps=0.1)
ROBUST, BROKEN = 3, 2
"""Images that AutoAttack attacks: so many that PGD does not break, and so many that it does."""
BUDGETS = argparse.Namespace(steps=100, queries=1000, batch=ROBUST + BROKEN)
TRAINING = {
    "data.image_size": "32", "data.train_size": "null", "data.label_noise": "0", "data.validation": "100",
    "attack.steps": "2", "attack.step_size": "0.075", "attack.first_eps": "0", "attack.grow": "0.5",
    "threat.eps": str(THREAT.eps), "optim.epochs": "6", "validation.every": "6", "compute.precision": "bf16",
    "dynamics.record": "false",
}  # fmt: skip
"""What the training of the attacked network changes of the recipe digits_at."""


class Ratio(NamedTuple):
    """How many times as fast: the median over the rounds, and its quartiles."""

    median: float
    low: float
    high: float


Ratios = dict[str, Ratio]


def of_rounds(values: list[float]) -> Ratio:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(median, low, high)


def training_steps() -> Ratios:
    """Steps of the plain loop by whole steps of ours."""
    found = {}
    for method in ("rslad", "at"):
        row = training_step.measure("resnet8", method, 3, 1, None)
        for precision in ("fp32", "bf16"):
            quartiles = row[f"{precision}_quartiles"]
            found[f"step of {method}, {precision}, by the plain loop"] = Ratio(
                row[f"{precision}_is_faster_by"], *quartiles
            )
    return found


def overheads() -> Ratios:
    """Passes of the networks alone by whole steps."""
    found = {}
    for precision in ("fp32", "bf16"):
        row: dict[str, Any] = step_overhead.measure("at", "linf", precision, 3)
        low, high = row["overhead_share_quartiles"]
        name = f"step of at, {precision}, by its networks' passes"
        found[name] = Ratio(1 - row["overhead_share"], 1 - high, 1 - low)
    return found


def steps_of_methods() -> Ratios:
    """Steps of PGD adversarial training by those of the other methods."""
    rows = method_steps.rows(method_steps.measure(list(METHODS), 3))
    method_steps.print_table(rows)
    return {
        f"step of {row['method']}, by one of {method_steps.REFERENCE}": Ratio(
            1 / row["ratio"], *(1 / quartile for quartile in reversed(row["ratio_quartiles"]))
        )
        for row in rows
        if row["method"] != method_steps.REFERENCE
    }


def attacks() -> Ratios:
    """Seconds of the authors' AutoAttack by those of ours, a stage and in all; flags must be equal on every image."""
    network, x, y = attacked_network()
    runs: dict[str, Callable[..., autoattack.Timed]] = {
        "exact": partial(autoattack.ours, precision="exact"),
        "fast": partial(autoattack.ours, precision="fast"),
        "authors": autoattack.theirs,
    }
    rounds: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in runs}
    flags = {}
    index = torch.arange(len(x))
    with mock.patch("time.perf_counter", time.process_time):
        for number in range(3):
            names = list(runs)
            for name in names[number:] + names[:number]:
                flags[name], seconds, _ = runs[name](network, x, y, THREAT, index, BUDGETS)
                for stage, spent in [*seconds.items(), ("all stages", sum(seconds.values()))]:
                    rounds[name][stage].append(spent)
    compare_flags(flags)
    return {
        f"AutoAttack {stage}, {name}, by the authors' code": of_rounds(
            [theirs / ours for theirs, ours in zip(rounds["authors"][stage], spent, strict=True)]
        )
        for name in ("exact", "fast")
        for stage, spent in rounds[name].items()
    }


def attacked_network() -> tuple[nn.Module, Tensor, Tensor]:
    """A network that is trained for a few seconds, with images that PGD does not break and images that it does."""
    config = recipe("digits_at", [word for key, value in TRAINING.items() for word in (f"--{key}", value)])
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "student")
        network = load_network(f"run:{folder}/student@last").module.eval()
    digits = load_data("digits", split="test", image_size=32)
    x, y = digits.read(torch.arange(128)).float() / 255, digits.labels[:128]
    with torch.no_grad():
        is_right = network(x).argmax(dim=1) == y
    x_adv = pgd(lambda z: ce(network(z), y), x, THREAT, steps=20, step_size=THREAT.eps / 4, start="clean")
    with torch.no_grad():
        is_robust = network(x_adv).argmax(dim=1) == y
    robust, broken = (is_right & is_robust).nonzero()[:ROBUST, 0], (is_right & ~is_robust).nonzero()[:BROKEN, 0]
    chosen = torch.cat([robust, broken])
    return network, x[chosen], y[chosen]


def compare_flags(flags: dict[str, Tensor]) -> None:
    """Print which images stay robust.

    Raises:
        SystemExit: they are not the same ones as in the authors' code.
    """
    for name, robust in flags.items():
        print(f"AutoAttack {name:7}: {int(robust.sum())} of {len(robust)} images stay robust")
    for name, robust in flags.items():
        different = (robust != flags["authors"]).nonzero()[:, 0].tolist()
        if different:
            sys.exit(f"AutoAttack {name} differs from the authors' code on the images {different}")


def starts() -> Ratios:
    """Processor time of a Python that imports torch by that of commands."""
    seconds = startup.measure(5)
    reference = seconds.pop(startup.REFERENCE)
    return {
        f"{name}, by `{startup.REFERENCE}`": of_rounds([a / b for a, b in zip(reference, values, strict=True)])
        for name, values in seconds.items()
    }


PARTS: dict[str, Callable[[], Ratios]] = {
    "training steps": training_steps,
    "overhead": overheads,
    "methods": steps_of_methods,
    "AutoAttack": attacks,
    "start of the command line": starts,
}


def recorded_ratios(file: Path) -> Ratios:
    """The middle one of the recorded medians, and the widest of the recorded quartiles."""
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.exists() else []
    found: dict[str, list[Ratio]] = defaultdict(list)
    for run in runs:
        for name, values in run["ratios"].items():
            found[name].append(Ratio(*values))
    return {
        name: Ratio(
            statistics.median(each.median for each in ratios),
            min(each.low for each in ratios),
            max(each.high for each in ratios),
        )
        for name, ratios in found.items()
    }


def verdict(now: Ratio, recorded: Ratio | None) -> str:
    """What to say of a ratio beside the recorded one; nothing if it is within the spread.

    Example:
        >>> verdict(Ratio(2.0, 1.9, 2.1), Ratio(2.5, 2.4, 2.6))
        '20 % slower'
    """
    if recorded is None:
        return "not recorded"
    if now.high < recorded.low:
        return f"{1 - now.median / recorded.median:.0%} slower".replace("%", " %")
    if now.low > recorded.high:
        return f"{now.median / recorded.median - 1:.0%} faster".replace("%", " %")
    return ""


def table(now: Ratios, recorded: Ratios) -> Iterator[str]:
    """Yield the lines of the table, and a last one that says how many ratios have moved."""
    yield "| times as fast | recorded (spread) | now (quartiles) | moved beyond the spread |"
    yield "|---|---|---|---|"
    moved = []
    for name, ratio in now.items():
        before, found = recorded.get(name), verdict(ratio, recorded.get(name))
        shown = "" if before is None else f"{before.median:.2f} ({before.low:.2f}–{before.high:.2f})"
        yield f"| {name} | {shown} | {ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f}) | {found} |"
        if before is not None and found:
            moved.append(f"{name}: {found}")
    yield f"{len(moved)} of {len(now)} ratios moved beyond the spread" + "".join(f"; {each}" for each in moved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--record", action="store_true", help=f"add what is found to {RECORDED.name}")
    parser.add_argument("--file", type=Path, default=RECORDED, help="the recorded ratios")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    now: Ratios = {}
    for name in arguments.parts:
        began = time.monotonic()
        now.update(PARTS[name]())
        print(f"{name}: {time.monotonic() - began:.0f} s\n", flush=True)
    for line in table(now, recorded_ratios(arguments.file)):
        print(line)
    if arguments.record:
        content = json.loads(arguments.file.read_text(encoding="utf-8")) if arguments.file.exists() else {"runs": []}
        ratios = {name: [round(value, 4) for value in ratio] for name, ratio in now.items()}
        run = {"date": str(datetime.date.today()), "environment": environment(), "threads": 1, "ratios": ratios}
        content["runs"].append(run)
        arguments.file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
