"""Activation checkpointing: the same numbers from less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from robustill.core.errors import ConfigError
from robustill.core.randomness import generator
from robustill.methods import AKD, AT, RSLAD, TRADES, Batch, Method
from robustill.models import build
from robustill.models.fake_quantisation import fake_quantise
from robustill.threat import Threat
from robustill.training.activation_checkpointing import find_blocks, recomputing_activations
from robustill.training.step import Step

SHAPE = {"num_classes": 3, "in_channels": 1, "image_size": 8}


def small(name: str = "resnet8", seed: int = 0) -> nn.Module:
    return build(name, seed=seed, **SHAPE, **({"width": 4} if name == "resnet8" else {}))


def batch() -> Batch:
    x = torch.rand(6, 1, 8, 8, generator=generator(0, "images"))
    return Batch(x=x, y=torch.arange(6) % 3, index=torch.arange(6))


@pytest.mark.parametrize("method", [AT(), AKD(), RSLAD()])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_gives_the_same_numbers(method: Method, precision: str) -> None:
    found = []
    for recompute in (False, True):
        student, own = small(), copy.deepcopy(method)
        step = Step(
            student, own, small(seed=1) if own.roles else None, Threat(norm="linf", eps=0.1), steps=2, step_size=0.05,
            precision=precision, recompute=recompute,
        ).train()  # fmt: skip
        outcome = step(batch(), generator(0, "attack"))
        outcome.loss.mean().backward()
        gradients = [parameter.grad for parameter in student.parameters()]
        found.append([outcome.loss.detach(), *gradients, *student.buffers()])
    for own_value, other in zip(*found, strict=True):
        assert torch.equal(own_value, other)


class Keyword(nn.Module):
    """A block that is called with a keyword, and an activation that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        activation = nn.ReLU()
        self.plain = nn.Sequential(nn.Conv2d(1, 4, 3), activation, nn.Dropout(0.3), nn.Conv2d(4, 4, 3), activation)
        self.blocks = nn.Sequential(Scaled(), Scaled())
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.plain(x)
        for block in self.blocks:
            x = block(x, scale=x.mean())
        return self.head(x.flatten(1))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x)) * scale


@pytest.mark.parametrize("make", [lambda: fake_quantise(small()), Keyword], ids=["quantised", "keyword"])
def test_several_steps_give_the_same_numbers(make: Callable[[], nn.Module]) -> None:
    start, found = make().train(), []
    for recompute in (False, True):
        student = copy.deepcopy(start)
        step = Step(
            student, TRADES(), None, Threat(norm="linf", eps=0.1), steps=1, step_size=0.05, recompute=recompute
        ).train()
        values = []
        for scale in (0.5, 1.0):
            student.zero_grad()
            torch.manual_seed(1)
            step(replace(batch(), x=scale * batch().x), generator(0, "attack")).loss.mean().backward()
            values += [parameter.grad.clone() for parameter in student.parameters() if parameter.grad is not None]
        found.append([*values, *student.buffers()])
    for own_value, other in zip(*found, strict=True):
        assert torch.equal(own_value, other)


def test_activations_are_not_kept_but_computed_again() -> None:
    student, calls = small().train(), []
    [inner] = [each for each in student.get_submodule("layer2.0").children() if isinstance(each, nn.Conv2d)][:1]
    inner.register_forward_hook(lambda *_: calls.append(1))

    def kept(context: AbstractContextManager[None]) -> tuple[torch.Tensor, int]:
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with context, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits = student(batch().x)
        return logits, sum(sizes.values())

    whole, before = kept(nullcontext())
    logits, after = kept(recomputing_activations(student))
    assert after < before / 2
    assert len(calls) == 2
    logits.sum().backward()
    assert len(calls) == 3
    torch.testing.assert_close(logits, whole)


def test_the_network_is_restored_after_an_exception() -> None:
    student = small()
    with pytest.raises(ZeroDivisionError), recomputing_activations(student):
        raise ZeroDivisionError
    assert all("forward" not in vars(module) for module in student.modules())


def test_blocks_are_members_of_the_outermost_sequential() -> None:
    student = small()
    assert find_blocks(student) == [student.get_submodule(f"layer{number}.0") for number in (1, 2, 3)]
    plain = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 3)))
    assert find_blocks(plain) == list(plain)
    assert find_blocks(nn.Linear(1, 1)) == []


def test_it_is_refused_together_with_awp() -> None:
    with pytest.raises(ConfigError, match="recompute with awp"):
        Step(small(), AT(), None, Threat(norm="linf", eps=0.1), steps=1, step_size=0.1, awp=0.01, recompute=True)
