from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.acceleration.matmul_conv import MatmulConv2d, MatmulConvolutions, has_eligible_convolution
from robustill.core.randomness import generator
from robustill.methods import AT, RSLAD, Batch
from robustill.threat import Threat
from robustill.training.step import Step


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def taken(output: Tensor) -> bool:
    return type(output.grad_fn).__name__ == "MatmulConv2dBackward"


def assert_is_the_convolution(
    compute: Callable[[Tensor, Tensor, Tensor | None], Tensor], kernel: int, stride: int, padding: int, bias: bool
) -> None:
    double = torch.float64
    x = drawn(2, 3, 6, 5, dtype=double).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = drawn(4, 3, kernel, kernel, seed=1, dtype=double).requires_grad_()
    shift = drawn(4, seed=2, dtype=double).requires_grad_() if bias else None
    found, expected = compute(x, weight, shift), F.conv2d(x, weight, shift, stride, padding)
    torch.testing.assert_close(found, expected)
    along = drawn(*expected.shape, seed=3, dtype=double)
    leaves = [each for each in (x, weight, shift) if each is not None]
    for mine, theirs in zip(
        torch.autograd.grad(found, leaves, along), torch.autograd.grad(expected, leaves, along), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    assert torch.autograd.gradcheck(compute, (x, weight, shift))
    assert torch.autograd.gradgradcheck(compute, (x, weight, shift))


@pytest.mark.parametrize("bias", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("whole", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (3, 1, 0), (2, 1, 2), (5, 3, 2)])
def test_the_product_and_its_gradients_match_the_convolution(
    kernel: int, stride: int, padding: int, whole: bool, bias: bool
) -> None:
    def product(*values: Tensor | None) -> Tensor:
        found: Tensor = MatmulConv2d.apply(*values, stride, padding, whole)
        return found

    assert_is_the_convolution(product, kernel, stride, padding, bias)


def low(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("channels", "outputs", "side", "stride"), [(256, 512, 4, 1), (256, 512, 8, 2), (128, 128, 16, 2), (128, 128, 2, 1)]
)
def test_bfloat16_products_round_no_more_than_convolutions(channels: int, outputs: int, side: int, stride: int) -> None:
    x, weight = low(drawn(3, channels, side, side)), low(drawn(outputs, channels, 3, 3, seed=1) / 30)
    bias = drawn(outputs, seed=2).to(torch.bfloat16)

    def everything(mode: bool, dtype: torch.dtype) -> list[Tensor]:
        leaves = [each.detach().to(dtype).requires_grad_() for each in (x, weight, bias)]
        if mode:
            with MatmulConvolutions():
                output = F.conv2d(*leaves, stride, 1)
            assert taken(output)
        else:
            output = F.conv2d(*leaves, stride, 1)
        along = torch.cos(torch.arange(output.numel())).view(output.shape).to(dtype)
        return [output.detach(), *torch.autograd.grad(output, leaves, along)]

    exact = everything(False, torch.float64)
    for product, convolution, true in zip(
        everything(True, torch.bfloat16), everything(False, torch.bfloat16), exact, strict=True
    ):
        assert product.shape == convolution.shape
        assert product.dtype == torch.bfloat16
        error, allowed = (product - true).norm(), (convolution - true).norm()
        assert error <= 1.5 * allowed


def test_autocast_rounds_and_weight_gradients_are_float32() -> None:
    layer = nn.Conv2d(512, 512, 3, padding=1)
    x = drawn(2, 512, 4, 4)
    with torch.autocast("cpu", torch.bfloat16), MatmulConvolutions():
        output = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
    assert taken(output)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=1e-3)
    output.float().square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_the_next_layer_may_overwrite_the_output() -> None:
    x = low(drawn(2, 512, 4, 4)).requires_grad_()
    weight = low(drawn(512, 512, 3, 3, seed=1) / 70)

    def gradient(relu: Callable[[Tensor], Tensor]) -> Tensor:
        with MatmulConvolutions():
            output = relu(F.conv2d(x, weight, None, 1, 1))
        return torch.autograd.grad(output.float().square().sum(), x)[0]

    assert torch.equal(gradient(torch.relu_), gradient(torch.relu))


def convolved(x: Tensor | None = None, weight: Tensor | None = None, *rest: object, **named: object) -> Tensor:
    x = low(drawn(1, 512, 4, 4)) if x is None else x
    weight = low(drawn(512, 512, 3, 3)) if weight is None else weight
    with MatmulConvolutions():
        output: Tensor = F.conv2d(x.requires_grad_(), weight, *(rest or (None, 1, 1)), **named)  # type: ignore[arg-type]
    return output


@pytest.mark.parametrize(
    "other",
    [
        lambda: convolved(drawn(1, 512, 4, 4), drawn(512, 512, 3, 3)),
        lambda: convolved(low(drawn(1, 256, 16, 16)), low(drawn(512, 256, 3, 3))),
        lambda: convolved(low(drawn(4, 512, 16, 16)), None, None, 1, 0),
        lambda: convolved(low(drawn(4, 512, 16, 16)), low(drawn(512, 512, 5, 5)), None, 1, 1),
        lambda: convolved(low(drawn(1, 512, 8, 8))),
        lambda: convolved(low(drawn(1, 64, 4, 4)), low(drawn(512, 64, 3, 3))),
        lambda: convolved(None, low(drawn(512, 512, 1, 1)), None, 1, 0),
        lambda: convolved(None, low(drawn(512, 256, 3, 3)), None, 1, 1, 1, 2),
        lambda: convolved(None, None, None, 1, 2, 2),
        lambda: convolved(None, None, None, 1, "same"),
        lambda: convolved(None, None, None, (1, 2), 1),
        lambda: convolved(None, low(drawn(512, 512, 3, 1)), None, 1, (1, 0)),
    ],
)
def test_other_convolutions_are_not_replaced(other: Callable[[], Tensor]) -> None:
    assert not taken(other())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: convolved(low(drawn(1, 256, 4, 4))), "channels"),
        (lambda: convolved(low(drawn(1, 512, 2, 2)), None, None, 1, 0), "Kernel size"),
        (lambda: convolved(None, None, drawn(512), 1, 1), "type"),
    ],
)
def test_invalid_convolutions_raise_torchs_errors(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call()


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=4, padding=1), nn.ReLU(),
        nn.Conv2d(width, 512, 3, padding=1), nn.BatchNorm2d(512), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 4),
    )  # fmt: skip


def test_only_wide_networks_have_eligible_convolutions() -> None:
    assert has_eligible_convolution(network(256))
    assert not has_eligible_convolution(network(8))
    assert not has_eligible_convolution(nn.Flatten())


def test_a_bf16_step_uses_products_for_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(x=drawn(4, 3, 16, 16).sigmoid(), y=torch.arange(4), index=torch.arange(4))
    calls: list[bool] = []
    original = MatmulConv2d.backward

    def counted(ctx: object, *grads: Tensor) -> tuple[Tensor | None, ...]:
        calls.append(True)
        return original(ctx, *grads)

    monkeypatch.setattr(MatmulConv2d, "backward", staticmethod(counted))

    def gradients(*, recompute: bool = False) -> list[Tensor]:
        student = network(256)
        step = Step(
            student, AT(), None, Threat(norm="linf", eps=0.1), steps=2, step_size=0.05, precision="bf16",
            light=True, recompute=recompute,
        )  # fmt: skip
        step(batch, generator(0, "attack")).loss.mean().backward()
        return [each.grad for each in student.parameters() if each.grad is not None]

    products = gradients()
    # Two passes of the attack and one of the loss.
    assert len(calls) == 3
    gradients(recompute=True)
    assert len(calls) == 3
    monkeypatch.setattr("robustill.training.step.has_eligible_convolution", lambda student: False)
    for mine, theirs in zip(products, gradients(), strict=True):
        # A BatchNorm over four images turns roundings into percents.
        assert F.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.98 or theirs.norm() < 1e-3
    assert len(calls) == 3


@pytest.mark.parametrize(("width", "teachers_width"), [(8, 256), (512, 8)])
def test_a_step_uses_products_for_wide_teachers_and_students(
    width: int, teachers_width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch(x=drawn(16, 3, 16, 16).sigmoid(), y=torch.arange(16) % 4, index=torch.arange(16))
    kinds: list[str] = []
    original = MatmulConvolutions._convolve

    def seen(self: MatmulConvolutions, *args: object) -> Tensor | None:
        found = original(self, *args)  # type: ignore[arg-type]
        kinds.extend([] if found is None else [str(found.grad_fn and type(found.grad_fn).__name__)])
        return found

    monkeypatch.setattr(MatmulConvolutions, "_convolve", seen)

    def gradients(precision: Literal["fp32", "bf16"], steps: int) -> list[Tensor]:
        student = network(width)
        step = Step(
            student, RSLAD(), network(teachers_width), Threat(norm="linf", eps=0.1), steps=steps, step_size=0.05,
            precision=precision, light=True,
        )  # fmt: skip
        step(batch, generator(0, "attack")).loss.mean().backward()
        return [each.grad for each in student.parameters() if each.grad is not None]

    gradients("bf16", steps=2)
    # The teacher looks once; the student twice in its attack, and at both kinds of images in its loss.
    assert kinds == (["None"] if width == 8 else ["MatmulConv2dBackward"] * 4)
    # Without an attack, whose signs would set the images apart.
    for mine, exact in zip(gradients("bf16", steps=0), gradients("fp32", steps=0), strict=True):
        assert F.cosine_similarity(mine.flatten(), exact.flatten(), dim=0) > 0.98 or exact.norm() < 1e-6
