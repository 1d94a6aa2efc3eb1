"""Which pixels of a feature map a changed pixel of the one before can change; rows and columns apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class Interval(NamedTuple):
    """Neighbouring rows, or columns, of a feature map."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The first one behind."""
        return self.start + self.length

    def union(self, other: Interval) -> Interval:
        """The shortest interval around both."""
        start = min(self.start, other.start)
        return Interval(start, max(self.end, other.end) - start)

    def common(self, other: Interval) -> Interval | None:
        """What both have; None where that is nothing."""
        start = max(self.start, other.start)
        count = min(self.end, other.end) - start
        return Interval(start, count) if count > 0 else None

    def within(self, first: int) -> slice:
        """An index into a tensor that begins at row or column `first`."""
        return slice(self.start - first, self.end - first)


@dataclass(frozen=True)
class Reach:
    """A layer whose output pixel reads a rectangle of its input: convolution, or pooling without padding.

    Args:
        kernel: height and width of the rectangle, dilation included.
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

    def changed(self, axis: int, interval: Interval, size: int) -> Interval:
        """Where the output, `size` long, can differ if the input does in an interval of rows (axis 0) or columns (1).

        The length depends on the interval's alone, not on its place: kernels are made ready once per size.
        """
        extent, stride, padding = self.extent(axis), self.stride[axis], self.padding[axis]
        count = min((interval.length + extent - 2) // stride + 1, size)
        first = -(-(interval.start + padding - extent + 1) // stride)
        return Interval(min(max(first, 0), size - count), count)

    def needed(self, axis: int, interval: Interval, size: int, output_size: int) -> Interval:
        """What an interval of the output, `output_size` long, reads of the input, `size` long.

        It goes beyond the borders where there is padding, and holds all of the input that the interval was made for
        with `changed`: also what no output pixel reads.
        """
        extent, stride, padding = self.extent(axis), self.stride[axis], self.padding[axis]
        unread = max(size + padding - (output_size - 1) * stride - extent, 0)
        return Interval(interval.start * stride - padding, (interval.length - 1) * stride + extent + unread)

    def extent(self, axis: int) -> int:
        """Rows, or columns, from what one output pixel reads to what the next one does, or more where they overlap."""
        return max(self.kernel[axis], self.stride[axis])

    def margin(self) -> int:
        """How far `needed` goes beyond the borders at most."""
        return max(self.padding[axis] + self.extent(axis) - self.kernel[axis] for axis in (0, 1))


def reach_of(module: nn.Module | None) -> Reach | None:
    """The reach of a layer; None for layers of other kinds, and where its padding is no zeros."""
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        kernel = tuple(module.dilation[axis] * (module.kernel_size[axis] - 1) + 1 for axis in (0, 1))

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
