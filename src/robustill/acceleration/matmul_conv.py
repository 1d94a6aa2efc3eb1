"""Compute some bfloat16 convolutions as matrix products, which are faster on a CPU for few pixels or a stride.

A bf16 training step of RSLAD with a ResNet-18 (batch 32, two threads of a Zen 5 EPYC) is 2.10 to 2.18 times as fast as
the plain float32 loop with them and 2.05 times without; with a cached WideResNet-34-10 as the teacher 2.89 to 3.21 and
2.79 times (benchmarks/LOG.md, "Convolutions as products of matrices"). Without them torch's convolutions compute the
same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Measured for 3×3 kernels and batches of 4 to 128, with one thread and two (benchmarks/LOG.md). Output pixels up to
# which the gradient of the weights is a product: without a stride, and with one.
_MAX_PIXELS = 16
_MAX_PIXELS_STRIDED = 64
# From so many weights on, the forward pass and the gradient of the input are products as well, on few pixels.
_MIN_WEIGHTS = 2**20
_MIN_CHANNELS = 128


class MatmulConvolutions(TorchFunctionMode):
    """A context in which bfloat16 convolutions on a CPU are matrix products where these are faster.

    With the patches of x as the rows of P, [B·H'·W', k·k·C], a convolution is y = P·Wᵀ + b, its gradient towards the
    weights is (∂L/∂y)ᵀ·P, and with stride 1 its gradient towards x is such a product with the kernels rotated by 180°.
    Torch's convolutions are slow on few pixels, and so is their gradient towards the weights with a stride.

    Under autocast, float32 tensors are rounded as autocast does. All other convolutions are torch's.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace F.conv2d where a product is faster; call every other function as it is."""
        if func is F.conv2d and not kwargs:
            output = self._convolve(*args)
            if output is not None:
                return output
        return func(*args, **(kwargs or {}))

    def _convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
    ) -> Tensor | None:
        """Return the convolution, or None where torch's own is as fast."""
        strides, paddings, dilations = _pair(stride), _pair(padding), _pair(dilation)
        square_kernel = weight.ndim == 4 and weight.shape[2] == weight.shape[3] > 1
        isotropic = strides[0] == strides[1] and paddings[0] == paddings[1] and dilations == (1, 1)
        if not square_kernel or not isotropic or isinstance(padding, str) or groups != 1:
            return None
        if min(weight.shape[:2]) < _MIN_CHANNELS:
            return None
        kernel = weight.shape[2]
        if x.ndim != 4 or x.shape[1] != weight.shape[1] or min(x.shape[2:]) + 2 * paddings[0] < kernel:
            return None
        height, width = ((side + 2 * paddings[0] - kernel) // strides[0] + 1 for side in x.shape[2:])
        few_pixels = height * width <= _MAX_PIXELS
        strided = strides[0] > 1 and height * width <= _MAX_PIXELS_STRIDED
        if not (few_pixels or strided) or not _are_bfloat16(x, weight, bias):
            return None
        x, bias = x.to(torch.bfloat16), bias if bias is None else bias.to(torch.bfloat16)
        all_passes = few_pixels and weight.numel() >= _MIN_WEIGHTS
        output: Tensor = MatmulConv2d.apply(  # type: ignore[no-untyped-call]
            x, weight.to(torch.bfloat16), bias, strides[0], paddings[0], all_passes
        )
        return output


def has_eligible_convolution(network: nn.Module) -> bool:
    """Return whether a network has a convolution that `MatmulConvolutions` may replace."""
    return any(
        isinstance(layer, nn.Conv2d)
        and layer.weight.device.type == "cpu"
        and layer.groups == 1
        and layer.kernel_size != (1, 1)
        and min(layer.in_channels, layer.out_channels) >= _MIN_CHANNELS
        for layer in network.modules()
    )


def _pair(value: Any) -> tuple[Any, Any]:
    return value if isinstance(value, tuple) else (value, value)


def _are_bfloat16(*tensors: Tensor | None) -> bool:
    """Return whether all tensors are on a CPU and in bfloat16, or will be under autocast."""
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    dtypes = (torch.bfloat16, torch.float32) if autocast else (torch.bfloat16,)
    return all(each is None or (each.device.type == "cpu" and each.dtype in dtypes) for each in tensors)


class MatmulConv2d(torch.autograd.Function):
    """A convolution whose gradient towards the weights is a matrix product; with `all_passes`, the other passes too."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, all_passes: bool) -> Tensor:
        """[B,C,H,W], [O,C,k,k], [O] -> [B,O,H',W']."""
        if not all_passes:
            return F.conv2d(x, weight, bias, stride, padding)
        kernel = weight.shape[2]
        patches, matrix = _extract_patches(x, kernel, stride, padding), weight.permute(0, 2, 3, 1).flatten(1).t()
        batch, height, width, _ = patches.shape
        # The output is no view of the product, because the next layer may overwrite it.
        output = torch.empty(
            (batch, len(weight), height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )
        rows = output.permute(0, 2, 3, 1).view(-1, len(weight))
        if bias is None:
            torch.mm(patches.flatten(0, 2), matrix, out=rows)
        else:
            torch.addmm(bias, patches.flatten(0, 2), matrix, out=rows)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save what the backward pass needs."""
        x, weight, bias, *ctx.options = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients towards x, weight and bias."""
        x, weight = ctx.saved_tensors
        (stride, padding, all_passes), (grad,) = ctx.options, grads
        kernel = weight.shape[2]
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            if all_passes and stride == 1:
                patches = _extract_patches(grad, kernel, 1, kernel - 1 - padding)
                rows = patches.flatten(0, 2) @ _rotate_kernels(weight)
                grad_x = rows.view(*patches.shape[:3], -1).permute(0, 3, 1, 2)
            else:
                grad_x = _convolution_grad_x(grad, x, weight, stride, padding)
        if ctx.needs_input_grad[1]:
            grad_weight = _matmul_grad_weight(grad, x, kernel, stride, padding)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None, None


def _extract_patches(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Return the pixels under the kernel at each of its positions, [B,C,H,W] -> [B,H',W',k·k·C]."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, *(padding,) * 4)).contiguous()
    batch, height, width, channels = padded.shape
    images, rows, columns, single = padded.stride()
    size = [batch, (height - kernel) // stride + 1, (width - kernel) // stride + 1, kernel, kernel, channels]
    return padded.as_strided(size, [images, rows * stride, columns * stride, rows, columns, single]).flatten(3)


def _rotate_kernels(weight: Tensor) -> Tensor:
    """Return the kernels rotated by 180°, [O,C,k,k] -> [k·k·O,C]."""
    taps = weight.permute(2, 3, 0, 1).flatten(0, 1)
    # One copy by whole rows; a flip followed by the same permutation would take two.
    return taps.index_select(0, torch.arange(len(taps) - 1, -1, -1)).flatten(0, 1)


def _matmul_grad_weight(grad: Tensor, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    patches = _extract_patches(x, kernel, stride, padding).flatten(0, 2)
    rows = grad.permute(0, 2, 3, 1).flatten(0, 2)
    return (rows.t() @ patches).view(-1, kernel, kernel, x.shape[1]).permute(0, 3, 1, 2)


def _convolution_grad_x(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    grads: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, False, False]
    )
    return grads[0]
