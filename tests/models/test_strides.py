"""Undoing strides keeps the resolution of small images, and what a network cannot do is said in one line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustill.core.errors import ModelError
from robustill.models.strides import undo_strides


class Residual(nn.Module):
    """A strided block whose shortcut is strided, too, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.main = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.shortcut = nn.Sequential(nn.AvgPool2d(1, stride=2), nn.Conv2d(4, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(self.norm(x)))
        return self.main(x) + self.shortcut(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("count", "side"), [(0, 2), (1, 4), (2, 8), (3, 16)])
def test_the_first_reductions_are_undone_with_their_shortcuts(count: int, side: int) -> None:
    network = Residual()
    undo_strides(network, count, (3, 16, 16), "net")
    # It looked at the shapes of the features alone.
    assert network.training
    assert network.norm.num_batches_tracked == 0
    assert not any(layer._forward_pre_hooks for layer in network.modules())
    assert network(torch.rand(2, 3, 16, 16)).shape == (2, 4, side, side)


def test_the_weights_are_those_of_the_published_network() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1))
    before, x = network(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, 8, 8)
    undo_strides(network, 2, (3, 8, 8), "net")
    torch.testing.assert_close(network(x)[..., ::4, ::4][..., 1:, 1:], before[..., 1:, 1:])


def test_impossible_counts_and_networks_are_one_line() -> None:
    with pytest.raises(ModelError, match="net reduces the resolution 3 times only: undo_strides is 4"):
        undo_strides(Residual(), 4, (3, 16, 16), "net")
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4 * 4 * 4, 10))
    with pytest.raises(ModelError, match=r"net fails on images of 8×8 pixels with undo_strides \(.*\): leave it out"):
        undo_strides(fixed, 1, (3, 8, 8), "net")
