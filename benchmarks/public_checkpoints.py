"""Clean accuracy of thirteen public checkpoints beside the figures stated for them.

    python benchmarks/public_checkpoints.py --checkpoints CHECKPOINTS --data DATA

CHECKPOINTS holds the folders cifar10, mnist and fashion_mnist with the files named below, as published by the authors
of mn-bab, alpha-beta-CROWN, TRADES, Fast-AT and convex_adversarial; DATA holds the data sets in their official layouts.
Ten seconds on one core. Ends with 1 when a figure is off by more than two images of the 10,000: the logits of another
machine round differently.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robustill.data import ImageDataset, load
from robustill.models import build
from robustill.models.weights import file_sha256, load_public_weights

CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}
OVAL = {"mean": (0.485, 0.456, 0.406), "std": (0.225, 0.225, 0.225)}
SDP = {"mean": (0.4914, 0.4824, 0.4467), "std": (0.2471, 0.2435, 0.2616)}
AS_THEY_ARE: dict[str, Any] = {}


class Checkpoint(NamedTuple):
    file: str
    model: str
    normalisation: dict[str, Any]
    clean: float  # percent of the 10,000 test images, as stated


CHECKPOINTS = [
    Checkpoint("cifar10/mnbab_resnet_2b2_bn_mixup_sadv_8.0_bs128_lr-1.pth", "resnet_2b2", CIFAR, 74.20),
    Checkpoint("cifar10/mnbab_resnet_2b2_bn_mixup_adv_4.0_bs128_lr-1.pth", "resnet_2b2", CIFAR, 79.75),
    Checkpoint("cifar10/abcrown_resnet2b.pth", "resnet_2b", CIFAR, 69.25),
    Checkpoint("cifar10/abcrown_cifar_cnn_a_adv.model", "cnn_a", SDP, 65.63),
    Checkpoint("cifar10/abcrown_cifar_cnn_a_adv4.model", "cnn_a", SDP, 56.52),
    Checkpoint("cifar10/abcrown_cifar_cnn_a_mix4.model", "cnn_a", SDP, 67.79),
    Checkpoint("cifar10/abcrown_cifar_wide.pth", "cnn_a", OVAL, 61.62),
    Checkpoint("cifar10/abcrown_cifar_deep.pth", "cnn_deep", OVAL, 55.31),
    Checkpoint("mnist/trades_mnist_smallcnn.pt", "trades_smallcnn", AS_THEY_ARE, 99.48),
    Checkpoint("mnist/fastat_fgsm.pth", "cnn_a", AS_THEY_ARE, 98.50),
    Checkpoint("mnist/abcrown_mnist_cnn_a_adv.model", "cnn_a", AS_THEY_ARE, 96.33),
    Checkpoint("mnist/abcrown_MadryCNN_no_maxpool_tiny.pt", "madry_cnn_tiny", AS_THEY_ARE, 97.94),
    Checkpoint("fashion_mnist/convex_fashion_mnist.pth", "cnn_a", AS_THEY_ARE, 78.27),
]


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
