"""Tiny networks, batches and formulas, with which every method is tested in seconds."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustill.core.randomness import generator
from robustill.methods import Batch

CLASSES = 4


def tiny_network(seed: int, *, batchnorm: bool = True, confidence: float = 1.0) -> nn.Sequential:
    """A network of two convolutions and a linear layer on 1x8x8 images; every parameter receives a gradient."""
    norm = nn.BatchNorm2d if batchnorm else lambda channels: nn.Identity()
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=not batchnorm),
        norm(4),
        nn.SiLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=not batchnorm),
        norm(4),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )
    rng = generator(seed, "tiny network")
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 1.5 / fan_in**0.5 + (parameter.ndim == 1))
        network[-1].weight.mul_(confidence)
    return network


def tiny_teacher(seed: int) -> nn.Module:
    """A frozen network in eval mode, more confident than a tiny network."""
    network = tiny_network(seed, confidence=2.0)
    network.train()(torch.rand(32, 1, 8, 8, generator=generator(seed, "tiny images")))  # updates the running statistics
    return network.eval().requires_grad_(False)


def tiny_batch(size: int = 6, *, epoch: int = 9, epochs: int = 10, seed: int = 0) -> Batch:
    rng = generator(seed, "tiny batch")
    return Batch(
        x=torch.rand(size, 1, 8, 8, generator=rng),
        y=torch.randint(CLASSES, (size,), generator=rng),
        index=torch.arange(size),
        epoch=epoch,
        epochs=epochs,
    )


def shard_of(batch: Batch, start: int, stop: int) -> Batch:
    """The samples start to stop of a batch, as one of several processes has them."""
    return Batch(
        x=batch.x[start:stop],
        y=batch.y[start:stop],
        index=batch.index[start:stop],
        epoch=batch.epoch,
        epochs=batch.epochs,
    )


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The softmax in float64, computed by its formula."""
    powers = torch.exp(logits.double() / temperature)
    return powers / powers.sum(dim=1, keepdim=True)


def divergence(target: Tensor, prediction: Tensor) -> Tensor:
    """KL divergence of two distributions per sample, computed by its formula; 0 log 0 is 0."""
    return (torch.xlogy(target, target) - target * torch.log(prediction)).sum(dim=1)


def cross_entropy(prediction: Tensor, y: Tensor) -> Tensor:
    """The negative log-probability of the label, per sample."""
    return -torch.log(prediction[torch.arange(len(y)), y])


def one_hot(y: Tensor) -> Tensor:
    return torch.eye(CLASSES, dtype=torch.float64)[y]


@dataclass
class Scene:
    """A batch, its adversarial images, a student without BatchNorm and two teachers."""

    batch: Batch
    x_adv: Tensor
    student: nn.Module
    teachers: nn.ModuleDict

    @property
    def robust(self) -> nn.Module:
        return self.teachers["robust"]

    @property
    def natural(self) -> nn.Module:
        return self.teachers["natural"]


def scene(*, epoch: int = 9, epochs: int = 10) -> Scene:
    batch = tiny_batch(epoch=epoch, epochs=epochs)
    noise = torch.randn(batch.x.shape, generator=generator(0, "tiny noise"))
    return Scene(
        batch=batch,
        x_adv=(batch.x + 0.2 * noise).clamp(0, 1),
        student=tiny_network(1, batchnorm=False),
        teachers=nn.ModuleDict({"robust": tiny_teacher(11), "natural": tiny_teacher(21)}),
    )


def logits(network: nn.Module, images: Tensor) -> Tensor:
    """The logits of a network in float64, without gradients."""
    with torch.no_grad():
        return copy.deepcopy(network).double()(images.double())


def assert_formula(loss: Tensor, expected: Tensor, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(loss.detach().double(), expected, rtol=rtol, atol=1e-6)


class Rounded(nn.Module):
    """A network whose logits are bf16, or are rounded to bf16 and converted to float32."""

    def __init__(self, network: nn.Module, *, widened: bool) -> None:
        super().__init__()
        self.network, self.widened = network, widened

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(x).bfloat16()
        return logits.float() if self.widened else logits


def assert_same_step(outcome: Tensor, student: nn.Module, expected: Tensor, twin: nn.Module, rate: float) -> None:
    """Compare the gradients of two mean losses, and step both networks along that of the twin.

    Args:
        outcome: losses of the student, [B].
        student: a float32 network.
        expected: losses of the twin, [B].
        twin: the same network in float64.
        rate: the length of the step, in gradients.
    """
    own = torch.autograd.grad(outcome.mean(), list(student.parameters()))
    by_hand = torch.autograd.grad(expected.mean(), list(twin.parameters()))
    networks = zip(student.parameters(), twin.parameters(), strict=True)
    with torch.no_grad():
        for gradient, hand, (mine, other) in zip(own, by_hand, networks, strict=True):
            torch.testing.assert_close(gradient.double(), hand, rtol=1e-4, atol=1e-6)
            mine -= rate * hand.float()
            other.copy_(mine)
