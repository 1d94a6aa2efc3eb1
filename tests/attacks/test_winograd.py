import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.attacks.folding import folded_copy, rough_copy
from robustill.attacks.following import Follower
from robustill.attacks.winograd import Filtering, Winograd, filtered
from robustill.models import build
from robustill.modes import frozen


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (8, 6), (1, 1), (2, 3)])
def test_it_is_the_convolution_there_and_back(height: int, width: int, bias: bool) -> None:
    x, weight = drawn(3, 5, height, width).requires_grad_(), drawn(4, 5, 3, 3, seed=1)
    shift = drawn(4, seed=2) if bias else None

    def fast(images: Tensor) -> Tensor:
        found: Tensor = Filtering.apply(images, filtered(weight), shift, False)
        return found

    found, expected = fast(x), F.conv2d(x, weight, shift, padding=1)
    torch.testing.assert_close(found, expected)
    along = drawn(*expected.shape, seed=3)
    for mine, theirs in zip(torch.autograd.grad(found, x, along), torch.autograd.grad(expected, x, along), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert torch.autograd.gradcheck(fast, (x,))
    assert torch.autograd.gradgradcheck(fast, (x,))


@pytest.mark.parametrize("side", [4, 16])
def test_many_channels_in_portions_of_images_and_at_once(side: int) -> None:
    # 40 channels: of 4×4 pixels ten images at a time, of 16×16 one.
    x, weight = drawn(11, 40, side, side), drawn(24, 40, 3, 3, seed=1)
    torch.testing.assert_close(Filtering.apply(x, filtered(weight), None, False), F.conv2d(x, weight, padding=1))


def layer(channels: int = 320, outputs: int = 320, **options: object) -> nn.Conv2d:
    made = nn.Conv2d(channels, outputs, **{"kernel_size": 3, "padding": 1, **options})  # type: ignore[arg-type]
    with torch.no_grad():
        made.weight.copy_(drawn(*made.weight.shape, seed=1) / made.weight[0].numel() ** 0.5)
    return made.to(torch.bfloat16).requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def test_in_bfloat16_it_rounds_a_few_times_as_much_as_the_convolution() -> None:
    made = layer(bias=True)
    fast = Winograd.of(made)
    assert fast is not None
    x = drawn(16, 320, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    along = drawn(16, 320, 4, 4, seed=3)

    def both(compute: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = x.to(dtype).requires_grad_()
        output = compute(leaf)
        (grad,) = torch.autograd.grad(output, leaf, along.to(dtype))
        assert output.is_contiguous(memory_format=torch.channels_last)
        return output.detach(), grad

    exact = both(copy.deepcopy(made).double(), torch.float64)
    for mine, theirs, true in zip(both(fast, torch.bfloat16), both(made, torch.bfloat16), exact, strict=True):
        error, allowed = (mine - true).norm(), (theirs - true).norm()
        assert 0 < error < 4 * allowed


def test_few_tiles_are_left_to_the_convolution() -> None:
    made = layer()
    fast = Winograd.of(made)
    assert fast is not None
    few, enough = drawn(15, 320, 4, 4, dtype=torch.bfloat16), drawn(16, 320, 4, 4, dtype=torch.bfloat16)
    assert torch.equal(fast(few), made(few))
    assert not torch.equal(fast(enough), made(enough))


def test_changed_weights_are_taken_up() -> None:
    fast = Winograd.of(layer(bias=False))
    assert fast is not None
    x = drawn(16, 320, 4, 4, dtype=torch.bfloat16)
    before = fast(x)
    fast.weight.mul_(2)
    torch.testing.assert_close(fast(x), 2 * before)


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 256}, {"outputs": 256}, {"stride": 2}, {"padding": 0}, {"padding": "same"}, {"kernel_size": 1},
        {"dilation": 2}, {"groups": 2}, {"padding_mode": "circular"},
    ],
)  # fmt: skip
def test_other_convolutions_stay(options: dict[str, object]) -> None:
    assert Winograd.of(layer(**options)) is None


def test_in_float32_convolutions_stay() -> None:
    assert Winograd.of(layer().float()) is None


def test_a_rough_copy_has_it_and_draws_no_random_number() -> None:
    model = build("resnet18", num_classes=10, in_channels=3, image_size=32).eval()
    light, _ = folded_copy(model)
    state = torch.get_rng_state()
    rough = rough_copy(light)
    assert torch.equal(torch.get_rng_state(), state)
    kinds = {type(each) for each in rough.modules()}
    assert Winograd in kinds
    assert Winograd not in {type(each) for each in light.modules()}
    x = drawn(16, 3, 32, 32, dtype=torch.float32).sigmoid()
    torch.testing.assert_close(rough(x), light(x), rtol=0.05, atol=0.05 * float(light(x).abs().max()))


def test_a_follower_s_catches_up() -> None:
    model = build("resnet18", num_classes=10, in_channels=3, image_size=32).eval()
    x = drawn(16, 3, 32, 32, dtype=torch.float32).sigmoid()
    with frozen(model):
        follower = Follower.of(model, x, bf16=True)
        assert follower is not None
        follower.catch_up(model)
        follower(x)
        with torch.no_grad():
            for each in model.modules():
                if isinstance(each, nn.Conv2d) and each.out_channels == 512:
                    each.weight.neg_()
        follower.catch_up(model)
        expected = model(x)
        assert (follower(x) - expected).abs().max() < 0.05 * expected.abs().max()
