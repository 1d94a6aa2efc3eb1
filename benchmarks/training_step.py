"""A whole training step beside a plain loop: RSLAD and PGD-AT with PGD-10, on CIFAR-sized images.

    python benchmarks/training_step.py --threads 1 --out benchmarks/results/training-step-DATE.json

The plain loop is what research scripts write: float32, channels first, eager, the teacher without gradients, the attack
in eval mode with the gradient towards the images alone. Ours is `Step` with the settings that `train` uses, in float32
and in bf16. Every variant begins from the same weights and the same images; they take turns, and whoever goes first
changes every round. Ratios are medians over rounds of plain / ours within a round.
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
from torch.nn import functional as F

from robustill import runtime
from robustill.methods import AT, RSLAD, Batch, Method
from robustill.models import build
from robustill.randomness import generator, uniform
from robustill.step import Step
from robustill.threat import Threat

CLASSES, STEPS, EPS, STEP_SIZE = 10, 10, 8 / 255, 2 / 255
SHAPES = {"resnet8": 128, "resnet18": 32, "mobilenetv2": 32}
"""Models and the batch each is measured with."""

Run = Callable[[], None]


def network(name: str, seed: int) -> nn.Module:
    options = {"width": 16} if name == "resnet8" else {}
    return build(name, num_classes=CLASSES, in_channels=3, image_size=32, seed=seed, **options)


def images(batch: int) -> tuple[Tensor, Tensor]:
    return uniform(torch.empty(batch, 3, 32, 32), generator(0, "images")), torch.arange(batch) % CLASSES


def sgd(model: nn.Module) -> torch.optim.SGD:
    # So slow that the weights, and with them the work, stay what they are.
    return torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)


def plain_attack(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    model.eval()
    x_adv = x + 0.001 * torch.randn_like(x)
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_()
        grad = torch.autograd.grad(loss(model(x_adv)), [x_adv])[0]
        x_adv = x_adv.detach() + STEP_SIZE * torch.sign(grad)
        x_adv = torch.clamp(torch.min(torch.max(x_adv, x - EPS), x + EPS), 0.0, 1.0)
    model.train()
    return x_adv.detach()


def plain_rslad(name: str) -> Run:
    student, teacher = network(name, 0), network(name, 1).eval()
    (x, _), optimizer = images(SHAPES[name]), sgd(student)

    def run() -> None:
        with torch.no_grad():
            target = F.softmax(teacher(x), dim=1)
        x_adv = plain_attack(
            student, x, lambda z: F.kl_div(F.log_softmax(z, dim=1), target, reduction="none").sum(dim=1).sum()
        )
        adversarial = F.kl_div(F.log_softmax(student(x_adv), dim=1), target, reduction="batchmean")
        clean = F.kl_div(F.log_softmax(student(x), dim=1), target, reduction="batchmean")
        optimizer.zero_grad()
        (5 / 6 * adversarial + 1 / 6 * clean).backward()
        optimizer.step()

    return run


def plain_at(name: str) -> Run:
    student = network(name, 0)
    (x, y), optimizer = images(SHAPES[name]), sgd(student)

    def run() -> None:
        x_adv = plain_attack(student, x, lambda z: F.cross_entropy(z, y, reduction="sum"))
        loss = F.cross_entropy(student(x_adv), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def ours(name: str, method: Method, precision: str) -> Run:
    cpu = torch.device("cpu")
    student = runtime.place(network(name, 0), cpu).train()
    teacher = runtime.place(network(name, 1), cpu) if method.roles else None
    threat = Threat(norm="linf", eps=EPS)
    step = Step(student, method, teacher, threat, steps=STEPS, step_size=STEP_SIZE, precision=precision, light=True)
    (x, y), optimizer = images(SHAPES[name]), sgd(student)
    batch = Batch(x=x.contiguous(memory_format=torch.channels_last), y=y, index=torch.arange(len(y)))
    return repeated(step, batch, optimizer)


def measure(name: str, method: str, rounds: int) -> dict[str, object]:
    plain = plain_rslad(name) if method == "rslad" else plain_at(name)
    kind = RSLAD if method == "rslad" else AT
    runs = {"plain": plain, "fp32": ours(name, kind(), "fp32"), "bf16": ours(name, kind(), "bf16")}
    for run in runs.values():
        run()  # the first of each sets up kernels
    wall: dict[str, list[float]] = {each: [] for each in runs}
    for number in range(rounds):
        for each in sorted(runs, reverse=bool(number % 2)):
            began = time.perf_counter(), time.process_time()
            runs[each]()
            # With one thread, processor time leaves out what else the machine does.
            one = torch.get_num_threads() == 1
            wall[each].append(time.process_time() - began[1] if one else time.perf_counter() - began[0])
    row: dict[str, object] = {"model": name, "batch": SHAPES[name], "method": method, "rounds": rounds}
    row["seconds"] = {each: round(statistics.median(values), 4) for each, values in wall.items()}
    for each in ("fp32", "bf16"):
        ratios = [before / after for before, after in zip(wall["plain"], wall[each], strict=True)]
        row[f"{each}_is_faster_by"] = round(statistics.median(ratios), 3)
        row[f"{each}_quartiles"] = [round(value, 3) for value in statistics.quantiles(ratios, n=4)[::2]]
    print(
        f"| {name}, batch {SHAPES[name]} | {method} | {statistics.median(wall['plain']):.2f} s "
        f"| {row['fp32_is_faster_by']:.2f}× | {row['bf16_is_faster_by']:.2f}× |",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--methods", nargs="+", choices=("rslad", "at"), default=["rslad", "at"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| model | method | plain step | fp32 is faster by | bf16 |\n|---|---|---|---|---|")
    rows = [measure(name, method, arguments.rounds) for name in arguments.models for method in arguments.methods]
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        date = datetime.date.today().isoformat()
        clock = "processor" if arguments.threads == 1 else "wall"
        content = {"date": date, "environment": runtime.environment(), "clock": clock, "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
