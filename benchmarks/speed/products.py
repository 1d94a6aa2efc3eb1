"""Which convolutions in bfloat16 are slower on a CPU than the products of matrices of `MatmulConvolutions`?

    python benchmarks/speed/products.py --threads 2 --out benchmarks/results/products-DATE.json

About half a minute. 3×3 kernels with padding 1, of the shapes at the end of ResNet-18s and in WideResNets: forward, and
the gradients towards the input and the weights, by torch's convolution and by `MatmulConv2d`, in turns in one process
that keeps freed memory as `train` does. With one thread the time is processor time. Ratios are medians over rounds of
convolution / product; what training replaces is marked. (Results up to 2026-11-29 also hold Winograd's filtered
kernels, which were removed.)
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

from robustill.acceleration.matmul_conv import MatmulConv2d, MatmulConvolutions
from robustill.core.device import environment, keep_freed_memory
from robustill.core.randomness import generator, uniform

SHAPES = [
    (32, 512, 512, 4, 1), (128, 512, 512, 4, 1), (32, 256, 512, 8, 2), (32, 256, 256, 4, 1), (32, 128, 256, 16, 2),
    (32, 320, 640, 16, 2), (32, 256, 256, 8, 1), (32, 64, 128, 32, 2), (128, 64, 64, 8, 1), (32, 640, 640, 8, 1),
    (32, 320, 320, 16, 1), (32, 128, 128, 16, 1), (16, 512, 512, 4, 1), (8, 512, 512, 4, 1), (4, 640, 640, 8, 1),
]  # fmt: skip
"""Batch, channels, output channels, side of the input, stride."""

PASSES = ("forward", "towards x", "towards weights")

Convolution = Callable[[Tensor, Tensor], Tensor]
Run = Callable[[], object]


def drawn(*shape: int) -> Tensor:
    values = uniform(torch.empty(shape), generator(0, "images")) - 0.5
    return values.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def runs(convolution: Convolution, x: Tensor, weight: Tensor) -> dict[str, Run]:
    x_leaf, weight_leaf = x.clone().requires_grad_(), weight.clone().requires_grad_()
    towards_x, towards_weight = convolution(x_leaf, weight), convolution(x, weight_leaf)
    along = torch.ones_like(towards_x)
    return {
        "forward": lambda: convolution(x, weight),
        "towards x": lambda: torch.autograd.grad(towards_x, x_leaf, along, retain_graph=True),
        "towards weights": lambda: torch.autograd.grad(towards_weight, weight_leaf, along, retain_graph=True),
    }


def measure(shape: tuple[int, int, int, int, int], rounds: int, clock: Callable[[], float]) -> dict[str, object]:
    batch, channels, outputs, side, stride = shape
    x, weight = drawn(batch, channels, side, side), drawn(outputs, channels, 3, 3)
    variants = {
        "convolution": runs(lambda x, weight: F.conv2d(x, weight, None, stride, 1), x, weight),
        "product": runs(lambda x, weight: MatmulConv2d.apply(x, weight, None, stride, 1, True), x, weight),  # type: ignore[no-untyped-call]
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 2):
        for each in PASSES:
            for variant, known in variants.items():
                before = clock()
                known[each]()
                spent = clock() - before
                if turn >= 2:
                    seconds.setdefault((variant, each), []).append(spent)
    row: dict[str, object] = {"shape": shape, "taken over": taken_over(x, weight, stride)}
    for (variant, each), spent in seconds.items():
        row[f"{variant}, {each}, milliseconds"] = round(statistics.median(spent) * 1e3, 3)
        if variant != "convolution":
            pairs = zip(seconds["convolution", each], spent, strict=True)
            row[f"{variant}, {each}"] = round(statistics.median(before / after for before, after in pairs), 3)
    return row


def taken_over(x: Tensor, weight: Tensor, stride: int) -> str:
    with MatmulConvolutions():
        taken = F.conv2d(x, weight.clone().requires_grad_(), None, stride, 1)
    return "product" if type(taken.grad_fn).__name__ == "MatmulConv2dBackward" else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    columns = [f"product, {each}" for each in PASSES]
    print(f"| images | channels | input | stride | taken over | {' | '.join(columns)} |")
    print("|---|---|---|---|---|" + "---|" * len(columns))
    rows = []
    for shape in SHAPES:
        row = measure(shape, arguments.rounds, clock)
        batch, channels, outputs, side, stride = shape
        ratios = " | ".join(f"{row[name]:.2f}×" for name in columns)
        print(f"| {batch} | {channels} → {outputs} | {side}×{side} | {stride} | {row['taken over']} | {ratios} |",
              flush=True)  # fmt: skip
        rows.append(row)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"date": datetime.date.today().isoformat(), "environment": environment(), "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
