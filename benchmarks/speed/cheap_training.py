"""Is a student as robust for less? Ours in bf16, with ten and with three attack steps, beside the plain loop's ten.

    python benchmarks/speed/cheap_training.py fashion_mnist_at --runs runs/cheap \\
        --out benchmarks/results/cheap-DATE.json \\
        --data.root DATA

About ten minutes on one core for this recipe, twenty-five for the ResNet-8 of docs/results/performance.md. PGD-AT of
the recipe named, with any overrides; seeds × variants, each seed with its own split. The students of the
plain loop (float32, channels first, eager) are trained with our float32 step, which computes the same; their time is
that of as many steps of the plain loop, measured in a process of its own. Ours is the time of our steps, measured in
the same way and in turns. Looking at held-out images, the same work for all, is in neither. Robust accuracy is under
one suite on test images, at the best held-out epoch and at the last; differences are paired over seeds, with
Student's interval.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from steps import plain_step, repeated

from robustill.analysis.statistics import paired_over_seeds
from robustill.config.recipes import resolve
from robustill.config.schema import Config, make_config
from robustill.core.device import configure_process, environment
from robustill.evaluation.targets import evaluate_run
from robustill.methods import Batch
from robustill.training.loop import train
from robustill.training.setup import build_step, set_up_training

PLAIN = "plain loop, PGD-10"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {"compute": {"precision": "fp32"}},
    "ours, PGD-10, bf16": {"compute": {"precision": "bf16"}},
    "ours, PGD-3, bf16": {"compute": {"precision": "bf16"}, "attack": {"steps": 3, "step_size": 5 / 6}},
}


def configuration(base: Config, variant: str, seed: int) -> Config:
    values = base.model_dump(mode="json")
    change = {part: dict(settings) for part, settings in VARIANTS[variant].items()}
    if "step_size" in change.get("attack", {}):
        change["attack"]["step_size"] *= base.threat.eps
    for part, settings in change.items():
        values[part] |= settings
    return make_config({**values, "seed": seed, "data": {**values["data"], "split_seed": seed}})


def plain(config: Config) -> Callable[[], None]:
    pieces = set_up_training(config, torch.device("cpu"))
    model = pieces.student.to(memory_format=torch.contiguous_format)
    x, y, _ = next(pieces.loader.epoch(0))
    x = x.contiguous()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    return lambda: plain_step(model, optimizer, x, y, config)


def ours(config: Config) -> Callable[[], None]:
    device = configure_process(config.compute)
    pieces = set_up_training(config, device)
    step = build_step(config, pieces)
    pieces.student.train()
    x, y, index = next(pieces.loader.epoch(0))
    optimizer = torch.optim.SGD(pieces.student.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    batch = Batch(x=x.contiguous(memory_format=torch.channels_last), y=y, index=index)
    return repeated(step, batch, optimizer)


def serve(pipe: Connection, values: dict[str, Any], variant: str) -> None:
    """One variant in its process: some steps whenever it is asked, their processor seconds for an answer."""
    torch.set_num_threads(1)
    config = make_config(values)
    run = plain(config) if variant == PLAIN else ours(config)
    for _ in range(2):
        run()
    while steps := pipe.recv():
        began = time.process_time()
        for _ in range(steps):
            run()
        pipe.send((time.process_time() - began) / steps)


def seconds_a_step(base: Config, variants: Collection[str], rounds: int) -> dict[str, float]:
    context, pipes = multiprocessing.get_context("spawn"), {}
    for variant in variants:
        pipes[variant], theirs = context.Pipe()
        values = configuration(base, variant, 0).model_dump(mode="json")
        context.Process(target=serve, args=(theirs, values, variant), daemon=True).start()
    taken: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant in sorted(variants, reverse=bool(number % 2)):
            pipes[variant].send(4)
            taken[variant].append(pipes[variant].recv())
    for pipe in pipes.values():
        pipe.send(0)
    return {variant: statistics.median(values) for variant, values in taken.items()}


def accuracies(run: Path, suite: str, num_images: int) -> dict[str, float]:
    """Of the weights themselves, at the best held-out epoch and at the last; their averages are other students."""
    names = ("best", "last")
    records = evaluate_run(
        run, checkpoints=names, suite=suite, num_images=num_images, eps_curve=False, progress=False
    ).values()
    found: dict[str, float] = {}
    for name, each in zip(names, records, strict=True):
        found |= {f"clean, {name}": float(each.clean_correct.mean()), f"robust, {name}": float(each.robust.mean())}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe without teachers, PGD-10")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT",
                        help=f"of these: {'; '.join(VARIANTS)}; the first is always there")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-images", type=int, default=1000, help="test images")
    parser.add_argument("--suite", default="pgd", help="of attacks, on test images")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runs", type=Path, default=Path("runs/cheap"), help="it goes on where it was stopped")
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments, overrides = parser.parse_known_args()
    base = resolve(arguments.recipe, overrides)
    numbers = {each: number for number, each in enumerate(VARIANTS) if each in (PLAIN, *arguments.variants)}
    found: dict[str, dict[str, list[float]]] = {variant: {} for variant in numbers}
    steps, suite = 0, arguments.suite
    for seed in range(arguments.seeds):
        for variant, number in numbers.items():
            config, run = configuration(base, variant, seed), arguments.runs / f"seed-{seed}" / str(number)
            train(config, run, progress=False)
            images = len(json.loads((run / "split.json").read_text(encoding="utf-8"))["train"])
            steps = config.optim.epochs * -(-images // config.optim.batch_size)
            for what, accuracy in accuracies(run, suite, arguments.num_images).items():
                found[variant].setdefault(what, []).append(accuracy)
    times = seconds_a_step(base, numbers, arguments.rounds)
    rows = {}
    print(f"{arguments.recipe} {' '.join(overrides)}, {arguments.seeds} seeds, {steps} steps\n")
    print("| | robust, best | difference | robust, last | difference | processor seconds | faster by |")
    print("|---|---|---|---|---|---|---|")
    for variant, values in found.items():
        cells = []
        for which in ("robust, best", "robust, last"):
            spread = statistics.stdev(values[which]) if arguments.seeds > 1 else 0.0
            paired = paired_over_seeds(values[which], found[PLAIN][which])
            shown = f"{paired.mean:+.3f} ± {paired.std:.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"
            cells += [f"{statistics.mean(values[which]):.3f} ± {spread:.3f}", "" if variant == PLAIN else shown]
        faster = times[PLAIN] / times[variant]
        print(f"| {variant} | {' | '.join(cells)} | {steps * times[variant]:.0f} | {faster:.2f}× |", flush=True)
        rows[variant] = {**values, "seconds": steps * times[variant], "is_faster_by": round(faster, 2)}
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "date": datetime.date.today().isoformat(), "environment": environment(), "recipe": arguments.recipe,
            "overrides": overrides, "suite": suite, "steps": steps, "rows": rows,
        }  # fmt: skip
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
