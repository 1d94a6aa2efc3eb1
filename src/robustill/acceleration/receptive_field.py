"""Which output pixels of a layer can change if some input pixels do, and which input they need; rows and columns apart.

This is the arithmetic behind `windowed`, and computes nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class Interval(NamedTuple):
    """Consecutive rows, or columns, of a feature map."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The first index after the interval."""
        return self.start + self.length

    def union(self, other: Interval) -> Interval:
        """Return the shortest interval that contains both."""
        start = min(self.start, other.start)
        return Interval(start, max(self.end, other.end) - start)

    def intersection(self, other: Interval) -> Interval | None:
        """Return the part that both have in common, or None if there is none."""
        start = max(self.start, other.start)
        length = min(self.end, other.end) - start
        return Interval(start, length) if length > 0 else None

    def relative_to(self, first: int) -> slice:
        """Return the interval as a slice of a tensor that begins at index `first`."""
        return slice(self.start - first, self.end - first)


@dataclass(frozen=True)
class ReceptiveField:
    """The geometry of a layer whose output pixels each read a rectangle: a convolution, or pooling without padding.

    Args:
        kernel: height and width of the rectangle, dilation included.
        stride: distance between the rectangles of neighbouring output pixels.
        padding: zeros around the input.
        forward: the layer without its padding, from the padded input to the output.
        multiplications: for one output pixel.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    forward: Callable[[Tensor], Tensor]
    multiplications: int

    def output_interval(self, axis: int, interval: Interval, size: int) -> Interval:
        """Return where an output of length `size` can change if an interval of rows (axis 0) or columns (1) does.

        Its length depends on the length of the interval alone, not on its position: kernels are prepared once a size.
        """
        extent, stride, padding = self.extent(axis), self.stride[axis], self.padding[axis]
        length = min((interval.length + extent - 2) // stride + 1, size)
        first = -(-(interval.start + padding - extent + 1) // stride)
        return Interval(min(max(first, 0), size - length), length)

    def input_interval(self, axis: int, interval: Interval, size: int, output_size: int) -> Interval:
        """Return what an interval of the output, of length `output_size`, reads of an input of length `size`.

        It exceeds the borders where there is padding, and contains the whole input interval that `output_interval` was
        given, including pixels that no output pixel reads.
        """
        extent, stride, padding = self.extent(axis), self.stride[axis], self.padding[axis]
        unread = max(size + padding - (output_size - 1) * stride - extent, 0)
        return Interval(interval.start * stride - padding, (interval.length - 1) * stride + extent + unread)

    def extent(self, axis: int) -> int:
        """Return the larger of kernel and stride: with so many rows or columns an output pixel, none is left out."""
        return max(self.kernel[axis], self.stride[axis])

    def margin(self) -> int:
        """Return by how many pixels `input_interval` exceeds the borders at most."""
        return max(self.padding[axis] + self.extent(axis) - self.kernel[axis] for axis in (0, 1))


def receptive_field(module: nn.Module | None) -> ReceptiveField | None:
    """Return the receptive field of a layer, or None for other layers and padding with other values than zeros."""
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        kernel = tuple(module.dilation[axis] * (module.kernel_size[axis] - 1) + 1 for axis in (0, 1))

        def convolve(x: Tensor, layer: nn.Conv2d = module) -> Tensor:
            return F.conv2d(x, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)

        return ReceptiveField(kernel, module.stride, module.padding, convolve, module.weight.numel())  # type: ignore[arg-type]
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d) and _pair(module.padding) == (0, 0) and not module.ceil_mode:
        if getattr(module, "dilation", 1) not in (1, (1, 1)) or getattr(module, "return_indices", False):
            return None
        return ReceptiveField(_pair(module.kernel_size), _pair(module.stride), (0, 0), module, 1)
    return None


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
