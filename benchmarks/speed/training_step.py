"""How fast is a whole training step beside a plain loop and others? RSLAD and PGD-AT with PGD-10, CIFAR-sized images.

    python benchmarks/speed/training_step.py --threads 1 --peers PACKAGES \\
        --out benchmarks/results/training-step-DATE.json

About ten minutes on two idle cores; `--models resnet8` about two. The plain loop is what research scripts write:
float32, channels first, eager, the teacher without gradients, the attack in eval mode with the gradient towards the
images alone. Ours is `Step` with the settings that `train` uses, in float32 and in bf16. Every variant has a process of
its own, set up as its users' is, and begins from the same weights and the same images; the processes take turns, and
whoever goes first changes every round. Ratios are medians over rounds of plain / ours within a round; the peak is that
of the fastest 3×3 convolutions in bf16. `rslad-wide` has a WideResNet-34-10 for its teacher, whose logits ours finds in
its cache, as it does from the second run on.

The peers, PGD of torchattacks in the plain loop and ART's adversarial trainer, have no distillation and are measured
for PGD-AT; they are looked for in the running environment and in the folder given with --peers, and left out where they
are not:

    python -m venv PEERS && PEERS/bin/pip install -c constraints.txt torchattacks adversarial-robustness-toolbox
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch
from steps import plain_attack, repeated
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from robustill.config.schema import ComputeConfig
from robustill.core.device import configure_process, environment
from robustill.core.memory_format import place
from robustill.core.randomness import generator, uniform
from robustill.methods import AT, RSLAD, Batch, Method
from robustill.models import build
from robustill.teachers.cache import CachedTeacher, TeacherCache
from robustill.threat import Threat
from robustill.training.step import Step

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


def attack_in_eval_mode(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    model.eval()
    start = x + 0.001 * torch.randn_like(x)
    x_adv = plain_attack(model, x, start, loss, eps=EPS, step_size=STEP_SIZE, steps=STEPS)
    model.train()
    return x_adv


def wide() -> nn.Module:
    shape = {"num_classes": CLASSES, "in_channels": 3, "image_size": 32}
    return build("wideresnet", depth=34, width=10, seed=1, **shape).eval()


def plain_rslad(name: str, method: str) -> Run:
    student, teacher = network(name, 0), wide() if method == "rslad-wide" else network(name, 1).eval()
    (x, _), optimizer = images(SHAPES[name]), sgd(student)

    def run() -> None:
        with torch.no_grad():
            target = F.softmax(teacher(x), dim=1)
        x_adv = attack_in_eval_mode(
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
        x_adv = attack_in_eval_mode(student, x, lambda z: F.cross_entropy(z, y, reduction="sum"))
        loss = F.cross_entropy(student(x_adv), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def torchattacks_at(name: str) -> Run:
    student = network(name, 0)
    (x, y), optimizer = images(SHAPES[name]), sgd(student)
    attack = importlib.import_module("torchattacks").PGD(student, eps=EPS, alpha=STEP_SIZE, steps=STEPS)

    def run() -> None:
        x_adv = attack(x, y)
        loss = F.cross_entropy(student(x_adv), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def art_at(name: str) -> Run:
    student = network(name, 0)
    x, y = (each.numpy() for each in images(SHAPES[name]))
    classifier = importlib.import_module("art.estimators.classification").PyTorchClassifier(
        student, loss=nn.CrossEntropyLoss(), optimizer=sgd(student), input_shape=x.shape[1:], nb_classes=CLASSES,
        clip_values=(0.0, 1.0),
    )  # fmt: skip
    trainer = importlib.import_module("art.defences.trainer").AdversarialTrainerMadryPGD(
        classifier, nb_epochs=1, batch_size=len(x), eps=EPS, eps_step=STEP_SIZE, max_iter=STEPS
    )
    return lambda: trainer.fit(x, y)


def ours(name: str, method: str, precision: Literal["fp32", "bf16"], *, keep_memory: bool = True) -> Run:
    device = configure_process(ComputeConfig(device="cpu", keep_memory=keep_memory))
    student = place(network(name, 0), device).train()
    objective: Method = AT() if method == "at" else RSLAD()
    teacher: nn.Module | None = None
    if method == "rslad":
        teacher = place(network(name, 1), device)
    elif method == "rslad-wide":
        folder = Path(tempfile.mkdtemp())
        teacher = CachedTeacher(place(wide(), device), TeacherCache(folder / "robust", {}, CLASSES))
        weakref.finalize(teacher, shutil.rmtree, folder)
    step = Step(
        student, objective, teacher, Threat(norm="linf", eps=EPS), steps=STEPS, step_size=STEP_SIZE,
        precision=precision, light=True,
    )  # fmt: skip
    (x, y), optimizer = images(SHAPES[name]), sgd(student)
    batch = Batch(x=x.contiguous(memory_format=torch.channels_last), y=y, index=torch.arange(len(y)))
    return repeated(step, batch, optimizer)


VARIANTS: dict[str, Callable[[str, str], Run]] = {
    "plain": lambda name, method: plain_at(name) if method == "at" else plain_rslad(name, method),
    "torchattacks": lambda name, _: torchattacks_at(name),
    "art": lambda name, _: art_at(name),
    "fp32": lambda name, method: ours(name, method, "fp32"),
    "bf16": lambda name, method: ours(name, method, "bf16"),
}
PEERS = ("torchattacks", "art")


def serve(pipe: Connection, variant: str, name: str, method: str, threads: int, peers: Path | None) -> None:
    """One variant in its process: a step whenever it is asked for one, its seconds for an answer."""
    torch.set_num_threads(threads)
    if variant in PEERS:
        os.environ["TQDM_DISABLE"] = "1"
        sys.path += [] if peers is None else [str(peers)]
    try:
        run = VARIANTS[variant](name, method)
        for _ in range(2):
            run()  # the first sets up kernels and memory
    except ImportError as error:
        pipe.send(str(error))
        return
    pipe.send(None)
    while pipe.recv():
        wall, processor = time.perf_counter(), time.process_time()
        run()
        # With one thread, processor time leaves out what else the machine does.
        pipe.send(time.process_time() - processor if threads == 1 else time.perf_counter() - wall)


def step_flops(name: str, method: str) -> float:
    """Of a step on a whole batch: both passes of the student and what its teacher says once."""
    one = torch.zeros(1, 3, 32, 32)

    def forward(model: nn.Module) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(one)
        return float(counter.get_total_flops())

    student = forward(network(name, 0).eval())
    units = 2 * STEPS + 3 * (1 if method == "at" else 2)
    # A wide teacher's logits come from the cache.
    return SHAPES[name] * student * (units + (method == "rslad"))


def peak(pipe: Connection, threads: int) -> None:
    """The most floating-point operations a second that 3×3 convolutions in bf16 come to."""
    torch.set_num_threads(threads)
    found = 0.0
    for channels, side in ((64, 32), (128, 16), (256, 8)):
        x = torch.rand(32, channels, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
        layer = nn.Conv2d(channels, channels, 3, padding=1).bfloat16().to(memory_format=torch.channels_last)
        with torch.no_grad():
            for _ in range(20):
                wall, processor = time.perf_counter(), time.process_time()
                layer(x)
                spent = time.process_time() - processor if threads == 1 else time.perf_counter() - wall
                found = max(found, 2 * 9 * channels**2 * side**2 * 32 / spent)
    pipe.send(found)


def measured_peak(threads: int) -> float:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    context.Process(target=peak, args=(theirs, threads), daemon=True).start()
    found: float = mine.recv()
    return found


def measure(name: str, method: str, rounds: int, threads: int, peers: Path | None) -> dict[str, object]:
    context, pipes = multiprocessing.get_context("spawn"), {}
    for variant in VARIANTS if method == "at" else [each for each in VARIANTS if each not in PEERS]:
        mine, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, variant, name, method, threads, peers), daemon=True).start()
        missing = mine.recv()
        if missing is None:
            pipes[variant] = mine
        else:
            print(f"{variant} is left out: {missing}")
    seconds: dict[str, list[float]] = {each: [] for each in pipes}
    for number in range(rounds):
        for each in sorted(pipes, reverse=bool(number % 2)):
            pipes[each].send(True)
            seconds[each].append(pipes[each].recv())
    for each in pipes.values():
        each.send(False)
    row: dict[str, object] = {"model": name, "batch": SHAPES[name], "method": method, "rounds": rounds}
    row["seconds"] = {each: round(statistics.median(values), 4) for each, values in seconds.items()}
    share = step_flops(name, method) / statistics.median(seconds["bf16"]) / measured_peak(threads)
    row["share_of_bf16_peak"], shown = round(share, 3), []
    for each in list(pipes)[1:]:
        ratios = [before / after for before, after in zip(seconds["plain"], seconds[each], strict=True)]
        row[f"{each}_is_faster_by"] = round(statistics.median(ratios), 3)
        row[f"{each}_quartiles"] = [round(value, 3) for value in statistics.quantiles(ratios, n=4)[::2]]
        shown.append(f"{each} {row[f'{each}_is_faster_by']:.2f}×")
    print(f"| {name}, batch {SHAPES[name]} | {method} | {statistics.median(seconds['plain']):.2f} s | "
          f"{', '.join(shown)} | {share:.0%} |", flush=True)  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--methods", nargs="+", choices=("rslad", "at", "rslad-wide"), default=["rslad", "at"])
    parser.add_argument("--peers", type=Path, help="folder of packages to look for the others in")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments = parser.parse_args()
    print(f"{arguments.threads} threads\n\n| model | method | plain step | is faster by | bf16: of its peak |")
    print("|---|---|---|---|---|")
    rows = [
        measure(name, method, arguments.rounds, arguments.threads, arguments.peers)
        for name in arguments.models
        for method in arguments.methods
    ]
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        date = datetime.date.today().isoformat()
        clock = "processor" if arguments.threads == 1 else "wall"
        machine = {**environment(), "threads": arguments.threads}
        content = {"date": date, "environment": machine, "clock": clock, "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
