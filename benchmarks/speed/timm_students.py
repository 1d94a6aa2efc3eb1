"""Which networks of timm and torchvision run as students, and how much faster is an attack on their folded copy?

    python benchmarks/speed/timm_students.py --root DATA --out benchmarks/results/timm-students-DATE.json

Needs the extras `vision` and `export`. Each network is trained for one epoch on 100 images of CIFAR-10 (PGD-2,
batch 50) in float32, in bf16 and by two processes, then opened again, exported and evaluated on 10 images. The
folded speed-up is that of a forward and a backward pass towards 32 images by the network and by its folded copy, both
channels last, which take turns: the median over rounds of the ratio of processor times, on one thread. About ten
minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import robustill as rb
from robustill.acceleration.folding import folded_copy, trace_and_fold
from robustill.core.device import environment, installed_version
from robustill.core.errors import first_line
from robustill.core.randomness import generator
from robustill.models.export import export_network
from robustill.models.loading import Shape
from robustill.runs.directory import RunDirectory

NETWORKS = (
    "timm:resnet18",
    "timm:mobilenetv3_small_050",
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224",
    "torchvision:mobilenet_v3_small",
)
CHECKS = ("train", "bf16", "ddp", "reopen", "fold", "pt2", "onnx", "folder", "evaluate")
SETTINGS = (
    "--data cifar10 --data.train_size 100 --data.validation 20 --optim.epochs 1 --optim.batch_size 50 "
    "--attack.steps 2 --validation.steps 2 --compute.device cpu --optim.learning_rate 0.01"
).split()


def settings_of(name: str, root: Path) -> list[str]:
    return ["--model", name, "--data.root", str(root), *SETTINGS]


def train(name: str, run: Path, root: Path, *more: str) -> float:
    config = rb.recipe("cifar10_part_at", [*settings_of(name, root), *more])
    return float(rb.train(config, run, progress=False).metrics[-1]["train_loss"])


def train_in_two_processes(name: str, run: Path, alone: Path, root: Path) -> float:
    """Return by how much the training loss of two processes differs from that of one, as a share of it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    command += [
        "robustill",
        "train",
        "cifar10_part_at",
        "--run",
        str(run),
        *settings_of(name, root),
        "--compute.precision",
        "fp32",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise RuntimeError(next((line for line in done.stderr.splitlines() if "rror" in line), done.stderr[-200:]))
    one, two = (RunDirectory.existing(each).metrics()[-1]["train_loss"] for each in (alone, run))
    return abs(two - one) / one


def images(shape: Shape) -> torch.Tensor:
    x = torch.rand(32, shape.in_channels, *shape.image_size, generator=generator(0, "images"))
    return x.contiguous(memory_format=torch.channels_last)


def folding(run: Path, rounds: int) -> dict[str, float | int]:
    network = rb.load_network(f"run:{run}@last")
    x, model = images(network.shape), network.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    folded = folded_copy(model, x)
    if folded is None:
        raise RuntimeError("no folded copy: the network itself is attacked")
    ratios = []
    for number in range(rounds + 1):
        times = {each: seconds(each, x) for each in ((model, folded) if number % 2 else (folded, model))}
        ratios.append(times[model] / times[folded])
    norms = sum(isinstance(each, nn.BatchNorm2d) for each in model.modules())
    return {
        "batchnorms": norms,
        "folded": len(trace_and_fold(model)[1]),
        "speedup": round(statistics.median(ratios[1:]), 2),
    }


def seconds(model: nn.Module, x: torch.Tensor) -> float:
    leaf, begin = x.detach().requires_grad_(True), time.process_time()
    torch.autograd.grad(model(leaf).square().sum(), leaf)
    return time.process_time() - begin


def export(run: Path, out: Path) -> None:
    export_network(f"run:{run}@last", out)


def evaluate(run: Path) -> int:
    (records,) = rb.evaluate_run(run, checkpoints="last", suite="pgd-20", num_images=10, progress=False).values()
    return len(records)


def attempt(check: Callable[[], object]) -> dict[str, object]:
    """Return that a check succeeded and what it returned, or the first line of its error."""
    begin = time.perf_counter()
    try:
        value = check()
    except Exception as error:  # A row of the table says what failed.
        return {"runs": False, "error": first_line(error)}
    return {"runs": True, "value": value, "seconds": round(time.perf_counter() - begin, 1)}


def measure(name: str, root: Path, rounds: int) -> dict[str, object]:
    row: dict[str, object] = {"network": name}
    with tempfile.TemporaryDirectory() as folder:
        run, two = Path(folder, "run"), Path(folder, "two")
        checks: dict[str, Callable[[], object]] = {
            "train": lambda: train(name, run, root, "--compute.precision", "fp32"),
            "bf16": lambda: train(name, Path(folder, "bf16"), root, "--compute.precision", "bf16"),
            "ddp": lambda: train_in_two_processes(name, two, run, root),
            "reopen": lambda: rb.load_network(f"run:{run}@best").sha256[:12],
            "fold": lambda: folding(run, rounds),
            "pt2": lambda: export(run, Path(folder, "net.pt2")),
            "onnx": lambda: export(run, Path(folder, "net.onnx")),
            "folder": lambda: export(run, Path(folder, "net")),
            "evaluate": lambda: evaluate(run),
        }
        for check in CHECKS:
            row[check] = attempt(checks[check])
            print(f"{name} {check}: {row[check]}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the table is written, as JSON")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of CIFAR-10")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [measure(each, arguments.root, arguments.rounds) for each in arguments.networks]
    if arguments.out is not None:
        content = {
            "date": datetime.date.today().isoformat(),
            "versions": {each: installed_version(each) for each in ("timm", "torchvision")},
            "environment": environment(),
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
