"""The first layer of every network: images in [0,1] come in, normalised images go on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.core.errors import ModelError


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


ImageSize = int | tuple[int, int]
"""Pixels: one number for square images, or (height, width)."""


def map_size(image_size: ImageSize, *layers: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of the feature map after convolutions or poolings of (kernel, stride, padding).

    Raises:
        ModelError: nothing is left of the image.

    Example:
        >>> map_size(28, (5, 2, 2), (5, 2, 2))
        (7, 7)
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    left = [height, width]
    for kernel, stride, padding in layers:
        left = [(size + 2 * padding - kernel) // stride + 1 for size in left]
        if min(left) < 1:
            raise ModelError(
                f"images of {height}x{width} are too small for this network: nothing is left of them after its "
                "convolutions; choose a network with global pooling, such as resnet8"
            )
    return left[0], left[1]


class Resized(nn.Module):
    """The network on images brought to its own size: bilinear, antialiased where they shrink, differentiable.

    Args:
        network: [B,C,size,size] in [0,1] to logits [B,K].
        size: in pixels.

    Example:
        >>> import torch
        >>> Resized(nn.Flatten(), 2)(torch.ones(1, 1, 8, 8)).shape
        torch.Size([1, 4])
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] in [0,1] -> logits [B,K]."""
        x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return self.network(x)  # type: ignore[no-any-return]
