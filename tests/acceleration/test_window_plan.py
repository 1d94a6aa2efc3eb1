from __future__ import annotations

import pytest
import torch

from robustill.acceleration.window_plan import SquareWindows


def test_square_windows_are_read_and_written_at_their_positions():
    images = torch.arange(4 * 2 * 5 * 7.0).view(4, 2, 5, 7).contiguous(memory_format=torch.channels_last)
    rows, position = torch.tensor([3, 0, 2]), (torch.tensor([1, 2, 0]), torch.tensor([5, 0, 3]))
    windows = SquareWindows(images, rows, position, 2)
    inside = [images[3, :, 1:3, 5:7], images[0, :, 2:4, 0:2], images[2, :, 0:2, 3:5]]
    assert torch.equal(windows.read(images), torch.stack(inside))
    # Any layout can be read.
    assert torch.equal(windows.read(images.contiguous()), torch.stack(inside))
    expected = images.clone()
    values = -1 - torch.arange(24.0).view(3, 2, 2, 2)
    expected[3, :, 1:3, 5:7], expected[0, :, 2:4, 0:2], expected[2, :, 0:2, 3:5] = values
    windows.write(images, values)
    assert torch.equal(images, expected)
    with pytest.raises(RuntimeError, match="view"):
        windows.write(images.contiguous(), values)
