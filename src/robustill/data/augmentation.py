"""Random changes of training images, for a whole batch at a time.

In this order: the augmentations of uint8 images, their table by name (AUGMENTATIONS), the class `Augmentation` that
applies a list of them, and `cutmix`, which mixes two images and their labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from robustill.core.errors import ConfigError, did_you_mean
from robustill.data.randaugment import Draw, randaugment

Item: TypeAlias = str | tuple[str, Mapping[str, Any]]
"""An augmentation of a list: its name, or its name and options."""

_LEVELS = 1 << 24


def crop(images: Tensor, draw: Draw, *, pad: int = 4) -> Tensor:
    """Crop each image at a random place, to its own size, after padding it with `pad` black pixels on each side."""
    _, _, H, W = images.shape
    top, left = draw(2 * pad + 1), draw(2 * pad + 1)
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, H, 1).unfold(3, W, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def flip(images: Tensor, draw: Draw) -> Tensor:
    """Mirror half of the images horizontally."""
    mirrored = draw(2).bool().view(-1, 1, 1, 1)
    return torch.where(mirrored, images.flip(3), images)


def cutout(images: Tensor, draw: Draw, *, size: int = 16) -> Tensor:
    """Black out a square around a random pixel of each image; near the border a part of it falls outside.

    Args:
        images: uint8 [B,C,H,W].
        draw: see `Draw`.
        size: side of the square, in pixels.

    Reference: DeVries and Taylor 2017.
    """
    if size < 1:
        raise ValueError(f"size {size}, expected 1 or more pixels")
    _, _, H, W = images.shape
    top, left = draw(H) - size // 2, draw(W) - size // 2
    return images.masked_fill(_rectangles(images, top, left, top + size, left + size), 0)


def erase(
    images: Tensor,
    draw: Draw,
    *,
    probability: float = 0.5,
    smallest: float = 0.02,
    largest: float = 0.5,
) -> Tensor:
    """Black out a rectangle that lies wholly inside the image, in a share of the images.

    The area of the rectangle is uniform between `smallest` and `largest`, its ratio of width to height log-uniform from
    0.3 to 1/0.3.

    Args:
        images: uint8 [B,C,H,W].
        draw: see `Draw`.
        probability: the probability that an image is changed.
        smallest: smallest area, as a share of the image.
        largest: largest area, as a share of the image.

    Reference: Zhong et al. 2020, Random erasing data augmentation.
    """
    if not 0 <= smallest <= largest <= 1 or not 0 <= probability <= 1:
        raise ValueError("expected 0 <= smallest <= largest <= 1 and a probability from 0 to 1")
    _, _, H, W = images.shape
    chosen = _uniform(draw) < probability
    area = (smallest + (largest - smallest) * _uniform(draw)) * H * W
    ratio = torch.exp((2 * _uniform(draw) - 1) * 1.204)
    height = (area / ratio).sqrt().round().clamp(1, H).long()
    width = (area * ratio).sqrt().round().clamp(1, W).long()
    top, left = _integers_below(draw, H - height + 1), _integers_below(draw, W - width + 1)
    erased = _rectangles(images, top, left, top + height, left + width)
    return images.masked_fill(erased & chosen.view(-1, 1, 1, 1), 0)


def cropshift(images: Tensor, draw: Draw, *, most: int = 10) -> Tensor:
    """Crop a random window of each image and place it at random in a black image of the same size.

    The crop removes s rows and columns in total, s uniform from 0 to `most`, split at random between the two.

    Args:
        images: uint8 [B,C,H,W].
        draw: see `Draw`.
        most: the largest number of rows and columns removed.

    Reference: Li and Spratling 2023, Data augmentation alone can improve adversarial training.
    """
    if most < 0:
        raise ValueError(f"most {most}, expected 0 or more pixels")
    B, _, H, W = images.shape
    removed = draw(most + 1)
    columns = _integers_below(draw, removed + 1)
    rows = (removed - columns).clamp(max=H - 1)
    columns = columns.clamp(max=W - 1)
    from_top, from_left = _integers_below(draw, rows + 1), _integers_below(draw, columns + 1)
    top, left = _integers_below(draw, rows + 1), _integers_below(draw, columns + 1)
    y = (torch.arange(H, device=images.device) + (from_top - top)[:, None]).clamp(0, H - 1)
    x = (torch.arange(W, device=images.device) + (from_left - left)[:, None]).clamp(0, W - 1)
    image = torch.arange(B, device=images.device)
    moved = images.permute(0, 2, 3, 1)[image[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
    window = _rectangles(images, top, left, top + H - rows, left + W - columns)
    return moved.masked_fill(~window, 0).contiguous()


def idbh(images: Tensor, draw: Draw, *, most: int = 10, strength: float = 0.3, probability: float = 0.5) -> Tensor:
    """Augment in the style of IDBH: `flip`, `cropshift`, one change of colour or shape, then `erase`.

    The published policy draws its changes of colour and shape with different strengths; here they are those of
    `randaugment`, all of the same strength.

    Args:
        images: uint8 [B,C,H,W].
        draw: see `Draw`.
        most: the option of `cropshift`.
        strength: the option of `randaugment`.
        probability: the option of `erase`.

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
    """A list of augmentations that are applied one after the other.

    Args:
        items: names from AUGMENTATIONS, or (name, options): ``["flip", ("crop", {"pad": 2})]``.

    Raises:
        ConfigError: a name or an option is unknown.
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
            total: the number of images of the whole batch, if `images` is a part of it; numbers are drawn for all.
            part: which images of the whole batch `images` are.

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
    """Return an augmentation with its options, tried on a tiny image so that a bad option is refused early."""
    name, options = (item, {}) if isinstance(item, str) else item
    if name not in AUGMENTATIONS:
        raise ConfigError(f"unknown augmentation {name!r}: {did_you_mean(name, AUGMENTATIONS)}")
    step = AUGMENTATIONS[name]
    try:
        configured = partial(step, **options)
        configured(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), lambda high: torch.zeros(1, dtype=torch.int64))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"augmentation {name!r} cannot take {dict(options)}: {error}") from error
    return configured


def cutmix(
    x: Tensor, y: Tensor, num_classes: int, generator: torch.Generator, *, share: float
) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of the next image of the batch into a share of the images, and mix their labels.

    The rectangle has the proportions of the image, its centre is a random pixel, and it covers 1 − λ of the area, λ
    uniform, less the part that falls outside. The label is mixed by the share a of the pixels that are pasted:
    (1−a)·onehot(y) + a·onehot(y').

    Args:
        x: images in random order, [B,C,H,W].
        y: labels, int64 [B].
        num_classes: K.
        generator: on the CPU, so that every device draws the same numbers.
        share: the share of the images that are changed, in [0,1].

    Returns:
        Images [B,C,H,W], labels as probabilities float32 [B,K].

    Reference: Yun et al. 2019, with Beta(1, 1).
    """
    B, _, H, W = x.shape
    chosen, area, centre_y, centre_x = torch.rand(4, B, generator=generator).to(x.device, non_blocking=True)
    side = torch.where(chosen < share, area.sqrt(), torch.zeros_like(area))
    height, width = (side * H).round().long(), (side * W).round().long()
    top, left = (centre_y * H).long() - height // 2, (centre_x * W).long() - width // 2
    pasted = _rectangles(x, top, left, top + height, left + width)
    pasted_share = pasted.float().mean(dim=(1, 2, 3))[:, None]
    onehot = F.one_hot(y, num_classes).float()
    mixed_images = torch.where(pasted, x.roll(1, dims=0), x)
    return mixed_images, (1 - pasted_share) * onehot + pasted_share * onehot.roll(1, dims=0)


def _uniform(draw: Draw) -> Tensor:
    """Draw one number in [0,1) for each image, float32 [B]."""
    return draw(_LEVELS).float() / _LEVELS


def _integers_below(draw: Draw, high: Tensor) -> Tensor:
    """Draw one integer in [0, high) for each image, where each image has its own `high`."""
    return draw(_LEVELS) * high // _LEVELS


def _rectangles(images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """Return which pixels lie in each image's rectangle, bool [B,1,H,W]."""
    _, _, H, W = images.shape
    y = torch.arange(H, device=images.device).view(1, 1, H, 1)
    x = torch.arange(W, device=images.device).view(1, 1, 1, W)
    top, left, bottom, right = (edge.view(-1, 1, 1, 1) for edge in (top, left, bottom, right))
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)
