"""Passes recorded as CUDA graphs give what the network gives; without a GPU the network itself does the work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustill import runtime
from robustill.attacks.following import Follower
from robustill.attacks.replay import Replay
from robustill.methods import AKD, Batch
from robustill.models import build
from robustill.modes import evaluating, frozen
from robustill.randomness import generator, uniform
from robustill.step import Step
from robustill.threat import Threat

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def images(count: int, device: str) -> Tensor:
    return uniform(torch.empty(count, 3, 16, 16), generator(0, "images")).to(device)


def student(device: str, seed: int = 0) -> nn.Module:
    model = build("resnet8", num_classes=10, in_channels=3, image_size=16, seed=seed, width=8)
    return runtime.place(model, torch.device(device))


def gradient(network: nn.Module | Replay, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_(True)
    logits = network(leaf)
    (found,) = torch.autograd.grad(logits.logsumexp(dim=1).sum(), leaf)
    return logits.detach().clone(), found.clone()


def test_on_a_cpu_the_network_itself_is_called() -> None:
    called = []

    def network(x: Tensor) -> Tensor:
        called.append(x)
        return x.sum(dim=(2, 3))

    replay, x = Replay(network), torch.rand(2, 3, 4, 4, requires_grad=True)
    assert torch.equal(replay(x), x.sum(dim=(2, 3)))
    assert called == [x]


@needs_gpu
@pytest.mark.parametrize("bf16", [False, True])
def test_replayed_passes_are_those_of_the_copy_at_the_weights_of_the_moment(bf16: bool) -> None:
    model, x = student("cuda"), images(6, "cuda")
    with evaluating(model), frozen(model):
        plain = Follower.of(model, x, bf16=bf16)
        replayed = Follower.of(model, x, bf16=bf16, cuda_graphs=True)
        assert plain is not None
        assert replayed is not None
        for factor in (1.0, 1.5, 0.5):
            for parameter in model.parameters():
                parameter.data *= factor
            plain.catch_up(model)
            replayed.catch_up(model)
            for expected, found in zip(gradient(plain, x), gradient(replayed, x), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert replayed._replay is not None
    assert replayed._replay._recorded is not None


@needs_gpu
def test_other_shapes_and_overlapping_passes_are_computed_as_ever() -> None:
    network = student("cuda").eval().requires_grad_(False)
    replay, x = Replay(network), images(6, "cuda")
    gradient(replay, x)
    few = gradient(replay, x[:4])
    torch.testing.assert_close(few[1], gradient(network, x[:4])[1], rtol=1e-4, atol=1e-6)
    one, two = x.clone().requires_grad_(True), x.flip(0).clone().requires_grad_(True)
    both = replay(one).logsumexp(dim=1).sum() + 2 * replay(two).logsumexp(dim=1).sum()
    found = torch.autograd.grad(both, (one, two))
    torch.testing.assert_close(found[0], gradient(network, one)[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1], 2 * gradient(network, two)[1], rtol=1e-4, atol=1e-6)


@needs_gpu
def test_a_step_finds_the_same_images_with_and_without_graphs() -> None:
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
