"""Convolutions as products of matrices: on a CPU, in bfloat16, sooner where pixels are few or channels many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Measured for 3×3 kernels and batches of 4 to 128, by one thread and two (docs/results.md).
_FEW_PIXELS = 16
_MANY_WEIGHTS = 2**20
_STRIDED_PIXELS = 64
_CHANNELS = 128


class Products(TorchFunctionMode):
    """As long as it is entered, convolutions on a CPU in bfloat16 take matrix products where these are faster.

    With the patches of x as the rows of P, [B·H'·W', k·k·C], a convolution is y = P·Wᵀ + b, its gradient towards the
    weights is (∂L/∂y)ᵀ·P, and with stride 1 the one towards x is such a product with the turned weights. The kernels
    for convolutions are slow where a plane has few pixels, and that for the weights' gradient where there is a stride.

    Under autocast, what is float32 is rounded as autocast would. All others are left to whom they belong.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Takes F.conv2d over, and passes on what else there is."""
        if func is F.conv2d and not kwargs:
            found = self._convolved(*args)
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))

    def _convolved(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
    ) -> Tensor | None:
        """The convolution, or None where it is none of those that are faster as a product."""
        steps, border, spread = _pair(stride), _pair(padding), _pair(dilation)
        square = weight.ndim == 4 and weight.shape[2] == weight.shape[3] > 1
        even = steps[0] == steps[1] and border[0] == border[1] and spread == (1, 1) and not isinstance(padding, str)
        if not (square and even and groups == 1 and min(weight.shape[:2]) >= _CHANNELS):
            return None
        if x.ndim != 4 or x.shape[1] != weight.shape[1] or min(x.shape[2:]) + 2 * border[0] < weight.shape[2]:
            return None
        height, width = ((side + 2 * border[0] - weight.shape[2]) // steps[0] + 1 for side in x.shape[2:])
        few = height * width <= _FEW_PIXELS
        if not (few or (height * width <= _STRIDED_PIXELS and steps[0] > 1)):
            return None
        if not _in_bfloat16(x, weight, bias):
            return None
        x, bias = x.to(torch.bfloat16), bias if bias is None else bias.to(torch.bfloat16)
        whole = few and weight.numel() >= _MANY_WEIGHTS
        found: Tensor = Product.apply(x, weight.to(torch.bfloat16), bias, steps[0], border[0], whole)  # type: ignore[no-untyped-call]
        return found


def worthwhile(network: nn.Module) -> bool:
    """Whether a network has a convolution that may be taken over."""
    return any(
        isinstance(layer, nn.Conv2d)
        and layer.weight.device.type == "cpu"
        and layer.groups == 1
        and layer.kernel_size != (1, 1)
        and min(layer.in_channels, layer.out_channels) >= _CHANNELS
        for layer in network.modules()
    )


def _pair(value: Any) -> tuple[Any, Any]:
    return value if isinstance(value, tuple) else (value, value)


def _in_bfloat16(*tensors: Tensor | None) -> bool:
    rounded = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    known = (torch.bfloat16, torch.float32) if rounded else (torch.bfloat16,)
    return all(each is None or (each.device.type == "cpu" and each.dtype in known) for each in tensors)


class Product(torch.autograd.Function):
    """A convolution whose gradient towards the weights, and which itself where `whole` says so, is a matrix product."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, whole: bool) -> Tensor:
        """[B,C,H,W], [O,C,k,k], [O] -> [B,O,H',W']."""
        if not whole:
            return F.conv2d(x, weight, bias, stride, padding)
        kernel = weight.shape[2]
        patches, turned = _patches(x, kernel, stride, padding), weight.permute(0, 2, 3, 1).flatten(1).t()
        batch, height, width, _ = patches.shape
        # No view of what the product gives: layers behind it may overwrite it.
        found = torch.empty(
            (batch, len(weight), height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )
        rows = found.permute(0, 2, 3, 1).view(-1, len(weight))
        if bias is None:
            torch.mm(patches.flatten(0, 2), turned, out=rows)
        else:
            torch.addmm(bias, patches.flatten(0, 2), turned, out=rows)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the way back needs."""
        x, weight, bias, *ctx.shape = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients towards x, weight and bias."""
        x, weight = ctx.saved_tensors
        (stride, padding, whole), (grad,) = ctx.shape, grads
        kernel = weight.shape[2]
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            if whole and stride == 1:
                patches = _patches(grad, kernel, 1, kernel - 1 - padding)
                found = patches.flatten(0, 2) @ _turned(weight)
                to_x = found.view(*patches.shape[:3], -1).permute(0, 3, 1, 2)
            else:
                to_x = _towards_x(grad, x, weight, stride, padding)
        if ctx.needs_input_grad[1]:
            to_weight = _towards_weight(grad, x, kernel, stride, padding)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            to_bias = grad.sum((0, 2, 3))
        return to_x, to_weight, to_bias, None, None, None


def _patches(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """[B,C,H,W] -> [B,H',W',k·k·C]: what a kernel sees, pixel by pixel."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, *(padding,) * 4)).contiguous()
    batch, height, width, channels = padded.shape
    images, rows, columns, single = padded.stride()
    size = [batch, (height - kernel) // stride + 1, (width - kernel) // stride + 1, kernel, kernel, channels]
    return padded.as_strided(size, [images, rows * stride, columns * stride, rows, columns, single]).flatten(3)


def _turned(weight: Tensor) -> Tensor:
    """[O,C,k,k] -> [k·k·O,C], the kernels turned by half a turn."""
    taps = weight.permute(2, 3, 0, 1).flatten(0, 1)
    # One pass, by whole rows; a flip, and the same order of axes after it, would take two.
    return taps.index_select(0, torch.arange(len(taps) - 1, -1, -1)).flatten(0, 1)


def _towards_weight(grad: Tensor, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    patches = _patches(x, kernel, stride, padding).flatten(0, 2)
    rows = grad.permute(0, 2, 3, 1).flatten(0, 2)
    return (rows.t() @ patches).view(-1, kernel, kernel, x.shape[1]).permute(0, 3, 1, 2)


def _towards_x(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    return _gradients(grad, x, weight, stride, padding, [True, False, False])[0]


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, asked: Sequence[bool]
) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, asked
    )
    return found
