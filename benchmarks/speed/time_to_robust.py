"""How long until a student is this robust: ours beside the plain loop and fast single-step training as published?

    python benchmarks/speed/time_to_robust.py DATA --network resnet8 --runs runs/time-resnet8 --images 0 --seeds 1
    python benchmarks/speed/time_to_robust.py DATA --network resnet8 --runs runs/time-resnet8 --arms plain fgsm-rs \\
        n-fgsm pgd-2 --out benchmarks/results/time-to-robust-resnet8-DATE.json --figure FIGURE.svg

Many hours on one core for all of CIFAR-10, of which DATA is the folder; seconds in miniature, with `digits` for DATA
and `--budgets 1 2`. The first command above is for choosing arms on images held out of training; the second measures
those chosen with AutoAttack on test images, and trains further seeds, but nothing again: finished runs are lines of
RUNS/runs.jsonl. Seeds are the outermost loop and arms take turns, so that every stop leaves whole seeds.

A run is an arm, a number of epochs and a seed; its seconds are processor time of its training steps with their images,
on one thread, in a process of its own. Looking at held-out images (PGD-10, whose gradients have the training's
precision) and attacks on test images are not in them. All see the same images in the same order from the same fast
loader. The plain loop is float32, eager, channels first, PGD-10, with a learning rate that falls at half and at three
quarters; FGSM-RS (Wong et al. 2020) and N-FGSM (de Jorge et al. 2022) are such loops, too, with BatchNorm in train mode
and their cyclic learning rate. Ours is `robustill.train`, and its student the averaged weights.

A family's seconds to a robust accuracy are read from its fastest runs of each seed: of its points (seconds, robust
accuracy at the last epoch) those that no quicker one exceeds, and between two of them linearly in the logarithm of
seconds. Nothing is extrapolated. The levels are at one and two thirds, and at the end, of the range that the plain
loop and ours both reach with every seed.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from safetensors.torch import save_file
from steps import plain_step
from torch import nn

from robustill import autoattack
from robustill.config.schema import Config, make_config
from robustill.config.split import load_split
from robustill.core.device import environment
from robustill.core.files import write_text
from robustill.models.loading import load_network
from robustill.models.weights import read_state_dict
from robustill.report.plots import INK, SERIES, draw, render_file
from robustill.training.loop import train
from robustill.training.optimizer import rate_factor
from robustill.training.setup import set_up_training
from robustill.training.validation import validation_accuracy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN, OURS = "plain loop, PGD-10", "ours"
NETWORKS = {"resnet8": {"name": "resnet8", "width": 32}, "resnet18-quarter": {"name": "resnet18", "width": 16}}
HELD_OUT = {"cifar10": 1000, "digits": 300}
"""Training images that are not trained on."""
SHARES = (1 / 3, 2 / 3)
"""Of the range that the plain loop and ours both reach, where its end is the third level."""

Row = dict[str, Any]
Front = list[tuple[float, float]]
"""Seconds and robust accuracy, both ascending."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train; step sizes are in radii."""

    family: str
    attack: Mapping[str, Any]
    optim: Mapping[str, Any] = field(default_factory=dict)


def single_step(family: str, **attack: Any) -> Arm:
    """As published: BatchNorm in train mode all the time, and a learning rate that rises to 0.2 and falls to 0."""
    optim = {"schedule": "onecycle", "learning_rate": 0.2, "warmup": 0.5}
    return Arm(family=family, attack={"steps": 1, "batchnorm": "train", **attack}, optim=optim)


def ours(steps: int, optim: Mapping[str, Any] | None = None, **attack: Any) -> Arm:
    """PGD of n steps of 2.5·eps/n, or 1.25·eps, with averaged weights, and a learning rate that rises and falls."""
    settings = {"steps": steps, "step_size": 1.25 if steps == 1 else 2.5 / steps, **attack}
    usual = {"schedule": "onecycle", "learning_rate": 0.2, "warmup": 0.3, "ema": 0.99}
    return Arm(family=OURS, attack=settings, optim={**usual, **(optim or {})})


ARMS: dict[str, Arm] = {
    "plain": Arm(family=PLAIN, attack={"steps": 10, "step_size": 0.25}, optim={"schedule": "multistep", "warmup": 0.0}),
    "fgsm-rs": single_step("FGSM-RS", step_size=1.25),
    "n-fgsm": single_step("N-FGSM", step_size=1.0, noise=2.0),
    "pgd-1": ours(1),
    "pgd-1-guard": ours(1, guard=25),
    "noise": ours(1, step_size=1.0, noise=2.0),
    "noise-guard": ours(1, step_size=1.0, noise=2.0, guard=25),
    "pgd-2": ours(2),
    "pgd-2-cosine": ours(2, {"schedule": "cosine"}),
    "pgd-2-peak-0.4": ours(2, {"learning_rate": 0.4}),
    "pgd-3": ours(3),
    "pgd-1-to-3": ours(3, first_steps=1),
}
"""By the name that --arms takes; the plain loop and ours are compared, whatever else there is."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training, and what it is attacked with afterwards."""

    arm: str
    budget: int
    seed: int
    config: Config
    runs: Path
    images: int

    @property
    def identity(self) -> str:
        """Of all that its numbers depend on, so that another setting is another run."""
        values = self.config.model_dump(mode="json")
        values["data"].pop("root")
        text = json.dumps([self.arm, values], sort_keys=True)
        return f"{self.arm}-{self.budget}-{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def folder(self) -> Path:
        return self.runs / self.identity

    @property
    def weights(self) -> Path:
        return self.runs / f"{self.identity}.safetensors"


def configuration(arm: Arm, budget: int, seed: int, arguments: argparse.Namespace) -> Config:
    is_digits, is_ours = arguments.data == "digits", arm.family == OURS
    name, root, eps = ("digits", None, 0.15) if is_digits else ("cifar10", arguments.data, 8 / 255)
    source = {"name": name, "root": root, "augmentation": [] if is_digits else ["crop", "flip"]}
    return make_config(
        {
            "seed": seed,
            "data": {
                **source,
                "train_size": arguments.train_images,
                "validation": HELD_OUT[name],
                "split_seed": seed,
            },
            "model": NETWORKS[arguments.network],
            "threat": {"eps": eps},
            "attack": {**arm.attack, "step_size": arm.attack["step_size"] * eps},
            "optim": {"learning_rate": 0.1, "batch_size": 128, **arm.optim, "epochs": budget},
            "validation": {"every": max(1, budget // 4)},
            "dynamics": {"record": False},
            "compute": {"device": "cpu", "threads": 1, "precision": arguments.precision if is_ours else "fp32"},
        }
    )


def runs(arguments: argparse.Namespace) -> Iterator[Run]:
    """Yield every run: seeds outermost, then budgets, in which the arms take turns."""
    for seed in range(arguments.seeds):
        for budget in arguments.budgets:
            for name in arguments.arms:
                yield Run(
                    arm=name, budget=budget, seed=seed, config=configuration(ARMS[name], budget, seed, arguments),
                    runs=arguments.runs, images=arguments.images,
                )  # fmt: skip


# Training, in a process of its own.


def held_out_accuracy(model: nn.Module, setup: Any, config: Config) -> dict[str, float]:
    eps = config.threat.eps
    clean, robust = validation_accuracy(
        model, *setup.validation, config.threat.build(), steps=10, step_size=eps / 4, seed=config.seed
    )
    return {"clean": clean, "robust": robust}


def train_plainly(run: Run) -> tuple[nn.Module, list[Row]]:
    """The loop of a script: the network at its end, and its accuracies on held-out images on the way."""
    config, optim = run.config, run.config.optim
    setup = set_up_training(config, torch.device("cpu"))
    model = setup.student.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=optim.momentum, weight_decay=optim.weight_decay)
    torch.manual_seed(config.seed)
    steps, done, seconds, curve = optim.epochs * len(setup.loader), 0, 0.0, []
    for epoch in range(optim.epochs):
        began = time.process_time()
        for x, y, _ in setup.loader.epoch(epoch):
            factor = rate_factor(
                done / steps, optim.schedule, warmup=optim.warmup, milestones=optim.milestones, decay=optim.decay
            )
            optimizer.param_groups[0]["lr"] = optim.learning_rate * factor
            plain_step(model, optimizer, x.contiguous(), y, config)
            done += 1
        seconds += time.process_time() - began
        if (epoch + 1) % config.validation.every == 0 or epoch + 1 == optim.epochs:
            curve.append({"epoch": epoch + 1, "seconds": seconds, **held_out_accuracy(model, setup, config)})
    return model, curve


def train_ours(run: Run) -> tuple[nn.Module, list[Row]]:
    """The same for `robustill.train`, whose metrics have the seconds of each epoch's steps alone."""
    with mock.patch("time.perf_counter", time.process_time):
        lines = train(run.config, run.folder, progress=False).metrics
    prefix, suffix = ("", "") if run.config.optim.ema is None else ("ema_", "-ema")
    curve = [
        {
            "epoch": line["epoch"],
            "seconds": seconds,
            "clean": line[f"{prefix}validation_clean_accuracy"],
            "robust": line[f"{prefix}validation_robust_accuracy"],
        }
        for line, seconds in zip(lines, accumulate(line["seconds"] for line in lines), strict=True)
        if f"{prefix}validation_clean_accuracy" in line
    ]
    return load_network(f"run:{run.folder}@last{suffix}").module, curve


def trained(run: Run) -> Row:
    torch.set_num_threads(1)
    model, curve = (train_ours if ARMS[run.arm].family == OURS else train_plainly)(run)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, run.weights)
    last = curve[-1]
    return {"seconds": last["seconds"], "curve": curve, "held_out": {key: last[key] for key in ("clean", "robust")}}


def attacked(run: Run) -> Row:
    """Standard AutoAttack on the first test images."""
    torch.set_num_threads(1)
    model = set_up_training(run.config, torch.device("cpu")).student
    model.load_state_dict(read_state_dict(run.weights))
    model.eval()
    test = load_split(run.config, "test")
    x, y = test.read(torch.arange(run.images)).float() / 255, test.labels[: run.images]
    began = time.process_time()
    result = autoattack(model, x, y, run.config.threat.build(), progress=False)
    return {
        "images": run.images,
        "clean": float((result.broken_by != -2).float().mean()),
        "robust": float(result.robust.float().mean()),
        "seconds": time.process_time() - began,
    }


def end_with_parent() -> None:
    """So that a command that was killed leaves no training behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def in_own_process(function: Callable[[Run], Row], run: Run) -> Row:
    """So that no setting of one run, such as what the C library does with freed memory, helps another."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        return pool.submit(function, run).result()


# The file of finished runs.


def completed(arguments: argparse.Namespace) -> list[Row]:
    """The rows of all runs, of which those that are not in the file yet are made."""
    file, rows = arguments.runs / "runs.jsonl", []
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    stored: dict[str, Row] = {row["identity"]: row for row in map(json.loads, lines)}
    for run in runs(arguments):
        key = run.identity
        row = stored.get(key)
        steps: list[tuple[str, Callable[[Run], Row]]] = []
        if row is None:
            row = {"arm": run.arm, "family": ARMS[run.arm].family, "budget": run.budget, "seed": run.seed}
            steps.append(("", trained))
        if run.images and row.get("autoattack", {}).get("images") != run.images:
            steps.append(("autoattack", attacked))
        for name, function in steps:
            found = in_own_process(function, run)
            row = {**row, **({name: found} if name else found), "identity": key}
            stored[key] = row
            write_text(file, "".join(f"{json.dumps(each)}\n" for each in stored.values()))
        rows.append({name: value for name, value in row.items() if name != "identity"})
        print(described(rows[-1]), flush=True)
    return rows


def described(row: Row) -> str:
    attack = row.get("autoattack")
    tested = "" if attack is None else f"; test {attack['clean']:.3f}, AutoAttack {attack['robust']:.3f}"
    held_out = row["held_out"]
    return (
        f"seed {row['seed']}, {row['budget']:2} epochs, {row['arm']:15} {row['seconds']:8.1f} s; "
        f"held out {held_out['clean']:.3f}, PGD-10 {held_out['robust']:.3f}{tested}"
    )


# Seconds to a level.


def front(points: Sequence[tuple[float, float]]) -> Front:
    """The points that no quicker one equals or exceeds in robust accuracy.

    Example:
        >>> front([(4.0, 0.3), (1.0, 0.2), (2.0, 0.1)])
        [(1.0, 0.2), (4.0, 0.3)]
    """
    kept: Front = []
    for seconds, robust in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or robust > kept[-1][1]:
            kept.append((seconds, robust))
    return kept


def seconds_to(level: float, points: Front) -> float | None:
    """Seconds to a robust accuracy, None where the points do not enclose it.

    Example:
        >>> seconds_to(0.25, [(1.0, 0.2), (4.0, 0.3)])   # √(1·4)
        2.0
    """
    if points and level == points[0][1]:
        return points[0][0]
    for (before, low), (after, high) in pairwise(points):
        if low < level <= high:
            return before * math.exp(math.log(after / before) * (level - low) / (high - low))
    return None


def fronts(rows: Sequence[Row], images: int) -> dict[str, dict[int, Front]]:
    """The front of each family and seed, of AutoAttack or, without images, of PGD-10 on held-out images."""
    what = "autoattack" if images else "held_out"
    points: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for row in rows:
        each = points.setdefault(row["family"], {}).setdefault(row["seed"], [])
        each.append((row["seconds"], row[what]["robust"]))
    return {family: {seed: front(each) for seed, each in seeds.items()} for family, seeds in points.items()}


def common_levels(found: Mapping[str, Mapping[int, Front]]) -> list[float]:
    """Three levels that the plain loop and ours reach with every seed; none if there is no such range."""
    both = [each for family in (PLAIN, OURS) for each in found.get(family, {}).values()]
    if not (found.get(PLAIN) and found.get(OURS)):
        return []
    low, high = max(each[0][1] for each in both), min(each[-1][1] for each in both)
    return [*(low + share * (high - low) for share in SHARES), high] if low < high else []


def compared(found: Mapping[str, Mapping[int, Front]], levels: Sequence[float]) -> list[Row]:
    """For each level the seconds of each family and seed, and those of the plain loop by those of the family."""
    rows = []
    for level in levels:
        row: Row = {"robust": level, "families": {}}
        plain = {seed: seconds_to(level, each) for seed, each in found[PLAIN].items()}
        for family, seeds in found.items():
            seconds = {seed: seconds_to(level, each) for seed, each in seeds.items()}
            ratios = [plain[seed] / own for seed, own in seconds.items() if own is not None and plain.get(seed)]
            entry: Row = {"seconds": list(seconds.values())}
            if len(ratios) == len(plain):
                entry["plain_by_it"] = {"mean": statistics.mean(ratios), "range": [min(ratios), max(ratios)]}
            row["families"][family] = entry
        rows.append(row)
    return rows


def table(rows: Sequence[Row]) -> Iterator[str]:
    families = list(rows[0]["families"])
    yield f"| robust accuracy | {' | '.join(families)} |"
    yield f"|---{'|---' * len(families)}|"
    for row in rows:
        yield f"| {row['robust']:.3f} | {' | '.join(cell(each) for each in row['families'].values())} |"


def cell(entry: Row) -> str:
    ratio = entry.get("plain_by_it")
    if ratio is None:
        return "not enclosed by its runs with every seed"
    low, high = ratio["range"]
    return f"{statistics.mean(entry['seconds']):.3g} s, {ratio['mean']:.2f}× ({low:.2f}–{high:.2f})"


def paint(figure: Figure, rows: Sequence[Row], images: int, levels: Sequence[float]) -> None:
    axes, what = figure.subplots(), "autoattack" if images else "held_out"
    for level in levels:
        axes.axhline(100 * level, color=INK, linewidth=0.6, linestyle=(0, (2, 3)))
    for number, (family, seeds) in enumerate(fronts(rows, images).items()):
        own, colour = [row for row in rows if row["family"] == family], SERIES[number]
        axes.plot(
            [row["seconds"] for row in own], [100 * row[what]["robust"] for row in own], "os^D"[number % 4],
            color=colour, markersize=3.5, fillstyle="none" if number else "full", linestyle="none", label=family,
        )  # fmt: skip
        for each in seeds.values():
            axes.plot(*zip(*((s, 100 * robust) for s, robust in each), strict=True), color=colour, linewidth=1.0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("processor seconds of training")
    axes.set_ylabel("AutoAttack, %" if images else "PGD-10 on held-out images, %")
    figure.legend(loc="outside upper left", ncols=2, fontsize=8)


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with the official files of CIFAR-10; or digits, for a try")
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet8")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM",
                        help=f"of these: {', '.join(ARMS)}")  # fmt: skip
    parser.add_argument("--budgets", nargs="+", type=int, default=[2, 5, 10, 20], help="epochs, each a run of its own")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000, help="test images for AutoAttack; 0: held-out images alone")
    parser.add_argument("--train-images", type=int, help="default: all that are not held out")
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), default="bf16", help="of ours; fp32 where it is faster"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/time-to-robust"), help="it goes on where it stopped")
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    parser.add_argument("--figure", type=Path, help="where the picture is written, as SVG")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parsed(words)
    rows = completed(arguments)
    found = fronts(rows, arguments.images)
    levels = common_levels(found)
    comparison = compared(found, levels)
    if comparison:
        print("\nprocessor seconds to a robust accuracy; the plain loop's by them, mean and range over seeds\n")
        print("\n".join(table(comparison)))
    else:
        print("\nno range of robust accuracy that the plain loop and ours both reach with every seed: no ratio")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        conditions = {
            key: value for key, value in vars(arguments).items() if key not in ("out", "figure", "runs", "data")
        }
        content = {
            "date": datetime.date.today().isoformat(), "environment": {**environment(), "threads": 1},
            "conditions": {"data": "digits" if arguments.data == "digits" else "cifar10", **conditions},
            "arms": {name: vars(ARMS[name]) for name in arguments.arms}, "levels": comparison, "runs": rows,
        }  # fmt: skip
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if arguments.figure is not None:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        picture = draw(lambda figure: paint(figure, rows, arguments.images, levels), width=4.6, height=3.4)
        arguments.figure.write_bytes(render_file(picture, "svg"))


if __name__ == "__main__":
    main()
