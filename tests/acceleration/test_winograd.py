import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robustill.acceleration.winograd import convolved, filtered, tiles


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (8, 6), (1, 1), (2, 3)])
def test_it_is_the_convolution_there_and_back(height: int, width: int, layout: torch.memory_format, bias: bool) -> None:
    x, weight = drawn(3, 5, height, width).contiguous(memory_format=layout).requires_grad_(), drawn(4, 5, 3, 3, seed=1)
    shift = drawn(4, seed=2) if bias else None
    expected = F.conv2d(x, weight, shift, padding=1)
    found = convolved(x.detach(), filtered(weight), shift)
    torch.testing.assert_close(found, expected.detach())
    assert found.is_contiguous(memory_format=torch.channels_last)
    along = drawn(*expected.shape, seed=3)
    (grad,) = torch.autograd.grad(expected, x, along)
    torch.testing.assert_close(convolved(along, filtered(weight), turned=True), grad)


@pytest.mark.parametrize("side", [4, 16])
def test_many_channels_in_portions_of_images_and_at_once(side: int) -> None:
    # 40 channels: of 4×4 pixels ten images at a time, of 16×16 one.
    x, weight = drawn(11, 40, side, side), drawn(24, 40, 3, 3, seed=1)
    torch.testing.assert_close(convolved(x, filtered(weight)), F.conv2d(x, weight, padding=1))
    torch.testing.assert_close(
        convolved(x[:, :24], filtered(weight), turned=True), F.conv_transpose2d(x[:, :24], weight, padding=1)
    )


def test_a_filtered_kernel_by_hand() -> None:
    # Of a kernel of ones: G·1·Gᵀ has the products of 1, 3/2, 1/2 and 1.
    expected = torch.outer(*(torch.tensor([1.0, 1.5, 0.5, 1.0]),) * 2)
    torch.testing.assert_close(filtered(torch.ones(1, 1, 3, 3)).view(4, 4), expected)


def test_tiles_cover_what_is_odd() -> None:
    assert tiles(torch.empty(1, 1, 5, 4)) == (3, 2)
