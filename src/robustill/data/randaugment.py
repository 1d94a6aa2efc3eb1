"""RandAugment: random changes of colour and shape, a different one for each image, without a loop over images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Draw: TypeAlias = Callable[[int], Tensor]
"""The random numbers of an augmentation: draw(high) is one uniform integer in [0, high) for each image, int64 [B]."""

# A drawn number is an index into CHANGES. Equalisation, which needs a histogram of each image, is left out.
SHAPES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
COLOURS = ("brightness", "colour", "contrast", "sharpness", "autocontrast", "posterize", "solarize")
CHANGES = ("identity", *SHAPES, *COLOURS)


def randaugment(images: Tensor, draw: Draw, *, count: int = 2, strength: float = 0.3) -> Tensor:
    """Apply `count` random changes of colour or shape, one after the other, each of a random sign if it has one.

    Each change is drawn uniformly from CHANGES. At strength m: rotation by 30°·m, shear by 0.3·m, translation by 0.3·m
    of the side, blending away from or towards black, grey, the mean or a blur by 0.9·m, 8 − 4·m bits, inversion above
    256·(1−m).

    Args:
        images: uint8 [B,C,H,W].
        draw: see `Draw`.
        count: the number of changes.
        strength: m, in [0,1].

    Reference: Cubuk et al. 2020, RandAugment; this is in its style, with the changes in SHAPES and COLOURS.
    """
    if count < 0 or not 0 <= strength <= 1:
        raise ValueError("expected a count of 0 or more and a strength from 0 to 1")
    for _ in range(count):
        chosen, sign = draw(len(CHANGES)), 2 * draw(2) - 1
        images = change(images, chosen, sign * strength)
    return images


def change(images: Tensor, chosen: Tensor, amount: Tensor) -> Tensor:
    """Apply one change to each image.

    Args:
        images: uint8 [B,C,H,W].
        chosen: indices into CHANGES, int64 [B].
        amount: strength with its sign, [B]; a change without a sign uses the absolute value.

    Returns:
        uint8 [B,C,H,W].
    """
    if len(images) == 0:
        return images
    amount = amount.to(torch.float32).view(-1, 1, 1, 1)
    which = chosen.view(-1, 1, 1, 1)
    pixels = images.to(torch.float32)
    is_shape = (which >= 1) & (which <= len(SHAPES))
    changed = torch.where(is_shape, _change_shape(pixels, chosen, amount.flatten()), pixels)
    for name, recoloured in _change_colours(pixels, amount).items():
        changed = torch.where(which == CHANGES.index(name), recoloured, changed)
    return changed.round_().clamp_(0, 255).to(torch.uint8)


def _change_shape(pixels: Tensor, chosen: Tensor, amount: Tensor) -> Tensor:
    """Rotate, shear or translate each image by one affine map; pixels from outside the image are black."""

    def only(name: str, value: Tensor) -> Tensor:
        return torch.where(chosen == CHANGES.index(name), value, torch.zeros_like(value))

    _, _, H, W = pixels.shape
    angle = only("rotate", amount * math.radians(30))
    cosine, sine = angle.cos(), angle.sin()
    # Coordinates run from -1 to 1 along both sides, whatever their lengths.
    first = torch.stack(
        [cosine, only("shear_x", 0.3 * amount) - sine * H / W, only("translate_x", 0.6 * amount)], dim=1
    )
    second = torch.stack(
        [sine * W / H + only("shear_y", 0.3 * amount), cosine, only("translate_y", 0.6 * amount)], dim=1
    )
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)


def _change_colours(pixels: Tensor, amount: Tensor) -> dict[str, Tensor]:
    """Compute every change of colour for every image, which costs less than sorting the images by change."""
    grey = _to_grey(pixels)
    factor, size = 1 + 0.9 * amount, amount.abs()
    low, high = pixels.amin(dim=(2, 3), keepdim=True), pixels.amax(dim=(2, 3), keepdim=True)
    step = 2.0 ** (4 * size).round()
    references = {
        "brightness": torch.zeros_like(pixels),
        "colour": grey.expand_as(pixels),
        "contrast": grey.mean(dim=(1, 2, 3), keepdim=True).expand_as(pixels),
        "sharpness": _blur(pixels),
    }
    blended = {name: reference + factor * (pixels - reference) for name, reference in references.items()}
    return {
        **blended,
        "autocontrast": torch.where(high > low, (pixels - low) * 255 / (high - low).clamp_min(1), pixels),
        "posterize": (pixels / step).floor() * step,
        "solarize": torch.where(pixels >= 256 * (1 - size), 255 - pixels, pixels),
    }


def _to_grey(pixels: Tensor) -> Tensor:
    if pixels.shape[1] != 3:
        return pixels.mean(dim=1, keepdim=True)
    return 0.299 * pixels[:, :1] + 0.587 * pixels[:, 1:2] + 0.114 * pixels[:, 2:]


def _blur(pixels: Tensor) -> Tensor:
    """Return the mean of 3×3 pixels, with the weight 5 for the middle one; border pixels are unchanged."""
    _, C, H, W = pixels.shape
    if min(H, W) < 3:
        return pixels
    kernel = torch.ones(C, 1, 3, 3, device=pixels.device)
    kernel[:, :, 1, 1] = 5
    blurred = pixels.clone()
    blurred[:, :, 1:-1, 1:-1] = F.conv2d(pixels, kernel / 13, groups=C)
    return blurred
