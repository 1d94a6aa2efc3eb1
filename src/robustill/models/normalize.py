"""The first layer of every network: images in [0,1] come in, normalised images go on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x − mean) / std, channel by channel, with both as buffers, so that they travel with the weights.

    Args:
        mean: one value a channel, in units of [0,1].
        std: one positive value a channel, in units of [0,1].

    Example:
        >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(1, -1, 1, 1))

    @classmethod
    def identity(cls, channels: int) -> Normalize:
        """Mean 0 and std 1: the network sees the images as they are."""
        return cls([0.0] * channels, [1.0] * channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] in [0,1] -> [B,C,H,W]."""
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """The values, for `print(model)`."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"
