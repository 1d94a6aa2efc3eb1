"""The resize before a network."""

import torch
from torch import nn

from robustill.models.layers import ResizedNetwork


def test_enlarging_is_bilinear() -> None:
    x = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(1, 1, 2, 2)
    # The centres of the four pixels are at -1/4, 1/4, 3/4 and 5/4 between the centres of the two.
    expected = torch.tensor([0.0, 0.25, 0.75, 1.0]).repeat(4)
    torch.testing.assert_close(ResizedNetwork(nn.Flatten(), 4)(x), expected[None])


def test_shrinking_uses_every_pixel() -> None:
    x = torch.rand(1, 1, 8, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(ResizedNetwork(nn.Flatten(), 2)(x).sum(), x)
    assert (grad > 0).all()
    torch.testing.assert_close(grad.sum(), torch.tensor(4.0))
