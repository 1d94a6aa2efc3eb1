from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.small_network import small_network
from robustill.acceleration.folding import bf16_copy, folded_copy, is_equivalent, trace_and_fold
from robustill.acceleration.layers import StridedConv1x1, add_in_place
from robustill.models import build

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def in_use(name: str) -> nn.Module:
    """A network whose BatchNorm statistics are not those it began with."""
    model = build(name, num_classes=10, seed=0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    with torch.no_grad():
        for _ in range(3):
            model(IMAGES)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["resnet8", "preactresnet18", "mobilenetv2", "cnn_a", "resnet_2b2"])
def test_the_copy_computes_the_same(name):
    model = in_use(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = folded_copy(model, IMAGES)
    assert folded is not None
    expected = model(IMAGES)
    torch.testing.assert_close(folded(IMAGES), expected, atol=float(expected.abs().max()) * 1e-5, rtol=0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_copy_has_nothing_to_train():
    graph, _ = trace_and_fold(build("resnet8", num_classes=10, seed=0).eval())
    assert not any(parameter.requires_grad for parameter in graph.parameters())


def test_batchnorm_behind_a_convolution_is_gone():
    folded = folded_copy(in_use("resnet8"), IMAGES)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, StridedConv1x1) for module in folded.modules())


def test_a_rough_copy_has_nearly_the_same_gradient():
    folded = folded_copy(in_use("resnet8"), IMAGES)
    low_precision = bf16_copy(folded)
    grads = []
    for each in (folded, low_precision):
        x = IMAGES.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(each(x).float().logsumexp(1).sum(), x)
        grads.append(grad.flatten())
    assert torch.cosine_similarity(*grads, dim=0) > 0.99
    assert not torch.equal(*grads)


def test_strided_depthwise_convolutions_stay_in_float32_where_bfloat16_is_slow():
    folded = folded_copy(in_use("mobilenetv2"), IMAGES)
    low_precision = bf16_copy(folded)
    layers = [module for module in low_precision.modules() if isinstance(module, nn.Conv2d)]
    kept = [layer for layer in layers if layer.weight.dtype is torch.float32]
    assert kept == [layer for layer in layers if layer.groups > 1 and layer.stride == (2, 2)] != []
    expected = folded(IMAGES)
    torch.testing.assert_close(low_precision(IMAGES).float(), expected, atol=0.05 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2", "preactresnet18", "cnn_a", "resnet_2b2", "wideresnet"])
def test_a_rough_copy_rounds_no_logit_to_bfloat16(name):
    options = {"depth": 10, "width": 1} if name == "wideresnet" else {}
    model = build(name, num_classes=10, seed=0, **options).eval().requires_grad_(False)
    logits = bf16_copy(folded_copy(model, IMAGES))(IMAGES)
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16()).float().mean() > 0.9


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :5] if x.sum() > 0 else x.flatten(1)[:, 5:10]


class Noisy(nn.Module):
    def forward(self, x):
        return (x + 0.1 * torch.randn(x.shape[1:])).flatten(1)[:, :5]


class Blocking(nn.Module):
    """Hides its gradient in a way that a trace does not see."""

    def forward(self, x):
        with torch.no_grad():
            hidden = 2 * x
        return (x + hidden).flatten(1)[:, :5]


@pytest.mark.parametrize("model", [Branching(), Noisy(), Blocking()], ids=lambda model: type(model).__name__)
def test_networks_that_cannot_be_copied_have_no_copy(model):
    assert folded_copy(model.eval(), IMAGES) is None


def test_a_hook_that_changes_the_output_is_not_lost():
    model = small_network().eval().requires_grad_(False)
    model.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert folded_copy(model, torch.rand(2, 1, 8, 8)) is None


def test_a_block_used_twice_is_not_folded_twice():
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model = nn.Sequential(block, block, nn.Flatten(), nn.Linear(3072, 10))
    with torch.no_grad():
        model(IMAGES)
    model.eval().requires_grad_(False)
    folded = folded_copy(model, IMAGES)
    assert folded is not None
    torch.testing.assert_close(folded(IMAGES), model(IMAGES), atol=1e-5, rtol=1e-4)


def test_a_batchnorm_behind_two_convolutions_is_folded_into_both():
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 3), norm, nn.Flatten(), nn.Linear(2700, 10))
    with torch.no_grad():
        model(IMAGES)
    folded = folded_copy(model.eval().requires_grad_(False), IMAGES)
    assert folded is not None
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(IMAGES), model(IMAGES), atol=1e-5, rtol=1e-4)


def test_copies_are_compared_in_whole_float32():
    seen = []

    class Spy(nn.Flatten):
        def forward(self, x):
            seen.append((torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision))
            return super().forward(x)

    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    assert is_equivalent(Spy(), Spy(), IMAGES)
    assert seen == [("ieee", "ieee")] * 2
    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision) == before


@pytest.mark.parametrize(("size", "stride"), [(8, 2), (7, 2), (10, 3), (5, 4)])
def test_a_strided_pointwise_convolution_and_its_gradient_are_those_of_the_layer(size, stride):
    generator = torch.Generator().manual_seed(size)
    layer = nn.Conv2d(3, 5, 1, stride=stride).requires_grad_(False)
    state = torch.get_rng_state()
    sparse = StridedConv1x1.from_conv(layer)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(sparse, name) == getattr(layer, name), name
    x = torch.rand(2, 3, size, size, generator=generator).requires_grad_(True)
    weights = torch.rand(layer(x).shape, generator=generator)
    (expected,), (grad,) = (torch.autograd.grad((each(x) * weights).sum(), x) for each in (layer, sparse))
    torch.testing.assert_close(sparse(x), layer(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(grad, expected, atol=1e-6, rtol=0)


def test_only_strided_pointwise_convolutions_are_replaced():
    others = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 4, 1, stride=2, groups=2)]
    others += [nn.Conv2d(4, 4, 1, stride=2, padding=1), nn.Conv2d(4, 4, 1, stride=(2, 1))]
    assert [StridedConv1x1.from_conv(layer) for layer in others] == [None] * len(others)


@pytest.mark.parametrize(
    ("second", "in_place"),
    [
        (torch.rand(2, 3), True),
        (torch.rand(2, 1), False),
        (torch.rand(4, 2, 3), False),
        (torch.rand(2, 3, dtype=torch.float64), False),
        (torch.rand(2, 3, dtype=torch.bfloat16), False),
    ],
)
def test_a_sum_takes_the_place_of_what_is_alike(second, in_place):
    first = torch.rand(2, 3)
    expected = first + second
    total = add_in_place(first, second)
    assert (total is first) == in_place
    assert total.dtype == expected.dtype
    assert torch.equal(total, expected)


class Skipping(nn.Module):
    """A convolution that is added to, once with something smaller; and one that is read twice, and must survive."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.linear = nn.Linear(3, 4)

    def forward(self, x):
        x = self.first(x) + x
        x = self.second(x) + x.mean((2, 3), keepdim=True)
        again = self.third(x)
        return self.linear(((again + x) * again).mean((2, 3)))


def test_sums_take_the_place_of_convolutions_that_nothing_else_reads():
    model = Skipping().eval().requires_grad_(False)
    folded = folded_copy(model, IMAGES)
    assert folded is not None
    assert folded.code.count("add_in_place") == 2
    torch.testing.assert_close(folded(IMAGES), model(IMAGES), atol=1e-6, rtol=1e-5)
