"""Convolutions that give few pixels, in bfloat16 on a CPU, beside the products of matrices that `SmallPlanes` takes.

    python benchmarks/small_planes.py --threads 2 --out benchmarks/results/small-planes-DATE.json

3×3 kernels with padding 1, of the shapes at the end of ResNet-18s and WideResNets: forward, and the gradients towards
the input and the weights, each by torch's convolution and by `Product`, in turns in one process that keeps freed
memory as `train` does. With one thread the time is processor time. Ratios are medians over rounds of convolution /
product; what `SmallPlanes` takes over is marked.
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
from torch import Tensor
from torch.nn import functional as F

from robustill import runtime
from robustill.randomness import generator, uniform
from robustill.small_planes import Product, SmallPlanes

SHAPES = [
    (32, 512, 512, 4, 1), (128, 512, 512, 4, 1), (32, 256, 512, 8, 2), (32, 256, 256, 4, 1), (32, 128, 256, 16, 2),
    (32, 320, 640, 16, 2), (32, 256, 256, 8, 1), (32, 64, 128, 32, 2), (128, 64, 64, 8, 1),
]  # fmt: skip
"""Batch, channels, output channels, side of the input, stride."""

Run = Callable[[], object]


def drawn(*shape: int) -> Tensor:
    values = uniform(torch.empty(shape), generator(0, "images")) - 0.5
    return values.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def runs(shape: tuple[int, int, int, int, int], *, product: bool) -> tuple[dict[str, Run], Tensor]:
    batch, channels, outputs, side, stride = shape
    x, weight = drawn(batch, channels, side, side), drawn(outputs, channels, 3, 3)
    x_leaf, weight_leaf = x.clone().requires_grad_(), weight.clone().requires_grad_()

    def convolution(x: Tensor, weight: Tensor) -> Tensor:
        if product:
            found: Tensor = Product.apply(x, weight, None, stride, 1, True)
            return found
        return F.conv2d(x, weight, None, stride, 1)

    towards_x, towards_weight = convolution(x_leaf, weight), convolution(x, weight_leaf)
    along = torch.ones_like(towards_x)
    with SmallPlanes():
        taken = F.conv2d(x, weight_leaf, None, stride, 1)
    return {
        "forward": lambda: convolution(x, weight),
        "towards x": lambda: torch.autograd.grad(towards_x, x_leaf, along, retain_graph=True),
        "towards weights": lambda: torch.autograd.grad(towards_weight, weight_leaf, along, retain_graph=True),
    }, taken


def measure(shape: tuple[int, int, int, int, int], rounds: int, clock: Callable[[], float]) -> dict[str, object]:
    (convolution, taken), (product, _) = runs(shape, product=False), runs(shape, product=True)
    row: dict[str, object] = {"shape": shape, "taken": "Product" in type(taken.grad_fn).__name__}
    for name in convolution:
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds + 2):
            for into, run in zip(seconds, (convolution[name], product[name]), strict=True):
                before = clock()
                run()
                into.append(clock() - before)
        ratios = [before / after for before, after in zip(*(each[2:] for each in seconds), strict=True)]
        row[name] = round(statistics.median(ratios), 3)
        row[f"{name}, milliseconds"] = [round(statistics.median(each[2:]) * 1e3, 3) for each in seconds]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runtime.keep_freed_memory()
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    print("| images | channels | input | stride | taken over | forward | towards x | towards weights |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for shape in SHAPES:
        row = measure(shape, arguments.rounds, clock)
        batch, channels, outputs, side, stride = shape
        ratios = " | ".join(f"{row[name]:.2f}×" for name in ("forward", "towards x", "towards weights"))
        print(f"| {batch} | {channels} → {outputs} | {side}×{side} | {stride} | {'yes' if row['taken'] else 'no'} | "
              f"{ratios} |", flush=True)  # fmt: skip
        rows.append(row)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"date": datetime.date.today().isoformat(), "environment": runtime.environment(), "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
