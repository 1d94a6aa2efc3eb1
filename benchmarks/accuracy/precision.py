"""What does bf16 change in the attack of a training step: gradients, the images found, who is robust against them?

    python benchmarks/accuracy/precision.py --weights FILE --data DATA --out benchmarks/results/precision-DATE.json

About two minutes on one core for a ResNet-8 of width 16. A ResNet-8 of width 16, or another model of that name, with
the weights given, on test images of CIFAR-10, l∞ 8/255: the gradient towards the image of the cross-entropy, by the
network in float32 and by the light copy that `train` attacks with compute.precision bf16 and fp32; then PGD-20 with
each from the same starts, judged by the network in float32, and, to compare with, PGD-20 in float32 from other starts.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustill.acceleration.matmul_conv import MatmulConvolutions
from robustill.acceleration.tracking import TrackingCopy
from robustill.attacks import pgd
from robustill.core.contexts import frozen
from robustill.core.device import environment
from robustill.core.memory_format import place
from robustill.core.randomness import generator
from robustill.data import load, stratified_subset
from robustill.losses import ce
from robustill.models import build
from robustill.models.weights import read_state_dict
from robustill.threat import Threat

THREAT, STEPS = Threat(norm="linf", eps=8 / 255), 20

Network = Callable[[Tensor], Tensor]


def as_in_training(light: Network) -> Network:
    products = MatmulConvolutions()

    def run(x: Tensor) -> Tensor:
        with products:
            return light(x)

    return run


def gradient(network: Network, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(ce(network(leaf), y).sum(), leaf)
    return found.flatten(1).double()


def gradients_differ(exact: Tensor, other: Tensor) -> dict[str, float]:
    same = (exact.sign() == other.sign()).double()
    return {
        "signs_equal": float(same.mean()),
        "signs_equal_weighted_by_size": float((same * exact.abs()).sum() / exact.abs().sum()),
        "cosine": float(nn.functional.cosine_similarity(exact, other, dim=1).mean()),
    }


def attacked(network: Network, judge: nn.Module, x: Tensor, y: Tensor, start: int) -> tuple[Tensor, Tensor]:
    draws = generator(0, "start", start)
    found = pgd(lambda z: ce(network(z), y), x, THREAT, steps=STEPS, step_size=THREAT.eps / 4, generator=draws)
    with torch.no_grad():
        logits = judge(found)
    return ce(logits, y), logits.argmax(dim=1) == y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with the official files of CIFAR-10")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments = parser.parse_args()
    options = {"width": 16} if arguments.model == "resnet8" else {}
    model = build(arguments.model, num_classes=10, in_channels=3, image_size=32, **options)
    model.load_state_dict(read_state_dict(arguments.weights))
    model = place(model.eval(), torch.device("cpu"))
    dataset = load("cifar10", root=arguments.data, split="test")
    ids = stratified_subset(dataset.labels, arguments.images, seed=0)
    x = (dataset.read(ids).float() / 255).contiguous(memory_format=torch.channels_last)
    y = dataset.labels[ids]
    rows: dict[str, dict[str, Any]] = {}
    with frozen(model):
        exact = gradient(model, x, y)
        losses, right = attacked(model, model, x, y, start=0)
        networks: dict[str, tuple[Network, int]] = {"float32, other starts": (model, 1)}
        for name, bf16 in (("light copy, fp32", False), ("light copy, bf16", True)):
            light = TrackingCopy.of(model, x, bf16=bf16)
            assert light is not None
            light.sync(model)
            networks[name] = (as_in_training(light) if bf16 else light), 0
        for name, (network, start) in networks.items():
            found, stands = attacked(network, model, x, y, start)
            rows[name] = {
                **({} if start else gradients_differ(exact, gradient(network, x, y))),
                "loss_found": float(found.mean() / losses.mean()),
                "robust_here_alone": int((stands & ~right).sum()),
                "robust_there_alone": int((right & ~stands).sum()),
            }
            print(name, {key: round(value, 5) for key, value in rows[name].items()}, flush=True)
    print(f"robust against float32: {int(right.sum())} of {len(y)}")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "date": datetime.date.today().isoformat(), "environment": environment(), "model": arguments.model,
            "images": len(y), "robust_against_float32": int(right.sum()), "rows": rows,
        }  # fmt: skip
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
