"""Which pixels of a feature map a changed pixel of the one before can change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

Slices = tuple[slice, slice, slice, slice]


@dataclass(frozen=True)
class Window:
    """A rectangle of a feature map."""

    top: int
    left: int
    height: int
    width: int

    def union(self, other: Window) -> Window:
        """The smallest rectangle around both."""
        top, left = min(self.top, other.top), min(self.left, other.left)
        bottom = max(self.top + self.height, other.top + other.height)
        right = max(self.left + self.width, other.left + other.width)
        return Window(top, left, bottom - top, right - left)

    def common(self, other: Window) -> Window | None:
        """The pixels of both; None where there are none."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + self.height, other.top + other.height)
        right = min(self.left + self.width, other.left + other.width)
        return Window(top, left, bottom - top, right - left) if bottom > top and right > left else None

    def slices(self, top: int = 0, left: int = 0) -> Slices:
        """An index for these pixels into images whose first pixel is the feature map's (top, left)."""
        first, second = self.top - top, self.left - left
        everything = slice(None)
        return everything, everything, slice(first, first + self.height), slice(second, second + self.width)


@dataclass(frozen=True)
class Reach:
    """A layer whose output pixel reads a square of its input: convolution or pooling without padding of its own.

    Args:
        kernel: side of the square, dilation included.
        stride: of the output on the input.
        padding: zeros around the input.
        run: from the input, padding included, to the output.
        weights: multiplications for one output pixel.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    run: Callable[[Tensor], Tensor]
    weights: int

    def changed(self, window: Window, height: int, width: int) -> Window:
        """Where the output, of that size, can differ if the input does in a window.

        The rectangle's size depends on the window's alone, not on its place: kernels are made ready once per size.
        """
        top, rows = self._along(0, window.top, window.height, height)
        left, columns = self._along(1, window.left, window.width, width)
        return Window(top, left, rows, columns)

    def needed(self, window: Window) -> Window:
        """The input pixels that an output window reads; beyond the borders where there is padding."""
        (kh, kw), (sh, sw), (ph, pw) = self.kernel, self.stride, self.padding
        return Window(
            window.top * sh - ph, window.left * sw - pw, (window.height - 1) * sh + kh, (window.width - 1) * sw + kw
        )

    def _along(self, axis: int, start: int, count: int, size: int) -> tuple[int, int]:
        kernel, stride, padding = self.kernel[axis], self.stride[axis], self.padding[axis]
        out_count = min((count + kernel - 2) // stride + 1, size)
        first = -(-(start + padding - kernel + 1) // stride)
        return min(max(first, 0), size - out_count), out_count


def reach_of(module: nn.Module | None) -> Reach | None:
    """The reach of a layer; None for layers of other kinds, and where its padding is no zeros."""
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        kernel = tuple(d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True))

        def convolve(x: Tensor, layer: nn.Conv2d = module) -> Tensor:
            return F.conv2d(x, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)

        return Reach(kernel, module.stride, module.padding, convolve, module.weight.numel())  # type: ignore[arg-type]
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d) and _pair(module.padding) == (0, 0) and not module.ceil_mode:
        if getattr(module, "dilation", 1) not in (1, (1, 1)) or getattr(module, "return_indices", False):
            return None
        return Reach(_pair(module.kernel_size), _pair(module.stride), (0, 0), module, 1)
    return None


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
