"""Accuracy on corrupted, rotated and shifted images: changes that no adversary chose, and those that one may choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustill.core.errors import DataError
from robustill.data import Dataset
from robustill.data.corruptions import (
    ANGLES,
    SEVERITIES,
    SHIFTS,
    corrupt,
    load_official,
    moved_copies,
    official_labels,
)

Report = Callable[[int], None]
"""Called with the number of images that have just been classified."""


def corrupted_accuracy(
    model: nn.Module,
    dataset: Dataset,
    ids: Tensor,
    kind: str,
    *,
    seed: int = 0,
    official: Path | None = None,
    batch_size: int = 256,
    device: torch.device | None = None,
    report: Report = lambda _: None,
) -> list[float]:
    """Return the accuracy on images with one corruption, for severities 1 to 5.

    Args:
        model: images [B,C,H,W] in [0,1] to logits [B,K], in eval mode.
        dataset: the images.
        ids: the images to corrupt, int64 [N].
        kind: a key of `robustill.data.corruptions.CORRUPTIONS`.
        seed: seed of the noise.
        official: a folder with the files of CIFAR-10-C or CIFAR-100-C, in whose place nothing is computed.
        batch_size: images at a time; the result does not depend on it, up to rounding.
        device: where the model is.
        report: for a progress bar.

    Raises:
        DataError: the official files are not of these images.
    """
    if official is not None:
        check_official(official, dataset)
    accuracies = []
    for severity in SEVERITIES:
        correct = 0
        array = None
        if official is not None:
            shape = dataset.image_shape
            array = load_official(official, kind, severity, num_images=len(dataset), image_shape=shape)
        for part in torch.split(ids, batch_size):
            if array is None:
                x = dataset.read(part).float() / 255
                x = corrupt(x, kind, severity, ids=part.tolist(), seed=seed)
            else:
                x = torch.from_numpy(array[part.numpy()]).permute(0, 3, 1, 2).float() / 255
            correct += int(_is_right(model, x.to(device), dataset.labels[part]).sum())
            report(len(part))
        accuracies.append(correct / len(ids))
    return accuracies


def moved_accuracy(
    model: nn.Module,
    dataset: Dataset,
    ids: Tensor,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
    report: Report = lambda _: None,
) -> tuple[float, float]:
    """Return the accuracy on rotated and shifted images: of the worst for each image, and the mean over all.

    The rotations and shifts are those of `robustill.data.corruptions.moved_copies`, each image in all of them.

    Args:
        model: images [B,C,H,W] in [0,1] to logits [B,K], in eval mode.
        dataset: the images.
        ids: the images to move, int64 [N].
        batch_size: images at a time.
        device: where the model is.
        report: for a progress bar.
    """
    worst, total = 0, 0
    for part in torch.split(ids, batch_size):
        x = (dataset.read(part).float() / 255).to(device)
        right = torch.ones(len(part), dtype=torch.bool)
        for copy in moved_copies(x):
            is_right = _is_right(model, copy, dataset.labels[part])
            right &= is_right
            total += int(is_right.sum())
            report(len(part))
        worst += int(right.sum())
    return worst / len(ids), total / (len(ids) * NUM_MOVES)


NUM_MOVES = len(ANGLES) * len(SHIFTS) ** 2
"""The number of copies of each image that `moved_accuracy` classifies."""


def check_official(folder: Path, dataset: Dataset) -> None:
    """Check that a folder with the files of CIFAR-10-C or CIFAR-100-C is of the images of a data set.

    Raises:
        DataError: the labels differ, or a file is missing or damaged.
    """
    labels = official_labels(folder)[: len(dataset)]
    if len(labels) != len(dataset) or not np.array_equal(labels, dataset.labels.numpy()):
        raise DataError(
            f"{folder / 'labels.npy'} has other labels than the {len(dataset)} test images of {dataset.name}: "
            "expected the corrupted test images of this data set, in its order"
        )


@torch.inference_mode()
def _is_right(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    predicted: Tensor = model(x).argmax(dim=1).cpu()
    return predicted == labels


def num_passes(kinds: Sequence[str], num_images: int) -> int:
    """Return how many images all corruptions and moves classify."""
    return num_images * (len(kinds) * len(SEVERITIES) + NUM_MOVES)
