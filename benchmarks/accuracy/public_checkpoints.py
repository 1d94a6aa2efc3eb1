"""Do thirteen public checkpoints have the clean accuracy that is stated for them?

    python benchmarks/accuracy/public_checkpoints.py --checkpoints CHECKPOINTS --data DATA

CHECKPOINTS holds the folders cifar10, mnist and fashion_mnist with the files named below, as published by the authors
of mn-bab, alpha-beta-CROWN, TRADES, Fast-AT and convex_adversarial; DATA holds the data sets in their official layouts.
Ten seconds on one core. Ends with 1 when a figure is off by more than two images of the 10,000: the logits of another
machine round differently.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robustill.data import ImageDataset, load
from robustill.models import build
from robustill.models.weights import file_sha256, load_public_weights


class Checkpoint(NamedTuple):
    file: str
    model: str
    normalisation: dict[str, Any]
    clean: float  # percent of the 10,000 test images, as stated


TABLE = Path(__file__).parents[1] / "public_checkpoints.json"
CHECKPOINTS = [Checkpoint(**row) for row in json.loads(TABLE.read_text(encoding="utf-8"))]


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int = 500) -> float:
    correct = [
        (model(x.float() / 255).argmax(dim=1) == y).sum()
        for x, y in zip(images.split(batch), labels.split(batch), strict=True)
    ]
    return 100 * float(torch.stack(correct).sum()) / len(labels)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    splits: dict[str, ImageDataset] = {}
    worst = 0.0
    print("| file | model | parameters | clean % stated | measured | seconds | sha256 |\n|---|---|---|---|---|---|---|")
    for checkpoint in CHECKPOINTS:
        name = checkpoint.file.partition("/")[0]
        if name not in splits:
            dataset = load(name, root=arguments.data, split="test")
            assert isinstance(dataset, ImageDataset)
            splits[name] = dataset
        images, labels = splits[name].images, splits[name].labels
        model = build(
            checkpoint.model,
            num_classes=10,
            in_channels=images.shape[1],
            image_size=(images.shape[2], images.shape[3]),
            **checkpoint.normalisation,
        )
        path = arguments.checkpoints / checkpoint.file
        load_public_weights(model, path)
        start = time.perf_counter()
        measured = accuracy(model.eval(), images, labels)
        seconds = time.perf_counter() - start
        worst = max(worst, abs(measured - checkpoint.clean))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(
            f"| {checkpoint.file} | {checkpoint.model} | {parameters} | {checkpoint.clean:.2f} | {measured:.2f} "
            f"| {seconds:.1f} | {file_sha256(path)[:8]} |",
            flush=True,
        )
    print(f"\nlargest difference: {worst:.3f} points, on {torch.__version__}")
    return int(worst > 0.0201)


if __name__ == "__main__":
    sys.exit(main())
