"""Random changes to training images, a whole batch at a time, on uint8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from robustill.data.erasing import cropshift, cutout, erase
from robustill.data.randaugment import randaugment
from robustill.errors import ConfigError, did_you_mean

Draw: TypeAlias = Callable[[int], Tensor]
"""draw(high): one uniform integer in [0, high) for each image, int64 [B]."""

Item: TypeAlias = str | tuple[str, Mapping[str, Any]]


def crop(images: Tensor, draw: Draw, *, pad: int = 4) -> Tensor:
    """A window of the image's own size at a random place of the image with `pad` black pixels on each side."""
    _, _, H, W = images.shape
    top, left = draw(2 * pad + 1), draw(2 * pad + 1)
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, H, 1).unfold(3, W, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def flip(images: Tensor, draw: Draw) -> Tensor:
    """Left and right exchanged in half of the images."""
    mirrored = draw(2).bool().view(-1, 1, 1, 1)
    return torch.where(mirrored, images.flip(3), images)


def idbh(images: Tensor, draw: Draw, *, most: int = 10, strength: float = 0.3, probability: float = 0.5) -> Tensor:
    """In the style of IDBH: flip, cropshift, one change of colour or shape, and a hole in a share of the images.

    The published policy draws its changes of colour and shape with strengths of their own; here they are those of
    `randaugment`, all of one strength.

    Args:
        images: uint8 [B,C,H,W].
        draw: see `Draw`.
        most: of `cropshift`.
        strength: of `randaugment`.
        probability: of `erase`.

    Reference: Li and Spratling 2023, Data augmentation alone can improve adversarial training.
    """
    images = cropshift(flip(images, draw), draw, most=most)
    return erase(randaugment(images, draw, count=1, strength=strength), draw, probability=probability)


AUGMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "crop": crop,
    "flip": flip,
    "shift": partial(crop, pad=1),
    "cutout": cutout,
    "erase": erase,
    "cropshift": cropshift,
    "randaugment": randaugment,
    "idbh": idbh,
}


class Augmentation:
    """The augmentations of a list, one after the other.

    Args:
        items: names from AUGMENTATIONS, or (name, options): ``["flip", ("crop", {"pad": 2})]``.

    Raises:
        ConfigError: an unknown name or option.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.steps = [_build(item) for item in items]

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator,
        *,
        total: int | None = None,
        part: slice = slice(None),
    ) -> Tensor:
        """Change each image at random.

        Args:
            images: uint8 [B,C,H,W].
            generator: on the CPU, so that every device draws the same numbers.
            total: how many images the numbers are drawn for, when `images` is a part of a larger batch.
            part: which of these `total` images were given.

        Returns:
            uint8 [B,C,H,W].
        """
        count = len(images) if total is None else total

        def draw(high: int) -> Tensor:
            return torch.randint(high, (count,), generator=generator)[part].to(images.device, non_blocking=True)

        for step in self.steps:
            images = step(images, draw)
        return images


def _build(item: Item) -> Callable[[Tensor, Draw], Tensor]:
    name, options = (item, {}) if isinstance(item, str) else item
    if name not in AUGMENTATIONS:
        raise ConfigError(f"unknown augmentation {name!r}: {did_you_mean(name, AUGMENTATIONS)}")
    step = AUGMENTATIONS[name]
    try:
        configured = partial(step, **options)
        # One tiny image tells a bad option here, not in the first step of a run.
        configured(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), lambda high: torch.zeros(1, dtype=torch.int64))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"augmentation {name!r} cannot take {dict(options)}: {error}") from error
    return configured
