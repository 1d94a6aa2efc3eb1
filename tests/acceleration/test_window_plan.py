from __future__ import annotations

import pytest
import torch

from robustill.acceleration.window_plan import Squares


def test_squares_are_read_and_written_where_they_lie():
    images = torch.arange(4 * 2 * 5 * 7.0).view(4, 2, 5, 7).contiguous(memory_format=torch.channels_last)
    rows, place = torch.tensor([3, 0, 2]), (torch.tensor([1, 2, 0]), torch.tensor([5, 0, 3]))
    squares = Squares(images, rows, place, 2)
    inside = [images[3, :, 1:3, 5:7], images[0, :, 2:4, 0:2], images[2, :, 0:2, 3:5]]
    assert torch.equal(squares.read(images), torch.stack(inside))
    # Any layout can be read.
    assert torch.equal(squares.read(images.contiguous()), torch.stack(inside))
    expected = images.clone()
    windows = -1 - torch.arange(24.0).view(3, 2, 2, 2)
    expected[3, :, 1:3, 5:7], expected[0, :, 2:4, 0:2], expected[2, :, 0:2, 3:5] = windows
    squares.write(images, windows)
    assert torch.equal(images, expected)
    with pytest.raises(RuntimeError, match="view"):
        squares.write(images.contiguous(), windows)
