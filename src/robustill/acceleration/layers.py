"""Layers of a light copy that compute what others do, with a cheaper way back to the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def add_into(first: Tensor, second: Tensor) -> Tensor:
    """The sum, in the place of the first where it fits there."""
    fits = first.shape == second.shape and first.dtype == second.dtype
    return first.add_(second) if fits else first + second


def minus(x: Tensor, values: Tensor) -> Tensor:
    """x − values, of [1,C,1,1]."""
    return x - _everywhere(values, x)


def over(x: Tensor, values: Tensor) -> Tensor:
    """x / values, of [1,C,1,1]."""
    return x / _everywhere(values, x)


def _everywhere(values: Tensor, x: Tensor) -> Tensor:
    # Beside images with their channels last, one value a channel is read three at a time; a whole image of them is not.
    if x.ndim != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return values
    return values.expand(1, -1, *x.shape[2:]).contiguous(memory_format=torch.channels_last)


class StridedPointwise(nn.Conv2d):
    """A 1×1 convolution with a stride, that looks only at the pixels it reads: on a CPU its gradient costs a third."""

    @classmethod
    def of(cls, layer: nn.Conv2d) -> StridedPointwise | None:
        """The same convolution, its weights shared; None where this is no such convolution, or not on a CPU."""
        stride = layer.stride[0]
        plain = layer.groups == 1 and layer.padding == (0, 0) and layer.kernel_size == (1, 1)
        if not plain or stride == 1 or layer.stride != (stride, stride) or layer.weight.device.type != "cpu":
            return None
        # On the meta device nothing is initialised, so nothing is drawn.
        sparse = cls(layer.in_channels, layer.out_channels, 1, stride=stride, device="meta")
        sparse.weight, sparse.bias = layer.weight, layer.bias
        return sparse

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Conv2d`."""
        output: Tensor = _Strided.apply(input, self.weight, self.bias, self.stride[0])  # type: ignore[no-untyped-call]
        return output


class _Strided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.stride = x.shape[2:], stride
        read = x[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)
        return F.conv2d(read, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        (height, width), stride = ctx.size, ctx.stride
        read = F.conv2d(grads[0], weight.transpose(0, 1)).permute(0, 2, 3, 1)
        batch, rows, columns, channels = read.shape
        # Zeros behind each pixel that was read, and rows of zeros below.
        spread = F.pad(
            read.reshape(batch, rows, 1, columns, channels), (0, (stride - 1) * channels, 0, 0, 0, stride - 1)
        )
        whole = spread.view(batch, rows * stride, columns * stride, channels)
        return whole[:, :height, :width].permute(0, 3, 1, 2), None, None, None


def mean_of_pixels(x: Tensor) -> Tensor:
    """[B,C,H,W] -> [B,C].

    As `x.mean((2, 3))`, whose gradient comes back channels first: the layers before it, channels last, then take
    several times as long.
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)
