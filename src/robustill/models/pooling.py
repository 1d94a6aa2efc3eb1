"""From feature maps to features."""

from __future__ import annotations

from torch import Tensor


def mean_of_pixels(x: Tensor) -> Tensor:
    """[B,C,H,W] -> [B,C].

    As `x.mean((2, 3))`, whose gradient comes back channels first: the layers before it, channels last, then take
    several times as long.
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)
