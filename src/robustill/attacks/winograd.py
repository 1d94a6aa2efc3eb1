"""Convolutions of a light copy by Winograd's minimal filtering: in bfloat16 on a CPU, sooner than as convolutions."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Measured by one thread and two (docs/results.md). With fewer channels what the tiles cost is more than what they save,
# with fewer tiles the kernels' 16 products, to be read, are.
_CHANNELS = 320
_TILES = 64

_DATA = torch.tensor([[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, -1.0, 1.0, 0.0], [0.0, 1.0, 0.0, -1.0]])
_KERNEL = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
_OUTPUT = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, -1.0, -1.0]])
# A kernel turned by half a turn is filtered to what the kernel is, with the first and the last of each axis exchanged.
_TURNED = (3, 1, 2, 0)


class Winograd(nn.Conv2d):
    """A 3×3 convolution with stride 1 and padding 1 whose weights need no gradient, by F(2×2, 3×3).

    For each tile d of 4×4 pixels of x, two apart, and each kernel w, 2×2 pixels of the output are

        y = Aᵀ·[(G·w·Gᵀ) ⊙ (Bᵀ·d·B)]·A

    with 16 products where a convolution takes 36. In exact arithmetic it is the same function; in bfloat16 its terms
    are rounded, and the error is three times that of the convolution. Where few tiles come in, it is the convolution.

    Source: Lavin & Gray 2016, Fast Algorithms for Convolutional Neural Networks, section 4.1.
    """

    _filters: tuple[int, Tensor] | None = None

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Winograd | None:
        """The same convolution, its weights shared; None where it is another kind, or where this would be no faster."""
        plain = (layer.kernel_size, layer.stride, layer.dilation, layer.padding) == ((3, 3), (1, 1), (1, 1), (1, 1))
        if not plain or layer.groups > 1 or layer.padding_mode != "zeros" or layer.weight.device.type != "cpu":
            return None
        if min(layer.in_channels, layer.out_channels) < _CHANNELS or layer.weight.dtype != torch.bfloat16:
            return None
        # On the meta device nothing is initialised, so nothing is drawn.
        fast = cls(layer.in_channels, layer.out_channels, 3, padding=1, device="meta")
        fast.weight, fast.bias = layer.weight, layer.bias
        return fast

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Conv2d`."""
        down, across = _tiles(input)
        if len(input) * down * across < _TILES:
            return super().forward(input)
        # Once for all passes between two changes of the weights.
        if self._filters is None or self._filters[0] != self.weight._version:
            self._filters = self.weight._version, filtered(self.weight)
        output: Tensor = Filtering.apply(input, self._filters[1], self.bias, False)  # type: ignore[no-untyped-call]
        return output


def filtered(weight: Tensor) -> Tensor:
    """G·w·Gᵀ of kernels [O,C,3,3], as [16,O,C]."""
    taps = weight.detach().permute(2, 3, 0, 1).reshape(9, -1)
    return (torch.kron(_KERNEL, _KERNEL).to(weight) @ taps).view(16, *weight.shape[:2])


class Filtering(torch.autograd.Function):
    """The convolution with filtered kernels, or, `turned`, its gradient towards x; none towards the kernels."""

    @staticmethod
    def forward(x: Tensor, filters: Tensor, bias: Tensor | None, turned: bool) -> Tensor:
        """[B,C,H,W], [16,O,C], [O] -> [B,O,H,W]; turned: [B,O,H,W], [16,O,C] -> [B,C,H,W]."""
        kernels = filters if turned else filters.transpose(1, 2)
        (batch, channels, height, width), outputs = x.shape, kernels.shape[2]
        (down, across), (data, output) = _tiles(x), _matrices(x.dtype, turned)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + width % 2, 1, 1 + height % 2)).contiguous()
        image, row, column, single = padded.stride()
        found = torch.empty((batch, outputs, 2 * down, 2 * across), dtype=x.dtype, memory_format=torch.channels_last)
        corners = found.permute(0, 2, 3, 1).view(batch, down, 2, across, 2, outputs)

        # Of so many images that what one stage leaves is still near when the next one reads it.
        some = min(batch, max(1, channels // (down * across)))
        # Two stages write where the other two have read.
        one, other = torch.empty((2, 16 * some * down * across * max(channels, outputs)), dtype=x.dtype)
        for first in range(0, batch, some):
            count = min(some, batch - first)
            tiles = count * down * across
            pixels = _shaped(one, 4, 4, count, down, across, channels)
            pixels.copy_(
                padded.as_strided(pixels.shape, (row, column, image, 2 * row, 2 * column, single), first * image)
            )
            seen = torch.mm(data, pixels.view(16, -1), out=_shaped(other, 16, tiles * channels))
            products = torch.bmm(seen.view(16, tiles, channels), kernels, out=_shaped(one, 16, tiles, outputs))
            sums = torch.mm(output, products.view(16, -1), out=_shaped(other, 4, tiles * outputs))
            placed = sums.view(2, 2, count, down, across, outputs).permute(2, 3, 0, 4, 1, 5)
            into = corners[first : first + count]
            if bias is None:
                into.copy_(placed)
            else:
                torch.add(placed, bias, out=into)
        if height % 2 or width % 2:
            return found[:, :, :height, :width].contiguous(memory_format=torch.channels_last)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the way back needs."""
        _, filters, _, ctx.turned = inputs
        ctx.save_for_backward(filters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient towards x."""
        (filters,) = ctx.saved_tensors
        found: Tensor = Filtering.apply(grads[0], filters, None, not ctx.turned)  # type: ignore[no-untyped-call]
        return found, None, None, None


def _tiles(x: Tensor) -> tuple[int, int]:
    return -(-x.shape[2] // 2), -(-x.shape[3] // 2)


def _shaped(memory: Tensor, *shape: int) -> Tensor:
    return memory[: math.prod(shape)].view(shape)


@functools.cache
def _matrices(dtype: torch.dtype, turned: bool) -> tuple[Tensor, Tensor]:
    """Bᵀ ⊗ Bᵀ, [16,16], and Aᵀ ⊗ Aᵀ, [4,16]; for turned kernels in the order in which these would be."""
    order = [4 * row + column for row in _TURNED for column in _TURNED] if turned else list(range(16))
    return torch.kron(_DATA, _DATA)[order].to(dtype), torch.kron(_OUTPUT, _OUTPUT)[:, order].to(dtype)
