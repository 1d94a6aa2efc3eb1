"""How much of a training step is spent outside the networks' own forward and backward passes?

    python benchmarks/speed/step_overhead.py --out benchmarks/results/step-overhead-DATE.json

About a minute on one core. ResNet-8 of width 16 on 3x32x32, batch 128, PGD-10, one thread: whole steps (attack on the
light copy, loss, backward, optimizer) and the same passes through the same networks run bare, on tensors of the same
layout, take turns in one process; to bring the copy up to date is overhead. Time is processor time, so that other work
on the machine does not count; the share is 1 - bare / whole, the median over rounds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from steps import repeated
from torch import Tensor, nn

from robustill.acceleration.tracking import TrackingCopy
from robustill.core.contexts import evaluating, frozen
from robustill.core.device import environment
from robustill.core.memory_format import place
from robustill.core.randomness import generator, uniform
from robustill.methods import AKD, AT, Batch, Method
from robustill.models import build
from robustill.threat import Threat
from robustill.training.optimizer import build_optimizer
from robustill.training.step import Step

BATCH, CLASSES, STEPS = 128, 10, 10
THREATS = {"linf": Threat(norm="linf", eps=8 / 255), "l2": Threat(norm="l2", eps=0.5), "l1": Threat(norm="l1", eps=12)}


def network(seed: int) -> nn.Module:
    model = build("resnet8", num_classes=CLASSES, in_channels=3, image_size=(32, 32), seed=seed, width=16)
    return place(model, torch.device("cpu"))


def images() -> Tensor:
    x = uniform(torch.empty(BATCH, 3, 32, 32), generator(0, "images"))
    return x.contiguous(memory_format=torch.channels_last)


def whole_step(method: Method, teacher: nn.Module | None, threat: Threat, precision: str) -> Callable[[], None]:
    student = network(0).train()
    step = Step(
        student, method, teacher, threat, steps=STEPS, step_size=threat.eps / 4, precision=precision, light=True
    )
    optimizer = build_optimizer(
        [student], "sgd", learning_rate=1e-4, weight_decay=5e-4, decay_all=False, momentum=0.9, nesterov=True
    )
    batch = Batch(x=images(), y=torch.arange(BATCH) % CLASSES, index=torch.arange(BATCH))
    return repeated(step, batch, optimizer)


def bare_passes(teacher: nn.Module | None, precision: str) -> Callable[[], None]:
    student, x = network(0).train(), images()
    towards = torch.full((BATCH, CLASSES), 1 / BATCH)
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    with evaluating(student), frozen(student):
        attacked = TrackingCopy.of(student, x, bf16=precision == "bf16")
    assert attacked is not None

    def run() -> None:
        for _ in range(STEPS):
            leaf = x.detach().requires_grad_(True)
            logits = attacked(leaf)
            torch.autograd.grad(logits, leaf, towards.to(logits.dtype))
        with mixed:
            if teacher is not None:
                with torch.no_grad():
                    teacher(x)
            logits = student(x)
        torch.autograd.grad(logits, list(student.parameters()), towards.to(logits.dtype))

    return run


def seconds(run: Callable[[], None]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(name: str, norm: str, precision: str, rounds: int) -> dict[str, object]:
    teacher = network(1).eval().requires_grad_(False) if name == "akd" else None
    method = AKD() if name == "akd" else AT()
    whole, bare = whole_step(method, teacher, THREATS[norm], precision), bare_passes(teacher, precision)
    whole(), bare()  # the first of each sets up kernels
    times = []
    for number in range(rounds):
        # Who goes first changes every round, so that a drift of the machine's speed favours neither.
        if number % 2:
            passes = seconds(bare)
            times.append((seconds(whole), passes))
        else:
            times.append((seconds(whole), seconds(bare)))
    shares = [1 - passes / step for (_, step), (_, passes) in times]
    row = {
        "method": name,
        "threat": str(THREATS[norm]),
        "precision": precision,
        "rounds": rounds,
        "step_processor_seconds": round(statistics.median(step for (_, step), _ in times), 4),
        "passes_processor_seconds": round(statistics.median(passes for _, (_, passes) in times), 4),
        "step_wall_seconds": round(statistics.median(step for (step, _), _ in times), 4),
        "passes_wall_seconds": round(statistics.median(passes for _, (passes, _) in times), 4),
        "overhead_share": round(statistics.median(shares), 4),
        "overhead_share_quartiles": [round(share, 4) for share in statistics.quantiles(shares, n=4)[::2]],
    }
    print(f"{name:4} {row['threat']!s:12} {precision}: step {row['step_processor_seconds']} s, networks alone "
          f"{row['passes_processor_seconds']} s, overhead {row['overhead_share']:.1%}")  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--norms", nargs="+", choices=sorted(THREATS), default=["linf"])
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--trace", action="store_true", help="print where one AT step spends its time, by operator")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.trace:
        run = whole_step(AT(), None, THREATS[arguments.norms[0]], arguments.precisions[0])
        run()
        with torch.profiler.profile() as profile:
            run()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
        return
    rows = [
        measure(name, norm, precision, arguments.rounds)
        for precision in arguments.precisions
        for norm in arguments.norms
        for name in ("at", "akd")
    ]
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        date = datetime.date.today().isoformat()
        content = {"date": date, "environment": environment(), "threads": 1, "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
