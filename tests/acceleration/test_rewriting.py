"""Nodes of a traced network are replaced however they are written."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustill.acceleration.folding import bf16_copy, folded_copy, is_equivalent, trace_and_fold
from robustill.acceleration.layers import add_in_place, divide_channels, global_average_pool, subtract_channels

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """Layers to write networks with; `body` is the network."""

    def __init__(self, body) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.wide, self.linear, self.norm = nn.Linear(8, 8), nn.Linear(3, 4), nn.BatchNorm2d(3)
        self.relu, self.sigmoid, self.pool, self.flatten = (
            nn.ReLU(),
            nn.Sigmoid(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.average, self.dropout, self.same = nn.AvgPool2d(8), nn.Dropout(0.5), nn.Identity()
        self.body = body

    def forward(self, x):
        return self.body(self, x)


def copied(body):
    model = Written(body).eval().requires_grad_(False)
    folded = folded_copy(model, IMAGES)
    assert folded is not None
    torch.testing.assert_close(folded(IMAGES), model(IMAGES), atol=1e-5, rtol=1e-4)
    return folded


def ended(x):
    return torch.flatten(x, 1)


def targets(graph):
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (lambda m, x: ended(m.relu(m.conv(x))), 1),
        (lambda m, x: ended(F.relu(m.conv(x))), 1),
        (lambda m, x: ended(F.relu(m.conv(x), True)), 1),
        (lambda m, x: ended(torch.relu(m.wide(x))), 1),
        (lambda m, x: ended(m.conv(x).relu()), 1),
        (lambda m, x: ended(m.norm(m.sigmoid(x)).relu()), 1),
        (lambda m, x: ended((m.conv(x) + m.other(x)).relu()), 1),
        (lambda m, x: ended(torch.add(x, m.other(x)).relu()), 1),
        (lambda m, x: ended(m.relu(m.sigmoid(x))), 0),
        (lambda m, x: ended(torch.sub(x, 0.5).relu()), 0),
        (lambda m, x: ended(x.relu()), 0),
        (lambda m, x: ended(m.sigmoid(m.conv(x))), 0),
        (lambda m, x: ended(m.conv(x).sigmoid()), 0),
    ],
)
def test_activations_overwrite_what_nothing_else_reads(body, count):
    assert targets(copied(body)).count(torch.relu_) == count


def test_an_activation_of_what_is_read_twice_overwrites_nothing():
    def body(m, x):
        convolved = m.conv(x)
        return ended(m.sigmoid(convolved) * m.relu(convolved))

    assert torch.relu_ not in targets(copied(body))


@pytest.mark.parametrize(
    ("body", "replaced"),
    [
        (lambda m, x: x.mean((2, 3)), True),
        (lambda m, x: x.mean([2, 3]), True),
        (lambda m, x: x.mean(dim=(2, 3)), True),
        (lambda m, x: x.mean(dim=[2, 3]), True),
        (lambda m, x: ended(x.mean((2, 3), keepdim=True)), False),
        (lambda m, x: ended(x.mean((2, 3), True)), False),
        (lambda m, x: ended(x.mean((1, 2))), False),
        (lambda m, x: ended(x.mean(1)), False),
        (lambda m, x: x.amax((2, 3)), False),
    ],
)
def test_means_of_pixels(body, replaced):
    assert (global_average_pool in targets(copied(body))) == replaced


@pytest.mark.parametrize(
    ("body", "replaced"),
    [
        (lambda m, x: ended((x - m.a_channel) / m.a_channel), [subtract_channels, divide_channels]),
        (lambda m, x: ended(torch.div(torch.sub(x, m.a_channel), m.a_channel)), [subtract_channels, divide_channels]),
        (lambda m, x: ended(torch.sub(x, m.a_channel, alpha=2)), []),
        (lambda m, x: ended(m.a_channel - x), []),
        (lambda m, x: ended(x - m.a_channel * 2), [subtract_channels]),
        (lambda m, x: ended(x - 0.5), []),
        (lambda m, x: ended(x / m.everywhere), []),
        (lambda m, x: ended(x / m.a_channel[0]), []),
        (lambda m, x: m.linear(global_average_pool(x) - m.a_feature), []),
        (lambda m, x: ended(x.flatten(0, 1)[:3] - m.a_channel), [subtract_channels]),
    ],
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_of_channels(body, replaced, layout):
    module = Written(body).eval()
    module.register_buffer("a_channel", torch.tensor([0.3, 0.5, 0.7]).view(1, 3, 1, 1))
    module.register_buffer("everywhere", torch.rand(1, 3, 8, 8) + 1)
    module.register_buffer("a_feature", torch.tensor([0.3, 0.5, 0.7]))
    folded, _ = trace_and_fold(module)
    assert [each for each in targets(folded) if each in (subtract_channels, divide_channels)] == replaced
    x = IMAGES.clone(memory_format=layout).requires_grad_()
    (grad,), (expected,) = (torch.autograd.grad(each(x).square().sum(), x) for each in (folded, module))
    assert torch.equal(folded(x), module(x))
    assert torch.equal(grad, expected)


@pytest.mark.parametrize(
    ("body", "replaced"),
    [
        (lambda m, x: ended(m.conv(x) + x), True),
        (lambda m, x: ended(torch.add(m.conv(x), x)), True),
        (lambda m, x: ended(x + m.conv(x)), False),
        (lambda m, x: ended(torch.add(m.conv(x), x, alpha=2)), False),
        (lambda m, x: ended(m.conv(x) + 1.0), False),
        (lambda m, x: ended(m.sigmoid(x) + x), False),
        (lambda m, x: ended(m.conv(x) - x), False),
    ],
)
def test_sums(body, replaced):
    assert (add_in_place in targets(copied(body))) == replaced


def test_a_sum_with_what_is_read_again_takes_no_place():
    def body(m, x):
        convolved = m.conv(x)
        return ended((convolved + x) * convolved)

    assert targets(copied(body)).count(operator.add) == 1


@pytest.mark.parametrize(
    "pooled",
    [
        lambda m, x: x.mean((2, 3)),
        lambda m, x: x.mean((2, 3), keepdim=True).flatten(1),
        lambda m, x: torch.mean(x, (2, 3)),
        lambda m, x: m.flatten(m.pool(x)),
        lambda m, x: m.same(m.dropout(torch.flatten(m.average(x), 1))),
        lambda m, x: F.adaptive_avg_pool2d(x, 1).view(-1, 3),
        lambda m, x: F.dropout(F.avg_pool2d(x, 8), training=False).reshape(-1, 3),
        lambda m, x: m.pool(x).squeeze(3).squeeze(2),
    ],
)
def test_the_last_layer_and_the_pooling_before_it_stay_in_float32(pooled):
    folded = copied(lambda m, x: m.linear(pooled(m, m.sigmoid(m.conv(x)))))
    low_precision = bf16_copy(folded)
    # The convolution and the sigmoid in bfloat16, all behind them in float32.
    convolved = F.conv2d(IMAGES.bfloat16(), folded.conv.weight.bfloat16(), folded.conv.bias.bfloat16(), padding=1)
    means = convolved.sigmoid().float().mean((2, 3))
    expected = F.linear(means, folded.linear.weight, folded.linear.bias)
    torch.testing.assert_close(low_precision(IMAGES), expected, rtol=1e-6, atol=1e-6)
    casts = [node.args[1] for node in low_precision.graph.nodes if node.op == "call_method" and node.target == "to"]
    assert casts == [torch.bfloat16, torch.float32]


def test_a_last_layer_that_is_called_twice_is_no_classifier():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), *[nn.Linear(6, 6)] * 2).eval().requires_grad_(False)
    assert bf16_copy(trace_and_fold(model)[0])(IMAGES).dtype == torch.bfloat16


class Off(nn.Module):
    """The pixels times a factor, and by another factor as far as the gradient can see."""

    def __init__(self, scale: float, factor: float, seeming: float) -> None:
        super().__init__()
        self.scale, self.factor, self.seeming = scale, factor, seeming

    def forward(self, x):
        x = self.scale * x.flatten(1)
        return self.factor * x + (self.seeming - self.factor) * (x - x.detach())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(
    ("factor", "seeming", "same"),
    [(1.00005, 1.0, True), (1.00015, 1.0, False), (1.0, 1.006, True), (1.0, 1.015, False), (1.0, 0.985, False)],
)
def test_logits_may_differ_by_a_ten_thousandth_and_gradients_by_a_hundredth(scale, factor, seeming, same):
    assert is_equivalent(Off(scale, 1.0, 1.0), Off(scale, factor, seeming), IMAGES) == same
