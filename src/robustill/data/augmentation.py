"""Random changes to training images, a whole batch at a time, on uint8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from robustill.core.errors import ConfigError, did_you_mean
from robustill.data.randaugment import randaugment

_LEVELS = 1 << 24


def shares(draw: Callable[[int], Tensor]) -> Tensor:
    """Uniform in [0,1), one value an image, float32 [B]."""
    return draw(_LEVELS).float() / _LEVELS


def cutout(images: Tensor, draw: Callable[[int], Tensor], *, size: int = 16) -> Tensor:
    """A black square around a random pixel of each image; near the border a part of it falls outside.

    Args:
        images: uint8 [B,C,H,W].
        draw: see `Draw`.
        size: of the square's sides, in pixels.

    Reference: DeVries and Taylor 2017.
    """
    if size < 1:
        raise ValueError(f"size {size}, expected 1 or more pixels")
    _, _, H, W = images.shape
    top, left = draw(H) - size // 2, draw(W) - size // 2
    return images.masked_fill(inside(images, top, left, top + size, left + size), 0)


def erase(
    images: Tensor,
    draw: Callable[[int], Tensor],
    *,
    probability: float = 0.5,
    smallest: float = 0.02,
    largest: float = 0.5,
) -> Tensor:
    """A black rectangle, wholly inside the image, in a share of the images.

    Args:
        images: uint8 [B,C,H,W].
        draw: see `Draw`.
        probability: of an image to lose something.
        smallest: share of the area lost.
        largest: share of the area lost; the share is uniform between the two, width to height log-uniform from 0.3 to
            1/0.3.

    Reference: Zhong et al. 2020, Random erasing data augmentation.
    """
    if not 0 <= smallest <= largest <= 1 or not 0 <= probability <= 1:
        raise ValueError("expected 0 <= smallest <= largest <= 1 and a probability from 0 to 1")
    _, _, H, W = images.shape
    chosen = shares(draw) < probability
    area = (smallest + (largest - smallest) * shares(draw)) * H * W
    ratio = torch.exp((2 * shares(draw) - 1) * 1.204)
    height = (area / ratio).sqrt().round().clamp(1, H).long()
    width = (area * ratio).sqrt().round().clamp(1, W).long()
    top, left = _below(draw, H - height + 1), _below(draw, W - width + 1)
    hole = inside(images, top, left, top + height, left + width)
    return images.masked_fill(hole & chosen.view(-1, 1, 1, 1), 0)


def cropshift(images: Tensor, draw: Callable[[int], Tensor], *, most: int = 10) -> Tensor:
    """A random window of each image at a random place of a black image of the same size.

    Rows and columns lost are s together, s uniform from 0 to `most`, split at random between the two.

    Args:
        images: uint8 [B,C,H,W].
        draw: see `Draw`.
        most: rows and columns lost.

    Reference: Li and Spratling 2023, Data augmentation alone can improve adversarial training.
    """
    if most < 0:
        raise ValueError(f"most {most}, expected 0 or more pixels")
    B, _, H, W = images.shape
    lost = draw(most + 1)
    columns = _below(draw, lost + 1)
    rows = (lost - columns).clamp(max=H - 1)
    columns = columns.clamp(max=W - 1)
    from_top, from_left = _below(draw, rows + 1), _below(draw, columns + 1)
    top, left = _below(draw, rows + 1), _below(draw, columns + 1)
    y = (torch.arange(H, device=images.device) + (from_top - top)[:, None]).clamp(0, H - 1)
    x = (torch.arange(W, device=images.device) + (from_left - left)[:, None]).clamp(0, W - 1)
    image = torch.arange(B, device=images.device)
    moved = images.permute(0, 2, 3, 1)[image[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
    window = inside(images, top, left, top + H - rows, left + W - columns)
    return moved.masked_fill(~window, 0).contiguous()


def _below(draw: Callable[[int], Tensor], high: Tensor) -> Tensor:
    """A uniform integer in [0, high), where each image has its own `high`."""
    return draw(_LEVELS) * high // _LEVELS


def inside(images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """Which pixels lie in each image's rectangle, bool [B,1,H,W]."""
    _, _, H, W = images.shape
    y = torch.arange(H, device=images.device).view(1, 1, H, 1)
    x = torch.arange(W, device=images.device).view(1, 1, 1, W)
    top, left, bottom, right = (edge.view(-1, 1, 1, 1) for edge in (top, left, bottom, right))
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


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


def cutmix(
    x: Tensor, y: Tensor, num_classes: int, generator: torch.Generator, *, share: float
) -> tuple[Tensor, Tensor]:
    """Put a rectangle of the next image of the batch into a share of the images.

    The rectangle has the image's proportions, its centre is any pixel, and it covers 1 − λ of the area, λ uniform, less
    what falls outside. The label is mixed by the pixels that each of the two shows: m = (1−a)·onehot(y) + a·onehot(y').

    Args:
        x: images in random order, [B,C,H,W].
        y: labels, int64 [B].
        num_classes: K.
        generator: on the CPU, so that every device draws the same numbers.
        share: of the images that are changed, in [0,1].

    Returns:
        Images [B,C,H,W], labels as probabilities float32 [B,K].

    Reference: Yun et al. 2019, with Beta(1, 1).
    """
    B, _, H, W = x.shape
    chosen, area, middle_y, middle_x = torch.rand(4, B, generator=generator).to(x.device, non_blocking=True)
    side = torch.where(chosen < share, area.sqrt(), torch.zeros_like(area))
    height, width = (side * H).round().long(), (side * W).round().long()
    top, left = (middle_y * H).long() - height // 2, (middle_x * W).long() - width // 2
    pasted = inside(x, top, left, top + height, left + width)
    shown = pasted.float().mean(dim=(1, 2, 3))[:, None]
    own = F.one_hot(y, num_classes).float()
    return torch.where(pasted, x.roll(1, dims=0), x), (1 - shown) * own + shown * own.roll(1, dims=0)
