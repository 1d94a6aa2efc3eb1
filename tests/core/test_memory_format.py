"""Networks that need the contiguous format run, and every network is given back as it came."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustill.core.memory_format import (
    accepting_channels_last,
    giving_back_networks,
    keeping_placement,
    place,
    use_channels_last,
)

CPU = torch.device("cpu")
IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CHANNELS_LAST = IMAGES.contiguous(memory_format=torch.channels_last)


class Viewing(nn.Module):
    """The network of most tutorials: `view` after a convolution and a pooling."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(4 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.linear(self.drop(h.view(h.size(0), -1)))


class Reshaping(Viewing):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.linear(self.drop(h.flatten(1)))


class ViewingInTraining(Viewing):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else Reshaping.forward(self, x)  # type: ignore[arg-type]


class ViewedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.shape = x.shape
        return x.clone()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad.view(len(grad), -1).view(ctx.shape)


class ViewingBackward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(ViewedGradient.apply(self.conv(x))).flatten(1)  # type: ignore[no-any-return,no-untyped-call]


def state_of(model: nn.Module) -> list[tuple[int, int, tuple[int, ...]]]:
    return [(id(each), each.data_ptr(), each.stride()) for each in (*model.parameters(), *model.buffers())]


@pytest.mark.parametrize("network", [Viewing, ViewingBackward, ViewingInTraining])
def test_a_network_that_views_a_feature_map_stays_contiguous(network: type[nn.Module]) -> None:
    model = network().eval()
    expected = model(IMAGES)
    assert place(model, CPU, IMAGES, train=True) is model
    x = CHANNELS_LAST.clone(memory_format=torch.preserve_format).requires_grad_(True)
    assert torch.equal(model(x), expected)
    for mode in (False, True):
        model.train(mode)
        torch.autograd.grad(model(x).sum(), x)
    assert all(each.is_contiguous() for each in model.parameters())


def test_other_networks_are_channels_last() -> None:
    for x in (IMAGES, None):
        model = place(Reshaping(), CPU, x, train=True)
        assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr,operator]
        assert not model._forward_pre_hooks


def test_images_of_one_channel_are_converted_by_their_strides() -> None:
    model = place(Viewing(channels=1), CPU, torch.rand(2, 1, 8, 8))
    as_channels_last = torch.rand(2, 1, 8, 8).as_strided((2, 1, 8, 8), (64, 1, 8, 1))
    assert as_channels_last.is_contiguous()
    assert model(as_channels_last).shape == (2, 5)


def test_the_members_of_a_module_dict_are_converted_one_by_one() -> None:
    members = nn.ModuleDict({"robust": Viewing(), "natural": Reshaping()})
    place(members, CPU, IMAGES)
    assert members["robust"](CHANNELS_LAST).shape == members["natural"](CHANNELS_LAST).shape == (3, 5)


def test_a_trial_leaves_no_trace() -> None:
    for network in (Viewing, Reshaping):
        model = network().train()
        model.drop.eval()
        buffers = [each.clone() for each in model.buffers()]
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        place(model, CPU, IMAGES, train=True)
        assert torch.equal(torch.rand(3), expected)
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
        assert model.training
        assert not model.drop.training
        assert all(each.requires_grad and each.grad is None for each in model.parameters())


def test_a_failure_for_another_reason_changes_nothing() -> None:
    model = use_channels_last(Viewing(), torch.rand(2, 4, 8, 8))
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr,operator]
    assert not model._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("network", [Viewing, Reshaping])
def test_a_network_is_given_back_as_it_came(network: type[nn.Module], scripted: bool) -> None:
    model = network().eval()
    model.register_buffer("expanded", torch.ones(1).expand(2, 3, 4, 4))
    if scripted:
        model = torch.jit.script(model)
    before = state_of(model)
    with keeping_placement(model):
        place(model, CPU, IMAGES)
        assert model(CHANNELS_LAST).shape == (3, 5)
    assert state_of(model) == before
    assert not model._forward_pre_hooks


def test_the_gradient_of_a_weight_is_given_back_as_it_came() -> None:
    model = Reshaping().eval()
    model(IMAGES).sum().backward()
    gradients = [each.grad for each in model.parameters()]
    strides = [each.stride() for each in gradients if each is not None]
    with keeping_placement(model):
        place(model, CPU, IMAGES)
    assert all(each.grad is gradient for each, gradient in zip(model.parameters(), gradients, strict=True))
    assert [each.stride() for each in gradients if each is not None] == strides


def test_networks_are_given_back_after_an_error() -> None:
    @giving_back_networks
    def convert(*, networks: dict[str, nn.Module], one: nn.Module) -> None:
        for each in (*networks.values(), one):
            place(each, CPU, IMAGES)
        raise ValueError("stopped")

    models = [Viewing(), Reshaping(), Reshaping()]
    before = [state_of(each) for each in models]
    with pytest.raises(ValueError, match="stopped"):
        convert(networks={"a": models[0], "b": models[1]}, one=models[2])
    assert [state_of(each) for each in models] == before


def test_a_function_of_images_takes_channels_last() -> None:
    model = Viewing().eval()
    with accepting_channels_last(lambda x: model(x), IMAGES) as function:
        assert torch.equal(function(CHANNELS_LAST), model(IMAGES))
    calls = []
    with accepting_channels_last(lambda x: calls.append(x), IMAGES) as function:
        function(CHANNELS_LAST)
    assert len(calls) == 1
    assert calls[0] is CHANNELS_LAST
    with (
        pytest.raises(RuntimeError, match=r"[Ss]ize|shape"),
        accepting_channels_last(lambda x: x @ torch.ones(5, 5), IMAGES) as function,
    ):
        function(CHANNELS_LAST)


def test_running_out_of_memory_is_not_taken_for_a_memory_format() -> None:
    class Large(Viewing):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        place(Large(), CPU, IMAGES)


def test_lazy_layers_keep_the_shape_that_the_first_images_give_them() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5)).eval()
    with keeping_placement(model):
        assert place(model, CPU, IMAGES)(IMAGES).shape == (3, 5)
    assert model(IMAGES).shape == (3, 5)
