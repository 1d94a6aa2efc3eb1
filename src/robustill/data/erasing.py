"""Augmentations that take something away: rectangles of black, each image its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
