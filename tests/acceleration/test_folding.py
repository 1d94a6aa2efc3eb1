from __future__ import annotations

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.small_network import small_network
from robustill.acceleration.folding import bf16_copy, folded_copy, is_equivalent, trace_and_fold
from robustill.acceleration.layers import (
    StridedConv1x1,
    add_in_place,
    divide_channels,
    global_average_pool,
    subtract_channels,
)
from robustill.models import build

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL_IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def in_use(name: str) -> nn.Module:
    """A network whose BatchNorm statistics are not those it began with."""
    model = build(name, num_classes=10, seed=0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    with torch.no_grad():
        for _ in range(3):
            model(IMAGES)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["resnet8", "preactresnet18", "mobilenetv2", "cnn_a", "resnet_2b2"])
def test_a_folded_copy_computes_the_same_logits(name):
    model = in_use(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = folded_copy(model, IMAGES)
    assert folded is not None
    expected = model(IMAGES)
    torch.testing.assert_close(folded(IMAGES), expected, atol=float(expected.abs().max()) * 1e-5, rtol=0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_folded_copy_has_no_trainable_parameters():
    graph, _ = trace_and_fold(build("resnet8", num_classes=10, seed=0).eval())
    assert not any(parameter.requires_grad for parameter in graph.parameters())


def test_batchnorm_after_a_convolution_is_folded():
    folded = folded_copy(in_use("resnet8"), IMAGES)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, StridedConv1x1) for module in folded.modules())


class NormAndActivation(nn.BatchNorm2d):
    """As in timm: a BatchNorm with a check of its input and an activation, that a trace goes into."""

    def __init__(self, channels):
        super().__init__(channels, eps=0.1)
        self.act = nn.Hardswish()

    def forward(self, x):
        torch._assert(x.ndim == 4, "expected images")
        statistics = (self.running_mean, self.running_var)
        return self.act(F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps))


class WithActivations(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), NormAndActivation(6), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


def test_batchnorm_that_a_trace_goes_into_is_folded():
    torch.manual_seed(0)
    model = WithActivations()
    for tensor in (model.norm.weight, model.norm.bias, model.norm.running_mean, model.norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    model.eval().requires_grad_(False)
    copy, folded = trace_and_fold(model)
    assert folded == {"conv": "norm"}
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(copy(x), model(x))
    # Statistics of the batch are no constants of the network.
    _, of_batch = trace_and_fold(model.train())
    assert of_batch == {}


def test_a_bf16_copy_has_nearly_the_same_gradient():
    folded = folded_copy(in_use("resnet8"), IMAGES)
    low_precision = bf16_copy(folded)
    grads = []
    for each in (folded, low_precision):
        x = IMAGES.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(each(x).float().logsumexp(1).sum(), x)
        grads.append(grad.flatten())
    assert torch.cosine_similarity(*grads, dim=0) > 0.99
    assert not torch.equal(*grads)


def test_strided_depthwise_convolutions_stay_in_float32():
    folded = folded_copy(in_use("mobilenetv2"), IMAGES)
    low_precision = bf16_copy(folded)
    layers = [module for module in low_precision.modules() if isinstance(module, nn.Conv2d)]
    kept = [layer for layer in layers if layer.weight.dtype is torch.float32]
    assert kept == [layer for layer in layers if layer.groups > 1 and layer.stride == (2, 2)] != []
    expected = folded(IMAGES)
    torch.testing.assert_close(low_precision(IMAGES).float(), expected, atol=0.05 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2", "preactresnet18", "cnn_a", "resnet_2b2", "wideresnet"])
def test_a_bf16_copy_has_float32_logits(name):
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
def test_untraceable_and_random_networks_have_no_copy(model):
    assert folded_copy(model.eval(), IMAGES) is None


def test_networks_with_hooks_have_no_copy():
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


def test_copies_are_compared_in_full_float32():
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
def test_a_strided_conv1x1_matches_its_layer(size, stride):
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


def test_only_strided_1x1_convolutions_are_replaced():
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
def test_a_sum_overwrites_a_tensor_of_its_shape_and_type(second, in_place):
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


def test_sums_overwrite_convolutions_that_nothing_else_reads():
    model = Skipping().eval().requires_grad_(False)
    folded = folded_copy(model, IMAGES)
    assert folded is not None
    assert folded.code.count("add_in_place") == 2
    torch.testing.assert_close(folded(IMAGES), model(IMAGES), atol=1e-6, rtol=1e-5)


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
    folded = folded_copy(model, SMALL_IMAGES)
    assert folded is not None
    torch.testing.assert_close(folded(SMALL_IMAGES), model(SMALL_IMAGES), atol=1e-5, rtol=1e-4)
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


def test_activations_of_values_read_twice_overwrite_nothing():
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
def test_means_over_pixels_are_replaced(body, replaced):
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
def test_channel_constants_are_replaced(body, replaced, layout):
    module = Written(body).eval()
    module.register_buffer("a_channel", torch.tensor([0.3, 0.5, 0.7]).view(1, 3, 1, 1))
    module.register_buffer("everywhere", torch.rand(1, 3, 8, 8) + 1)
    module.register_buffer("a_feature", torch.tensor([0.3, 0.5, 0.7]))
    folded, _ = trace_and_fold(module)
    assert [each for each in targets(folded) if each in (subtract_channels, divide_channels)] == replaced
    x = SMALL_IMAGES.clone(memory_format=layout).requires_grad_()
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
def test_sums_after_a_convolution_are_replaced(body, replaced):
    assert (add_in_place in targets(copied(body))) == replaced


def test_sums_with_values_read_again_are_not_in_place():
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
def test_the_last_layer_and_its_pooling_stay_in_float32(pooled):
    folded = copied(lambda m, x: m.linear(pooled(m, m.sigmoid(m.conv(x)))))
    low_precision = bf16_copy(folded)
    # The convolution and the sigmoid in bfloat16, all behind them in float32.
    convolved = F.conv2d(SMALL_IMAGES.bfloat16(), folded.conv.weight.bfloat16(), folded.conv.bias.bfloat16(), padding=1)
    means = convolved.sigmoid().float().mean((2, 3))
    expected = F.linear(means, folded.linear.weight, folded.linear.bias)
    torch.testing.assert_close(low_precision(SMALL_IMAGES), expected, rtol=1e-6, atol=1e-6)
    casts = [node.args[1] for node in low_precision.graph.nodes if node.op == "call_method" and node.target == "to"]
    assert casts == [torch.bfloat16, torch.float32]


def test_a_last_layer_that_is_called_twice_is_no_classifier():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), *[nn.Linear(6, 6)] * 2).eval().requires_grad_(False)
    assert bf16_copy(trace_and_fold(model)[0])(SMALL_IMAGES).dtype == torch.bfloat16


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
def test_tolerances_of_logits_and_gradients(scale, factor, seeming, same):
    assert is_equivalent(Off(scale, 1.0, 1.0), Off(scale, factor, seeming), SMALL_IMAGES) == same
