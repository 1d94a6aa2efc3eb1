"""A recording keeps its results in one place, as CUDA graphs do, and gives what the network gives."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustill.acceleration.cuda_graphs import Network, Replay
from robustill.acceleration.tracking import TrackingCopy
from robustill.core.contexts import evaluating, frozen
from robustill.core.memory_format import place
from robustill.core.randomness import generator, uniform
from robustill.methods import AKD, Batch
from robustill.models import build
from robustill.threat import Threat
from robustill.training.step import Step

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def images(count: int, device: str = "cpu") -> Tensor:
    return uniform(torch.empty(count, 3, 16, 16), generator(0, "images")).to(device)


def student(device: str = "cpu", seed: int = 0) -> nn.Module:
    model = build("resnet8", num_classes=10, in_channels=3, image_size=16, seed=seed, width=8)
    return place(model, torch.device(device))


class InOnePlace:
    """A stand-in for CUDA graphs: every pass reads and writes the same images, logits and gradient."""

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self, network: Network, sample: Tensor) -> Network:
        recording = self
        held, logits = sample.detach().clone(), network(sample).detach().clone()

        class Pass(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                recording.passes += 1
                held.copy_(x)
                logits.copy_(network(held))
                return logits.detach()

            @staticmethod
            def backward(ctx: Any, towards: Tensor) -> Tensor:
                leaf = held.detach().requires_grad_(True)
                with torch.enable_grad():
                    again = network(leaf)
                return torch.autograd.grad(again, leaf, towards)[0]

        return Pass.apply


def gradient(network: Network, x: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_(True)
    return torch.autograd.grad(network(leaf).logsumexp(dim=1).sum(), leaf)[0].clone()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_passes_alike_are_replayed_and_others_computed_as_ever() -> None:
    network, recording, x = student().eval().requires_grad_(False), InOnePlace(), images(6)
    replay = Replay(network, recording)
    with torch.no_grad():
        close(replay(x), network(x))
        close(replay(x.clone().requires_grad_()), network(x))
    close(replay(x), network(x))
    assert recording.passes == 0
    close(gradient(replay, x), gradient(network, x))
    close(gradient(replay, x.flip(0)), gradient(network, x.flip(0)))
    assert recording.passes == 2
    close(gradient(replay, x[:4]), gradient(network, x[:4]))
    assert recording.passes == 2


def test_a_recorded_module_keeps_its_own_forward_pass_for_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = InOnePlace()

    def graphed(network: Network, samples: tuple[Tensor]) -> Network:
        # As torch does: a module is given back, the recording in place of its forward pass.
        recorded = recording(copy.copy(network) if isinstance(network, nn.Module) else network, *samples)
        if not isinstance(network, nn.Module):
            return recorded
        network.forward = recorded
        return network

    monkeypatch.setattr("torch.cuda.make_graphed_callables", graphed)
    monkeypatch.setattr("torch.cuda.current_stream", lambda: None)
    monkeypatch.setattr("torch.cuda.stream", contextlib.nullcontext)
    network, x = student().eval().requires_grad_(False), images(6)
    expected, of_few = gradient(network, x), gradient(network, x[:4])
    with torch.no_grad():
        logits = network(x)
    replay = Replay(network)
    close(gradient(replay, x), expected)
    close(gradient(replay, x[:4]), of_few)
    with torch.no_grad():
        kept = replay(x)
    gradient(replay, x.flip(0))
    close(kept, logits)
    assert recording.passes == 2


def test_a_pass_that_begins_before_the_gradient_of_another_is_taken_is_not_replayed() -> None:
    network, recording, x = student().eval().requires_grad_(False), InOnePlace(), images(6)
    replay = Replay(network, recording)
    one, two = x.clone().requires_grad_(True), x.flip(0).clone().requires_grad_(True)
    both = replay(one).logsumexp(dim=1).sum() + 2 * replay(two).logsumexp(dim=1).sum()
    found = torch.autograd.grad(both, (one, two))
    close(found[0], gradient(network, one))
    close(found[1], 2 * gradient(network, two))
    assert recording.passes == 1
    gradient(replay, x)
    assert recording.passes == 2


def test_a_pass_without_a_gradient_is_forgotten_at_the_next_beginning() -> None:
    recording, x = InOnePlace(), images(2).requires_grad_(True)
    replay = Replay(student().eval().requires_grad_(False), recording)
    replay(x)
    replay(x)
    assert recording.passes == 1
    replay.begin()
    replay(x)
    assert recording.passes == 2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_recorded_is_like_the_images_and_apart_from_them(layout: torch.memory_format) -> None:
    x, samples = images(3).contiguous(memory_format=layout).requires_grad_(), []

    def record(network: Network, sample: Tensor) -> Network:
        samples.append(sample)
        return network

    Replay(student().eval(), record)(x)
    (sample,) = samples
    assert sample.requires_grad
    assert sample.is_leaf
    assert sample.stride() == x.stride()
    assert torch.equal(sample, x)
    assert sample.data_ptr() != x.data_ptr()


def test_what_cannot_be_recorded_is_computed_and_tried_once() -> None:
    network, x, tried = student().eval().requires_grad_(False), images(3), []

    def fail(network: Network, sample: Tensor) -> Network:
        tried.append(sample)
        raise torch.OutOfMemoryError("no room")

    replay = Replay(network, fail)
    for _ in range(2):
        close(gradient(replay, x), gradient(network, x))
    assert len(tried) == 1


@needs_gpu
@pytest.mark.parametrize("bf16", [False, True])
def test_cuda_graphs_follow_the_weights_of_the_moment(bf16: bool) -> None:
    model, x = student("cuda"), images(6, "cuda")
    with evaluating(model), frozen(model):
        plain = TrackingCopy.of(model, x, bf16=bf16)
        replayed = TrackingCopy.of(model, x, bf16=bf16, cuda_graphs=True)
        assert plain is not None
        assert replayed is not None
        for factor in (1.0, 1.5, 0.5):
            for parameter in model.parameters():
                parameter.data *= factor
            plain.sync(model)
            replayed.sync(model)
            close(gradient(replayed, x), gradient(plain, x))
    assert replayed.recorded
    assert not plain.recorded


@needs_gpu
def test_a_step_finds_the_same_images_with_and_without_cuda_graphs() -> None:
    x = images(8, "cuda").contiguous(memory_format=torch.channels_last)
    batch = Batch(x=x, y=torch.arange(8, device="cuda"), index=torch.arange(8, device="cuda"))
    found = []
    for cuda_graphs in (False, True):
        step = Step(
            student("cuda"), AKD(), student("cuda", seed=1), Threat(norm="linf", eps=0.1), steps=4, step_size=0.03,
            light=True, cuda_graphs=cuda_graphs,
        )  # fmt: skip
        found.append(step.attack(batch, generator(0, "attack", device="cuda")))
    # Signs of gradients that are nearly zero may differ: convolutions may be computed in another order.
    assert ((found[0] - found[1]).abs() < 1e-6).float().mean() > 0.99
