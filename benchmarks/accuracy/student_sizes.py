"""What do trained students weigh, and how fast do they answer? One row a run directory.

    python benchmarks/accuracy/student_sizes.py runs/full/seed-0/akd runs/full/seed-0/akd-width-4 \\
        --out benchmarks/results/x.json

About half a minute a network. Parameters; bytes of the weights in one .safetensors file; operations of one image
forward; seconds of one image alone and images a second in batches of 128, by the network as it is loaded and with
BatchNorm folded and bf16, one thread. Medians of --rounds rounds, in which the networks take turns.
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
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robustill.acceleration.folding import bf16_copy, folded_copy
from robustill.core.device import environment
from robustill.models.loading import load_network

BATCH = 128
# Of one measurement, so that the clock's own steps do not count.
SECONDS = 0.1


def operations(network: nn.Module, one: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(one)
    return int(counter.get_total_flops())


def seconds(network: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Of one call."""
    calls, began = 0, time.perf_counter()
    with torch.inference_mode():
        while (taken := time.perf_counter() - began) < SECONDS:
            network(x)
            calls += 1
    return taken / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories; the best epoch of each")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    timed: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {}
    rows: dict[str, dict[str, float]] = {}
    for run in arguments.runs:
        found = load_network(f"run:{run}@best")
        network = found.module.eval().to(memory_format=torch.channels_last)
        C, (H, W) = found.shape.in_channels, found.shape.image_size
        many = torch.rand(BATCH, C, H, W).contiguous(memory_format=torch.channels_last)
        light = folded_copy(network, many[:8])
        assert light is not None, f"{run}: nothing to fold"
        rough = bf16_copy(light)
        for name, each in (("float32", network), ("bf16", rough)):
            timed[f"{run.name} {name} one"] = each, many[:1]
            timed[f"{run.name} {name} many"] = each, many
        rows[run.name] = {
            "parameters": sum(each.numel() for each in network.parameters()),
            "bytes": len(save({name: each.contiguous() for name, each in network.state_dict().items()})),
            "operations": operations(network, many[:1]),
        }
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(arguments.rounds):
        for name, (network, x) in timed.items():
            taken[name].append(seconds(network, x))
    print("| student | parameters | file | MFLOP | one image, fp32 / bf16 | images/s |\n|---|---|---|---|---|---|")
    for run, row in rows.items():
        row |= {
            f"{name} {how}": statistics.median(taken[f"{run} {name} {how}"])
            for name in ("float32", "bf16")
            for how in ("one", "many")
        }
        one = " / ".join(f"{1e3 * row[f'{name} one']:.2f}" for name in ("float32", "bf16"))
        rate = " / ".join(f"{BATCH / row[f'{name} many']:,.0f}" for name in ("float32", "bf16"))
        print(
            f"| {run} | {row['parameters']:,} | {row['bytes'] / 1e3:,.0f} kB | {row['operations'] / 1e6:.2f} "
            f"| {one} ms | {rate} |"
        )
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"date": datetime.date.today().isoformat(), "environment": environment(), "seconds": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
