"""Convolutions by Winograd's minimal filtering: in bfloat16 on a CPU, where there are many channels, the soonest."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

_DATA = torch.tensor([[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, -1.0, 1.0, 0.0], [0.0, 1.0, 0.0, -1.0]])
_KERNEL = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
_OUTPUT = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, -1.0, -1.0]])
# A kernel turned by half a turn is filtered to what the kernel is, with the first and the last of each axis exchanged.
_TURNED = (3, 1, 2, 0)


def filtered(weight: Tensor) -> Tensor:
    """G·w·Gᵀ of kernels w, [O,C,3,3], as [16,O,C]."""
    taps = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return (torch.kron(_KERNEL, _KERNEL).to(weight) @ taps).view(16, *weight.shape[:2])


def convolved(x: Tensor, filters: Tensor, bias: Tensor | None = None, *, turned: bool = False) -> Tensor:
    """A 3×3 convolution with stride 1 and padding 1 by F(2×2, 3×3); nothing for autograd to follow.

    For each tile d of 4×4 pixels of x, two apart, and each kernel w, 2×2 pixels of the output are

        y = Aᵀ·[(G·w·Gᵀ) ⊙ (Bᵀ·d·B)]·A

    with 16 products where a convolution takes 36. In exact arithmetic it is the same function; in bfloat16 its terms
    are rounded, and the error is three times that of the convolution.

    Args:
        x: [B,C,H,W]; turned: [B,O,H,W].
        filters: see `filtered`, [16,O,C].
        bias: [O], or none.
        turned: the gradient of the convolution towards what it reads, of x towards what it gives.

    Returns:
        [B,O,H,W], channels last; turned: [B,C,H,W].

    Source: Lavin & Gray 2016, Fast Algorithms for Convolutional Neural Networks, section 4.1.
    """
    kernels = filters if turned else filters.transpose(1, 2)
    (batch, channels, height, width), outputs = x.shape, kernels.shape[2]
    (down, across), (data, output) = tiles(x), _matrices(x.dtype, turned)
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
        number = count * down * across
        pixels = _shaped(one, 4, 4, count, down, across, channels)
        pixels.copy_(padded.as_strided(pixels.shape, (row, column, image, 2 * row, 2 * column, single), first * image))
        seen = torch.mm(data, pixels.view(16, -1), out=_shaped(other, 16, number * channels))
        products = torch.bmm(seen.view(16, number, channels), kernels, out=_shaped(one, 16, number, outputs))
        sums = torch.mm(output, products.view(16, -1), out=_shaped(other, 4, number * outputs))
        placed = sums.view(2, 2, count, down, across, outputs).permute(2, 3, 0, 4, 1, 5)
        into = corners[first : first + count]
        if bias is None:
            into.copy_(placed)
        else:
            torch.add(placed, bias, out=into)
    if height % 2 or width % 2:
        return found[:, :, :height, :width].contiguous(memory_format=torch.channels_last)
    return found


def tiles(x: Tensor) -> tuple[int, int]:
    """How many tiles an image has, down and across."""
    return -(-x.shape[2] // 2), -(-x.shape[3] // 2)


def _shaped(memory: Tensor, *shape: int) -> Tensor:
    return memory[: math.prod(shape)].view(shape)


@functools.cache
def _matrices(dtype: torch.dtype, turned: bool) -> tuple[Tensor, Tensor]:
    """Bᵀ ⊗ Bᵀ, [16,16], and Aᵀ ⊗ Aᵀ, [4,16]; for turned kernels in the order in which these would be."""
    order = [4 * row + column for row in _TURNED for column in _TURNED] if turned else list(range(16))
    return torch.kron(_DATA, _DATA)[order].to(dtype), torch.kron(_OUTPUT, _OUTPUT)[:, order].to(dtype)
