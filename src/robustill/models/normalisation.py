"""Whether a network guesses on the images of a data set, and which normalisation in front of it would mend that."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robustill.core.chance import GUESSING, is_near_chance
from robustill.core.contexts import evaluating
from robustill.core.contract import preserving_random_numbers
from robustill.core.errors import printable
from robustill.data import DATASETS, Dataset, stratified_subset
from robustill.models.layers import Normalize

_NUM_IMAGES, _AT_A_TIME = 64, 16
# The usual mean and std of ImageNet, and of weights that were trained on images in [-1,1].
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = (0.5, 0.5)

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""mean and std, one value a channel."""


@torch.no_grad()
def accuracy_warnings(
    model: nn.Module, dataset: Dataset, label: str, device: torch.device, *, ids: Tensor | None = None
) -> list[str]:
    """Warn if a network is right on 64 images of a data set no more often than by guessing, or hardly more often.

    The network is then tried with other normalisations of its images: the usual one of the data set, or its measured
    one; that of ImageNet; that to [-1,1]; and none with images from 0 to 255.

    Args:
        model: images in [0,1] to logits, on the device.
        dataset: labelled images.
        label: how the warning names the network.
        device: where to compute.
        ids: the images to choose from; None for all.

    Returns:
        One line, in a list; empty for a network that is better.
    """
    ids = torch.arange(len(dataset)) if ids is None else ids
    ids = ids[stratified_subset(dataset.labels[ids], min(_NUM_IMAGES, len(ids)), seed=0)]
    x, y = dataset.read(ids).to(device).float() / 255, dataset.labels[ids].to(device)
    with evaluating(model), preserving_random_numbers(device):
        num_correct = _num_correct(model, x, y)
        if not is_near_chance(num_correct, len(y), dataset.num_classes):
            return []
        tried = [(_num_correct(model, _normalised(model, x, each), y), each) for each in _candidates(dataset, x)]
    best, normalisation = max(tried, key=lambda each: each[0])
    line = (
        f"{printable(label)} is {GUESSING} among {dataset.num_classes} classes: right on "
        f"{_share(num_correct, len(y))} of {len(y)} images; "
    )
    if is_near_chance(best, len(y), dataset.num_classes) or best < 1.5 * num_correct:
        return [f"{line}look for untrained weights, another order of the classes, or another normalisation"]
    mean, std = (", ".join(f"{value:g}" for value in values) for values in normalisation)
    return [
        f"{line}--model.mean [{mean}] --model.std [{std}], or such a normalisation inside the network, gives "
        f"{_share(best, len(y))} on them"
    ]


def _share(count: int, total: int) -> str:
    return f"{count / total:.3f}".removeprefix("0")


def _candidates(dataset: Dataset, x: Tensor) -> Iterator[Normalisation]:
    channels = x.shape[1]
    known = DATASETS.get(dataset.name)
    if known is not None and known.mean is not None and known.std is not None:
        yield known.mean, known.std
    else:
        mean, std = x.mean(dim=(0, 2, 3)), x.std(dim=(0, 2, 3)).clamp_min(1e-3)
        yield tuple(round(each, 3) for each in mean.tolist()), tuple(round(each, 3) for each in std.tolist())
    if channels == 3:
        yield _IMAGENET
    yield (_HALF[0],) * channels, (_HALF[1],) * channels
    yield (0.0,) * channels, (round(1 / 255, 7),) * channels


def _num_correct(model: nn.Module, x: Tensor, y: Tensor) -> int:
    count = 0
    for rows in torch.arange(len(x)).tensor_split(math.ceil(len(x) / _AT_A_TIME)):
        count += int((model(x[rows]).argmax(dim=1) == y[rows]).sum())
    return count


def _normalised(model: nn.Module, x: Tensor, normalisation: Normalisation) -> Tensor:
    """Return images that a network sees with a normalisation in place of its own."""
    mean, std = (torch.tensor(values, device=x.device).view(1, -1, 1, 1) for values in normalisation)
    x = (x - mean) / std
    for module in model.modules():
        if isinstance(module, Normalize):
            x = x * module.std + module.mean
            break
    return x
