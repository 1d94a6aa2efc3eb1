"""Intervals, and the receptive fields of layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustill.acceleration.receptive_field import Interval, ReceptiveField, receptive_field


def test_intervals():
    assert Interval(2, 3).end == 5
    assert Interval(2, 3).union(Interval(6, 2)) == Interval(6, 2).union(Interval(2, 3)) == Interval(2, 6)
    assert Interval(2, 9).union(Interval(3, 1)) == Interval(2, 9)
    assert Interval(2, 3).intersection(Interval(4, 5)) == Interval(4, 1)
    assert Interval(2, 9).intersection(Interval(3, 2)) == Interval(3, 2)
    assert Interval(2, 3).intersection(Interval(5, 2)) is None
    assert list(range(10))[Interval(4, 3).relative_to(2)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("layer", "kernel", "stride", "padding", "weights"),
    [
        (nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(2, 0)), (3, 2), (1, 2), (2, 0), 2 * 3 * 6),
        (nn.Conv2d(4, 6, 3, padding=1, dilation=(2, 1), groups=2), (5, 3), (1, 1), (1, 1), 2 * 6 * 9),
        (nn.Conv2d(2, 2, 1, bias=False), (1, 1), (1, 1), (0, 0), 4),
        (nn.MaxPool2d((2, 3), stride=(2, 1)), (2, 3), (2, 1), (0, 0), 1),
        (nn.MaxPool2d(3, dilation=(1, 1)), (3, 3), (3, 3), (0, 0), 1),
        (nn.AvgPool2d(2, stride=1), (2, 2), (1, 1), (0, 0), 1),
    ],
)
def test_the_receptive_field_is_the_kernel_of_the_layer(layer, kernel, stride, padding, weights):
    field = receptive_field(layer)
    assert field is not None
    assert (field.kernel, field.stride, field.padding, field.multiplications) == (kernel, stride, padding, weights)
    x = torch.rand(2, layer.in_channels if isinstance(layer, nn.Conv2d) else 2, 9, 8)
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    torch.testing.assert_close(field.forward(padded), layer(x))


@pytest.mark.parametrize(
    "layer",
    [
        None,
        nn.ReLU(),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.MaxPool2d(3, padding=1),
        nn.AvgPool2d(3, padding=(0, 1)),
        nn.AvgPool2d(3, ceil_mode=True),
        nn.MaxPool2d(3, dilation=2),
        nn.MaxPool2d(3, return_indices=True),
    ],
)
def test_other_layers_have_no_receptive_field(layer):
    assert receptive_field(layer) is None


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "margin"),
    [
        ((3, 3), (1, 1), (1, 1), 1),
        ((3, 3), (1, 1), (1, 2), 2),
        ((1, 3), (4, 1), (0, 1), 3),
        ((1, 1), (1, 1), (0, 0), 0),
    ],
)
def test_the_margin_is_the_largest_excess_over_the_border(kernel, stride, padding, margin):
    field = ReceptiveField(kernel, stride, padding, nn.Identity(), 1)
    assert field.margin() == margin
    assert field.extent(0) == max(kernel[0], stride[0])
    assert field.extent(1) == max(kernel[1], stride[1])


@pytest.mark.parametrize("size", [17, 18])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (3, 3, 1), (1, 2, 0), (4, 2, 1), (5, 3, 0), (7, 2, 3)]
)
def test_a_window_covers_every_pixel_that_a_patch_can_change(kernel, stride, padding, size):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(1, 1, kernel, stride=stride, padding=padding)
    field = ReceptiveField((kernel,) * 2, (stride,) * 2, (padding,) * 2, layer, 1)
    for side in (1, 2, 5):
        before = torch.rand(1, 1, size, size, generator=generator)
        output, most = layer(before), 0
        for start in range(size - side + 1):
            after = before.clone()
            after[:, :, start : start + side, start : start + side] += 1
            changed = (layer(after) != output)[0, 0]
            most = max(most, int(changed.any(dim=1).sum()))
            rows, columns = (field.output_interval(axis, Interval(start, side), len(changed)) for axis in (0, 1))
            changed[rows.relative_to(0), columns.relative_to(0)] = False
            assert not changed.any()
            assert rows.length == field.output_interval(0, Interval(0, side), len(changed)).length
            # What is read for it holds the patch, and gives that part of the output and no more.
            read = field.input_interval(0, rows, size, len(changed))
            assert read.start <= start
            assert read.end >= start + side
            assert -field.margin() <= read.start
            assert read.end <= size + field.margin()
            assert (read.length - kernel) // stride + 1 == rows.length
        assert rows.length == most or kernel < stride, "no wider than it must be"
