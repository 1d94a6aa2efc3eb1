"""Layers that come before a network, normalisation and resizing, and the size of a feature map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.core.errors import ModelError


class Normalize(nn.Module):
    """(x − mean) / std per channel, with both as buffers, so that they are saved with the weights.

    Args:
        mean: one value per channel, in units of [0,1].
        std: one positive value per channel, in units of [0,1].

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
        """Return the layer with mean 0 and std 1, which leaves images unchanged."""
        return cls([0.0] * channels, [1.0] * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images [B,C,H,W] in [0,1].

        Raises:
            ModelError: the images have another number of channels, which torch would broadcast.
        """
        channels = self.mean.numel()
        # A tracer of torch.fx passes no tensor.
        if isinstance(x, Tensor) and channels > 1 and (x.ndim < 3 or x.shape[-3] != channels):
            raise ModelError(
                f"images are {list(x.shape)}, expected [B,{channels},H,W]: give images of {channels} channels, in the "
                f"order of torch, or build the network with in_channels={x.shape[-3] if x.ndim > 2 else 1}"
            )
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """Return the values for `print(model)`."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


ImageSize = int | tuple[int, int]
"""In pixels: one number for square images, or (height, width)."""


def feature_map_size(image_size: ImageSize, *layers: tuple[int, int, int]) -> tuple[int, int]:
    """Return height and width of the feature map after convolutions or poolings of (kernel, stride, padding).

    Raises:
        ModelError: the image is smaller than a kernel.

    Example:
        >>> feature_map_size(28, (5, 2, 2), (5, 2, 2))
        (7, 7)
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    sizes = [height, width]
    for kernel, stride, padding in layers:
        sizes = [(size + 2 * padding - kernel) // stride + 1 for size in sizes]
        if min(sizes) < 1:
            raise ModelError(
                f"images of {height}x{width} are too small for this network: its convolutions and poolings "
                "reduce them to nothing; choose a network with global pooling, such as resnet8"
            )
    return sizes[0], sizes[1]


class ResizedNetwork(nn.Module):
    """A network behind a resize of the images to its own size: bilinear, antialiased when they shrink, differentiable.

    Args:
        network: images [B,C,size,size] in [0,1] to logits [B,K].
        size: in pixels.

    Example:
        >>> ResizedNetwork(nn.Flatten(), 2)(torch.ones(1, 1, 8, 8)).shape
        torch.Size([1, 4])
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W] in [0,1]."""
        x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return self.network(x)  # type: ignore[no-any-return]
