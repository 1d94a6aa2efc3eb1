from __future__ import annotations

import pytest
import torch
from torch import nn

from robustill.acceleration.folding import folded_copy, try_bf16_copy
from robustill.acceleration.tracking import TrackingCopy
from robustill.models import build

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def moved_on(model: nn.Module, seed: int) -> nn.Module:
    """The same network after an update of every weight and every running statistic."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * (parameter.abs().mean() + 0.1) * torch.randn(parameter.shape, generator=draw)
        model.train()
        model(IMAGES)
    return model.eval().requires_grad_(False)


def gradient(network, x):
    leaf = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(network(leaf).float().logsumexp(1).sum(), leaf)
    return grad.flatten()


@pytest.mark.parametrize("name", ["resnet8", "preactresnet18", "mobilenetv2", "resnet_2b2"])
def test_a_tracking_copy_has_the_logits_of_the_updated_network(name):
    model = moved_on(build(name, num_classes=10, seed=0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)), seed=0)
    tracking = TrackingCopy.of(model, IMAGES, bf16=False)
    stale = tracking(IMAGES)
    moved_on(model, seed=1)
    expected = model(IMAGES)
    assert not torch.allclose(stale, expected, rtol=1e-3)
    tracking.sync(model)
    torch.testing.assert_close(tracking(IMAGES), expected, atol=float(expected.abs().max()) * 1e-5, rtol=0)


def test_the_bf16_gradient_is_close_to_the_networks():
    model = moved_on(build("resnet8", num_classes=10, seed=0), seed=0)
    # As a step in bf16 makes it.
    with torch.autocast("cpu", torch.bfloat16):
        tracking = TrackingCopy.of(model, IMAGES, bf16=True)
        moved_on(model, seed=1)
        tracking.sync(model)
        rough = gradient(tracking, IMAGES)
    exact = gradient(model, IMAGES)
    assert torch.cosine_similarity(rough, exact, dim=0) > 0.99
    assert (rough - exact).norm() > 0.02 * exact.norm()
    whole = gradient(TrackingCopy.of(model, IMAGES, bf16=False), IMAGES)
    assert (whole - exact).norm() < 1e-4 * exact.norm()


class AnyNorm(nn.Module):
    """A BatchNorm without weights behind a convolution with a bias, and one that follows nothing."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6, affine=False)
        self.head = nn.Linear(6, 5, bias=False)
        self.last = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.last(self.head(torch.relu(self.norm(self.conv(self.first(x)))).mean(dim=(2, 3))))


def test_every_kind_of_batchnorm_is_synced():
    torch.manual_seed(0)
    model = moved_on(AnyNorm(), seed=0)
    tracking = TrackingCopy.of(model, IMAGES, bf16=False)
    assert sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in tracking.modules()) == 1
    moved_on(model, seed=1)
    tracking.sync(model)
    torch.testing.assert_close(tracking(IMAGES), model(IMAGES), atol=1e-5, rtol=1e-5)


class Scaled(nn.Module):
    """A parameter and a buffer beside layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.register_buffer("shift", torch.ones(3, 1, 1))

    def forward(self, x):
        return (self.scale * torch.sigmoid(self.norm(self.conv(x))) + self.shift).sum((2, 3))


def test_parameters_and_buffers_beside_layers_are_synced():
    model = moved_on(Scaled(), seed=0)
    tracking = TrackingCopy.of(model, IMAGES, bf16=False)
    moved_on(model, seed=1)
    model.shift.mul_(3)
    tracking.sync(model)
    torch.testing.assert_close(tracking(IMAGES), model(IMAGES), atol=1e-3, rtol=1e-5)


class Shifted(nn.Module):
    """A number that the trace keeps under a name of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return (self.conv(x) + torch.ones(3, 1, 1)).sum((2, 3))


def test_unnamed_constants_prevent_a_tracking_copy():
    model = moved_on(Shifted(), seed=0)
    assert folded_copy(model, IMAGES) is not None
    assert TrackingCopy.of(model, IMAGES, bf16=False) is None


class OwnNorm(nn.BatchNorm2d):
    """As in timm: a BatchNorm that a trace goes into."""

    def forward(self, x):
        statistics = (self.running_mean, self.running_var)
        x = nn.functional.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)
        return nn.functional.hardswish(x)


class WithOwnNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 6, 3), OwnNorm(6), OwnNorm(6)

    def forward(self, x):
        # The second one follows no convolution, and is not folded.
        return self.other(self.norm(self.conv(x))).sum((2, 3))


def test_batchnorm_that_a_trace_goes_into_follows_the_network():
    model = moved_on(WithOwnNorm(), seed=0)
    tracking = TrackingCopy.of(model, IMAGES, bf16=False)
    assert tracking.folded == {"conv": "norm"}
    moved_on(model, seed=1)
    tracking.sync(model)
    torch.testing.assert_close(tracking(IMAGES), model(IMAGES), atol=1e-3, rtol=1e-5)


class OwnLinear(nn.Linear):
    """As in timm: a layer of one's own, that a trace goes into."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


class OwnConvolution(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(x, self.weight, self.bias)


class OwnLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.conv, self.norm = nn.Conv2d(3, 6, 3), OwnConvolution(6, 6, 3), nn.BatchNorm2d(6)
        self.head, self.last = OwnLinear(6, 8), OwnLinear(8, 5)

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(self.first(x))))
        return self.last(torch.relu(self.head(h.mean((2, 3)))))


def test_layers_of_ones_own_stay_in_float32_in_a_rough_copy():
    torch.manual_seed(0)
    model = moved_on(OwnLayers(), seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        copy = TrackingCopy.of(model, IMAGES, bf16=True)
        moved_on(model, seed=1)
        copy.sync(model)
        rough = gradient(copy, IMAGES)
    assert torch.cosine_similarity(rough, gradient(model, IMAGES), dim=0) > 0.99


class Product(nn.Module):
    """Computes in float32 alone: a matrix product with a parameter."""

    def __init__(self):
        super().__init__()
        self.conv, self.matrix = nn.Conv2d(3, 6, 3), nn.Parameter(torch.eye(6)[:, :5])

    def forward(self, x):
        return self.conv(x).mean((2, 3)) @ self.matrix


def test_a_rough_copy_that_fails_is_not_used():
    model = Product().eval().requires_grad_(False)
    assert TrackingCopy.of(model, IMAGES, bf16=False) is not None
    assert TrackingCopy.of(model, IMAGES, bf16=True) is None
    light = folded_copy(model, IMAGES)
    assert try_bf16_copy(light, IMAGES) is None


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :5] if x.sum() > 0 else x.flatten(1)[:, 5:10]


def test_untraceable_networks_have_no_tracking_copy():
    assert TrackingCopy.of(Branching().eval(), IMAGES, bf16=False) is None
