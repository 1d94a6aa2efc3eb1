"""What does a training step of every method cost, as a multiple of a step of PGD adversarial training?

    python benchmarks/speed/method_steps.py --out benchmarks/results/method-steps-DATE.json

About three minutes on one core. Student and teachers are ResNet-8 of width 16 on 3x32x32 with weights at random, batch
64, PGD-10 in linf 8/255, one thread, float32; methods as published, in the last epoch, when everything that a method
begins later has begun. A step is attack (light, as in training), loss, backward and optimizer. All methods take turns
in one process, in another order every round; time is processor time, so that other work on the machine does not count.
A ratio is that of a round: a method's step to the step of `at` in the same round; the median over rounds is given with
its quartiles. Passes a step: student forward, student backward, teacher forward, teacher backward.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from steps import repeated
from torch import Tensor, nn

from robustill.core.device import environment
from robustill.core.memory_format import place
from robustill.core.randomness import generator, uniform
from robustill.methods import METHODS, Batch, build_method
from robustill.methods.base import SELF
from robustill.models import build
from robustill.teachers.ensemble import combine
from robustill.threat import Threat
from robustill.training.cost import count_passes
from robustill.training.optimizer import build_optimizer
from robustill.training.step import Step

BATCH, CLASSES, STEPS, EPOCHS = 64, 10, 10, 100
REFERENCE = "at"
SEEDS = {"robust": 1, "natural": 2, SELF: 0}


def network(seed: int) -> nn.Module:
    model = build("resnet8", num_classes=CLASSES, in_channels=3, image_size=(32, 32), seed=seed, width=16)
    return place(model, torch.device("cpu"))


def training_step(name: str) -> Callable[[], None]:
    """One step of a method, again and again on the same batch."""
    method, student = build_method(name), network(0).train()
    method.set_up(lambda *_, **__: network(3).train())
    teacher = combine((role, 1.0, network(SEEDS[role])) for role in method.roles)
    threat = Threat(norm="linf", eps=8 / 255)
    step = Step(student, method, teacher, threat, steps=STEPS, step_size=2 / 255, light=True)
    optimizer = build_optimizer(
        [student, method], "sgd", learning_rate=1e-4, weight_decay=5e-4, decay_all=False, momentum=0.9, nesterov=True
    )
    x: Tensor = uniform(torch.empty(BATCH, 3, 32, 32), generator(0, "images"))
    batch = Batch(
        x=x.contiguous(memory_format=torch.channels_last),
        y=torch.arange(BATCH) % CLASSES,
        index=torch.arange(BATCH),
        epoch=EPOCHS - 1,
        epochs=EPOCHS,
    )
    return repeated(step, batch, optimizer)


def measure(names: list[str], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of a step, by method and round."""
    steps = {name: training_step(name) for name in names}
    for step in steps.values():
        step()  # The first of each sets up kernels.
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for position in torch.randperm(len(names), generator=generator(0, "order", number)).tolist():
            began = time.process_time()
            steps[names[position]]()
            seconds[names[position]].append(time.process_time() - began)
    return seconds


def rows(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """What is known of each method."""
    found: list[dict[str, Any]] = []
    for name, values in seconds.items():
        ratios = [value / reference for value, reference in zip(values, seconds[REFERENCE], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
        found.append(
            {
                "method": name,
                "passes": asdict(count_passes(build_method(name), STEPS)),
                "step_processor_seconds": round(statistics.median(values), 4),
                "ratio": round(ratio, 3),
                "ratio_quartiles": [round(low, 3), round(high, 3)],
            }
        )
    return found


def print_table(found: list[dict[str, Any]]) -> None:
    header = ["method", "passes", f"a step of `{REFERENCE}`", "quartiles", "seconds"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in found:
        counts = " ".join(str(count) for count in row["passes"].values())
        low, high = row["ratio_quartiles"]
        print(f"| {row['method']} | {counts} | {row['ratio']:.2f}× | {low:.2f}–{high:.2f} | "
              f"{row['step_processor_seconds']:.3f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    parser.add_argument("--rounds", type=int, default=15, help="2 or more")
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help=f"besides {REFERENCE}"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds is {arguments.rounds}, expected 2 or more")
    torch.set_num_threads(1)
    names = [name for name in METHODS if name in (REFERENCE, *arguments.methods)]
    began = time.perf_counter()
    found = rows(measure(names, arguments.rounds))
    print_table(found)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "date": datetime.date.today().isoformat(),
            "environment": environment(),
            "threads": 1,
            "setting": {"student": "resnet8 width=16", "teacher": "resnet8 width=16", "images": [3, 32, 32],
                        "batch": BATCH, "steps": STEPS, "precision": "fp32"},
            "rounds": arguments.rounds,
            "wall_seconds": round(time.perf_counter() - began, 1),
            "rows": found,
        }  # fmt: skip
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
