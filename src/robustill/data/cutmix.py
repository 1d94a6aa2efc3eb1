"""CutMix: a rectangle of another image, and as much of its label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robustill.data.erasing import inside


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
