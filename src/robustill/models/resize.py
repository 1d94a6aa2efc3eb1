"""A network for images of another size than its own."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


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
