"""How fast and how exact is it on one GPU? With torch and numpy alone beside the package's source.

    python benchmarks/speed/gpu.py --data DATA --out benchmarks/results/gpu-DATE.json
    python benchmarks/speed/gpu.py --miniature    # every part, tiny; it also ends without a GPU

Under nine minutes. Where the package is not installed, set PYTHONPATH=src.

Parts, in this order; the file is written anew after each, so that a run that is cut off keeps what it has:

- peaks: products of matrices and 3×3 convolutions in bf16, by which the steps' shares are taken;
- steps: AT and AKD with PGD-10, the plain loop in float32 as training_step.py writes it and ours in bf16: images/s,
  share of the peaks, memory;
- graphs: ours eager and whole as one CUDA graph, in turns;
- training: robust accuracy after a short training on CIFAR-10 in each precision (on drawn patterns without --data);
- autoattack: ours, exact and fast, and the authors' code where pyautoattack can be imported;
- training in whole float32, the slowest;
- compiled: our steps with torch.compile, and that as one CUDA graph, each in turns with ours eager;
- waits: what our step makes the host wait for, last, as a GPU that was profiled may stay slower.

What would not end in time is left out, and so is what fails; both are named with their reason.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_accuracy import Pair, autoattacks, images_of, trainings
from gpu_steps import Ours, captured, compiled, plain_step, step_flops, synchronisations
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.core.device import environment, pick_device
from robustill.core.files import write_text
from robustill.core.randomness import gaussian, generator

Run = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    models: dict[str, dict[str, Any]]
    batch: int
    pgd_steps: int
    rounds: int
    product: int
    convolution: tuple[int, int, int]  # images, channels, pixels a side
    training: dict[str, Any]
    autoattack: dict[str, Any]
    compiler: str


FULL = Scale(
    models={"resnet18": {}, "wideresnet": {"depth": 28, "width": 10}, "resnet8": {"width": 16}},
    batch=256,
    pgd_steps=10,
    rounds=5,
    product=8192,
    convolution=(256, 320, 16),
    training={"model": "resnet18", "options": {}, "batch": 256, "steps": 10, "epochs": 2, "test": 2000},
    autoattack={"images": 64, "batch": 256},
    compiler="inductor",
)
MINIATURE = Scale(
    models={"resnet8": {"width": 4}, "wideresnet": {"depth": 10, "width": 1}},
    batch=4,
    pgd_steps=2,
    rounds=2,
    product=128,
    convolution=(2, 8, 8),
    training={"model": "resnet8", "options": {"width": 4}, "batch": 32, "steps": 1, "epochs": 1, "test": 40},
    autoattack={"images": 4, "batch": 4, "steps": 3, "queries": 10, "targets": 2},
    compiler="aot_eager",  # the others want a compiler of C++
)


class Report:
    """The figures so far, on disk after every part."""

    def __init__(self, out: Path | None, content: dict[str, Any], minutes: float) -> None:
        self.out, self.content = out, content
        self.ends = time.perf_counter() + 60 * minutes

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.perf_counter()

    def attempt(self, place: dict[str, Any], name: str, part: Callable[[], Any], needs: float) -> None:
        """One part: its figures under its name, or the reason why there are none."""
        began = time.perf_counter()
        if self.left() < needs:
            self.leave_out(name, f"{max(self.left(), 0):.0f} s were left, it may take {needs:.0f} s")
            return
        try:
            place[name] = part()
            print(f"{name}: {json.dumps(place[name])}", flush=True)
        except Exception as error:
            # A part that one version of torch or one GPU cannot do must not cost the others.
            self.leave_out(name, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}")
        self.content["part_seconds"][name] = round(time.perf_counter() - began, 1)
        self.write()

    def leave_out(self, name: str, reason: str) -> None:
        self.content["left_out"][name] = reason
        print(f"{name} is left out: {reason}", flush=True)

    def write(self) -> None:
        if self.out is not None:
            write_text(self.out, json.dumps(self.content, indent=1) + "\n")


def seconds(run: Run, times: int, device: torch.device) -> float:
    """Of one of several runs in a row, once the device has done them all."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        run()
    _wait(device)
    return (time.perf_counter() - began) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(runs: dict[str, Run], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each; who goes first changes every round."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in sorted(runs, reverse=bool(number % 2)):
            taken[name].append(seconds(runs[name], 3, device))
    return {name: statistics.median(values) for name, values in taken.items()}


def peaks(scale: Scale, device: torch.device) -> dict[str, float]:
    """TFLOP/s in bf16: a product of square matrices; a 3×3 convolution's forward pass and gradient to its input."""
    n = scale.product
    draws = generator(0, "peaks", device=device)

    def drawn(*shape: int) -> Tensor:
        # Not constants: a GPU that draws less power over them runs faster than it will over anything real.
        return gaussian(torch.empty(shape, device=device), draws).to(torch.bfloat16)

    a, b = drawn(n, n), drawn(n, n)
    B, C, H = scale.convolution
    x = drawn(B, C, H, H).contiguous(memory_format=torch.channels_last)
    w = drawn(C, C, 3, 3).contiguous(memory_format=torch.channels_last)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_(True)

    def convolve() -> None:
        torch.autograd.grad(F.conv2d(leaf, w, padding=1), leaf, x)

    taken = in_turns({"product": lambda: a @ b, "convolution": convolve}, 3 * scale.rounds, device)
    work = {"product": 2 * n**3, "convolution": 2 * 2 * B * H * H * C * C * 9}
    return {name: round(work[name] / taken[name] / 1e12, 8) for name in work}


def measure(
    runs: dict[str, Run], flops: float, scale: Scale, device: torch.device, peak: dict[str, float]
) -> dict[str, Any]:
    """What is known of each way to make one step."""
    taken = in_turns(runs, scale.rounds, device)
    rows: dict[str, Any] = {}
    for name, spent in taken.items():
        rate = scale.batch * flops / spent / 1e12
        rows[name] = {
            "images_per_second": round(scale.batch / spent, 1),
            "tflops": round(rate, 4),
            **{f"share_of_{what}_peak": round(rate / value, 4) for what, value in peak.items()},
        }
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            runs[name]()
            # A graph holds its memory all the time.
            if "graph" not in name:
                rows[name]["gib_beside_weights"] = round((torch.cuda.max_memory_allocated(device) - before) / 2**30, 2)
    first = next(iter(runs))
    for name, spent in taken.items():
        rows[name][f"faster_than_{first}_by"] = round(taken[first] / spent, 3)
    return rows


def steps(model: str, method: str, scale: Scale, device: torch.device, peak: dict[str, float]) -> dict[str, Any]:
    """The plain loop and ours on the same images."""
    settings = (model, scale.models[model], method, scale.batch, scale.pgd_steps, device)
    one = Ours(*settings)
    runs: dict[str, Run] = {"plain": plain_step(*settings), "eager": one}
    flops = step_flops(model, scale.models[model], method, scale.pgd_steps)
    rows = measure(runs, flops, scale, device, peak)
    return {
        "batch": scale.batch,
        "gflops_an_image": round(flops / 1e9, 3),
        "attack_on_light_copy": one.light is not None,
        "loss": round(float(one.loss()), 4),
        **rows,
    }


def waits(model: str, method: str, scale: Scale, device: torch.device) -> dict[str, int]:
    """What our step makes the host wait for."""
    return synchronisations(Ours(model, scale.models[model], method, scale.batch, scale.pgd_steps, device), device)


def variant(
    model: str, method: str, scale: Scale, device: torch.device, peak: dict[str, float], *, kind: str
) -> dict[str, Any]:
    """Ours as a graph, compiled, or both, in turns with ours eager."""
    settings = (model, scale.models[model], method, scale.batch, scale.pgd_steps, device)
    other = Ours(*settings)
    began = time.perf_counter()
    if "compiled" in kind:
        # Or what earlier parts compiled counts against the number of versions that may be.
        torch.compiler.reset()
        compiled(other, scale.compiler)
    other()
    run: Run = captured(other) if "graph" in kind else other
    _wait(device)
    spent = time.perf_counter() - began
    flops = step_flops(model, scale.models[model], method, scale.pgd_steps)
    rows = measure({"eager": Ours(*settings), kind: run}, flops, scale, device, peak)
    return {"preparation_seconds": round(spent, 1), "loss": round(float(other.loss()), 4), **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder with CIFAR-10's files")
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    parser.add_argument("--minutes", type=float, default=8.5, help="nothing is begun that would end later")
    parser.add_argument("--miniature", action="store_true", help="tiny networks, few images: figures mean nothing")
    arguments = parser.parse_args()
    device = pick_device("cpu" if arguments.miniature else "auto")
    scale = MINIATURE if device.type == "cpu" else FULL
    if scale is MINIATURE:
        print("in miniature, on the processor: its figures say nothing but that every part runs to its end")
    dataset, source = images_of(arguments.data, small=scale is MINIATURE)
    content: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "environment": environment() | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()},
        "miniature": scale is MINIATURE,
        # Of the plain loop, as torch has it where nobody asks; trainings and AutoAttack say what they take.
        "float32_convolutions": torch.backends.cudnn.conv.fp32_precision,
        "images": source,
        "part_seconds": {},
        "left_out": {},
    }
    report = Report(arguments.out, content, arguments.minutes)
    measure_all(report, scale, device, dataset)
    report.write()


def measure_all(report: Report, scale: Scale, device: torch.device, dataset: Pair) -> None:
    content = report.content
    # Of a part in full size, in seconds; what is measured in miniature takes no time.
    cost = 0.0 if scale is MINIATURE else 1.0
    report.attempt(content, "peaks", lambda: peaks(scale, device), 10 * cost)
    peak = content.get("peaks", {})
    if device.type != "cuda":
        for name in ("cuda graphs", "tf32"):
            report.leave_out(name, "there is no GPU")
    cells = [(model, method) for model in scale.models for method in ("at", "akd")]
    for model, method in cells:
        part = partial(steps, model, method, scale, device, peak)
        report.attempt(content, f"{model} {method}", part, 40 * cost)
        _release(device)
    # After all of those: a capture that fails may leave the device's memory in disorder.
    for model, method in cells if device.type == "cuda" else ():
        part = partial(variant, model, method, scale, device, peak, kind="graph")
        report.attempt(content, f"{model} {method} graph", part, 20 * cost)
        _release(device)
    content["training"], content["autoattack"], content["host_waits_for"] = {}, {}, {}
    trained: dict[str, nn.Module] = {}
    train = {
        name: partial(report.attempt, content["training"], name, partial(each, trained, name), 30 * cost)
        for name, each in trainings(dataset, scale.training, device, report.left).items()
    }
    whole = train.pop("fp32")
    for each in train.values():
        each()
    if "bf16" in trained:
        for name, attack in autoattacks(trained["bf16"], dataset, scale.autoattack, device, report.left).items():
            # Ours ends when the time does; the authors' code cannot be told to.
            report.attempt(content["autoattack"], name, attack, (120 if name == "authors" else 30) * cost)
    whole()
    kinds = ("compiled", "compiled graph") if device.type == "cuda" else ("compiled",)
    for model, method in cells:
        for kind in kinds:
            part = partial(variant, model, method, scale, device, peak, kind=kind)
            report.attempt(content, f"{model} {method} {kind}", part, 60 * cost)
            _release(device)
    for model, method in cells:
        part = partial(waits, model, method, scale, device)
        report.attempt(content["host_waits_for"], f"{model} {method}", part, 10 * cost)
        _release(device)


def _release(device: torch.device) -> None:
    gc.collect()  # traced networks refer to themselves
    # After an error that a GPU does not recover from, the parts that follow say so; the figures so far are written.
    with contextlib.suppress(RuntimeError):
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
