"""Drop-in layers with a cheaper backward pass on a CPU, which `folding` puts into the copies that attacks run on.

They matter for small networks: with per-channel constants expanded to whole images, the normalisation of 128 images of
32×32 pixels takes 0.05 ms instead of 0.23 (benchmarks/LOG.md, "Convolutions as products of matrices"). Without them a
copy computes the same values with torch's own layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def add_in_place(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum, written into `first` where shapes and types agree."""
    agree = first.shape == second.shape and first.dtype == second.dtype
    return first.add_(second) if agree else first + second


def subtract_channels(x: Tensor, values: Tensor) -> Tensor:
    """Return x − values for one value a channel, [1,C,1,1]."""
    return x - _expand_channels(values, x)


def divide_channels(x: Tensor, values: Tensor) -> Tensor:
    """Return x / values for one value a channel, [1,C,1,1]."""
    return x / _expand_channels(values, x)


def _expand_channels(values: Tensor, x: Tensor) -> Tensor:
    # Broadcasting [1,C,1,1] over channels-last images reads the values C at a time, which does not vectorise.
    if x.ndim != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return values
    return values.expand(1, -1, *x.shape[2:]).contiguous(memory_format=torch.channels_last)


class StridedConv1x1(nn.Conv2d):
    """A 1×1 convolution with a stride that gathers the pixels it reads first: on a CPU its gradient costs a third."""

    @classmethod
    def from_conv(cls, layer: nn.Conv2d) -> StridedConv1x1 | None:
        """Return the same convolution with shared weights; None if `layer` is no such convolution or not on a CPU."""
        stride = layer.stride[0]
        pointwise = layer.groups == 1 and layer.padding == (0, 0) and layer.kernel_size == (1, 1)
        if not pointwise or stride == 1 or layer.stride != (stride, stride) or layer.weight.device.type != "cpu":
            return None
        # On the meta device nothing is initialised, so no random number is drawn.
        strided = cls(layer.in_channels, layer.out_channels, 1, stride=stride, device="meta")
        strided.weight, strided.bias = layer.weight, layer.bias
        return strided

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Conv2d`."""
        output: Tensor = _StridedConv1x1.apply(input, self.weight, self.bias, self.stride[0])  # type: ignore[no-untyped-call]
        return output


class _StridedConv1x1(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.stride = x.shape[2:], stride
        pixels = x[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)
        return F.conv2d(pixels, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        (height, width), stride = ctx.size, ctx.stride
        grad = F.conv2d(grads[0], weight.transpose(0, 1)).permute(0, 2, 3, 1)
        batch, rows, columns, channels = grad.shape
        # Zeros after each pixel that was read, and rows of zeros below it.
        padded = F.pad(
            grad.reshape(batch, rows, 1, columns, channels), (0, (stride - 1) * channels, 0, 0, 0, stride - 1)
        )
        whole = padded.view(batch, rows * stride, columns * stride, channels)
        return whole[:, :height, :width].permute(0, 3, 1, 2), None, None, None


def global_average_pool(x: Tensor) -> Tensor:
    """Return the mean over the pixels, [B,C,H,W] -> [B,C].

    The same values as `x.mean((2, 3))`, whose gradient is not channels last: the channels-last layers before it then
    take several times as long.
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)
