"""The fingerprint of a network: equal up to rounding, different for every change of what it computes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.small_network import small_network
from robustill.acceleration.folding import folded_copy
from robustill.core.fingerprint import FAILED, RANDOM, UNSTABLE, Fingerprint, compute_fingerprint

SHAPE = (1, 8, 8)
# Natural images have ties and exact zeros, at which gradients jump.
IMAGES = torch.zeros(6, *SHAPE)
IMAGES[:, :, 2:5, 3:7] = torch.rand(6, 1, 3, 4, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    module = small_network().train()
    module(torch.rand(16, *SHAPE, generator=torch.Generator().manual_seed(2)))
    return module.eval()


class Before(nn.Module):
    """A network behind a function of the images."""

    def __init__(self, change: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        super().__init__()
        self.network, self.change, self.after = network(), change, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.network(self.change(x)))


def fingerprint(predict: Callable[[Tensor], Tensor], images: Tensor | None = IMAGES) -> Fingerprint:
    return compute_fingerprint(predict, SHAPE, images=images)


def stored(predict: Callable[[Tensor], Tensor], images: Tensor | None = IMAGES) -> object:
    return json.loads(json.dumps(fingerprint(predict, images).to_json()))


def round_to_15_levels(x: Tensor) -> Tensor:
    return (x * 15).round() / 15


def straight_through(x: Tensor) -> Tensor:
    return x + (round_to_15_levels(x) - x).detach()


def in_float64(x: Tensor) -> Tensor:
    return copy.deepcopy(network()).double()(x.double()).float()


def under_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return network()(x).float()


@pytest.mark.parametrize(
    "same",
    [
        lambda: network().to(memory_format=torch.channels_last),
        lambda: folded_copy(network(), IMAGES),
        lambda: in_float64,
        lambda: Before(lambda x: x).train(),
        lambda: lambda x: torch.cat([network()(each[None]) for each in x]),
        lambda: lambda x: network()(torch.cat([x, x, x]))[: len(x)],
    ],
)
def test_rounding_makes_no_other_network(same: Callable[[], Callable[[Tensor], Tensor]]) -> None:
    assert fingerprint(same()).difference(stored(network())) is None


def test_bfloat16_is_compared_with_its_own_rounding() -> None:
    before = stored(under_autocast)
    assert fingerprint(lambda x: under_autocast(torch.cat([x, x.flip(0)]))[: len(x)]).difference(before) is None
    assert fingerprint(lambda x: under_autocast(0.8 * x)).difference(before) is not None


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (lambda: Before(lambda x: (x - 0.3) / 0.3), "logits"),
        (lambda: Before(lambda x: x * 0.99), "logits"),
        (lambda: Before(lambda x: x.flip(3)), "logits"),
        (lambda: Before(lambda x: x, lambda z: z[:, torch.arange(10).roll(1)]), "logits"),
        (lambda: Before(lambda x: x, lambda z: z[:, :9]), "logits"),
        (lambda: Before(lambda x: x, lambda z: z.softmax(1)), "logits"),
        (lambda: Before(lambda x: x, lambda z: z + torch.nan), "logits"),
        (lambda: Before(lambda x: x.detach()), "input gradients"),
        (lambda: Before(lambda x: x / 2 + x.detach() / 2), "input gradients"),
        (lambda: small_network(seed=1).eval(), "logits"),
    ],
)
def test_another_function_of_the_same_weights_is_another_network(other: Callable[[], nn.Module], what: str) -> None:
    for images in (None, IMAGES):
        difference = fingerprint(other(), images).difference(stored(network(), images))
        assert difference is not None
        assert difference.startswith(f"its {what} on fixed images differ by ")


def test_a_mended_gradient_is_another_network() -> None:
    difference = fingerprint(Before(straight_through)).difference(stored(Before(round_to_15_levels)))
    assert difference is not None
    assert difference.startswith("its input gradients")


def test_own_images_are_not_compared_with_none() -> None:
    assert fingerprint(network()).difference(stored(network(), None)) is None
    assert fingerprint(network(), None).difference(stored(network())) is None


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: x + 0.01 * torch.randn_like(x),
        lambda x: x + 0.05 * torch.tensor(np.random.rand(*x.shape), dtype=x.dtype),
        lambda x: x * random.uniform(0.5, 1),
    ],
)
def test_a_randomised_network_is_recognised_by_its_weights(draw: Callable[[Tensor], Tensor]) -> None:
    before = stored(Before(draw))
    assert before == {"format": 1, "note": RANDOM, "tensors": fingerprint(Before(draw)).tensors}
    assert fingerprint(Before(draw)).difference(before) is None
    other = Before(draw)
    next(other.parameters()).data += 1e-3
    assert fingerprint(other).difference(before) == "its weights are others"
    assert fingerprint(Before(lambda x: x)).difference(before) == "only one of the two draws random numbers"


def test_a_network_that_rounding_decides_is_not_compared() -> None:
    assert fingerprint(Before(lambda x: (1e9 * x).sin())).note == UNSTABLE


def test_a_network_that_fails_has_no_fingerprint() -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("only in the laboratory")

    for broken in (fails, lambda x: (x, x), lambda x: x):
        assert fingerprint(broken).note == FAILED
        assert fingerprint(broken).difference(stored(network())) is None
        assert fingerprint(network()).difference(stored(broken)) is None


@pytest.mark.parametrize(
    "page",
    [
        None,
        "a",
        [],
        {},
        {"format": 2},
        {"format": 1},
        {"format": 1, "images": 1, "logits": "@", "gradients": "", "rounding": ""},
        {"format": 1, "images": -1, "logits": "", "gradients": "", "rounding": ""},
        {"format": 1, "images": 10**400, "logits": "AAAA", "gradients": "AAAA", "rounding": "AAAA"},
    ],
)
def test_a_damaged_fingerprint_is_as_good_as_none(page: object) -> None:
    assert fingerprint(network()).difference(page) is None


def test_nothing_is_changed_by_it() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.register_buffer("fixed", torch.zeros(1).expand(5))
            self.network = small_network().train()
            self.network[2].bn1.eval()

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x.mul_(1)
            return self.network(x) + torch.rand(1) + random.random() + np.random.rand()

    module = Counting()
    module.network[0].weight.requires_grad_(False)
    modes = [each.training for each in module.modules()]
    flags = [each.requires_grad for each in module.parameters()]
    tensors = {name: value.clone() for name, value in module.state_dict().items()}
    images = IMAGES.clone()
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    assert fingerprint(module, images).note == RANDOM
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert [each.training for each in module.modules()] == modes
    assert [each.requires_grad for each in module.parameters()] == flags
    assert all(each.grad is None for each in module.parameters())
    assert all(torch.equal(value, tensors[name]) for name, value in module.state_dict().items())
    assert torch.equal(images, IMAGES)


def test_it_is_small_for_large_images_and_many_classes() -> None:
    linear = nn.Sequential(nn.Conv2d(3, 2, 16, 16), nn.Flatten(), nn.Linear(2 * 14 * 14, 1000)).eval()
    page = json.dumps(compute_fingerprint(linear, (3, 224, 224)).to_json())
    assert len(page) < 2000
    changed = compute_fingerprint(lambda x: linear(0.99 * x), (3, 224, 224))
    assert changed.difference(json.loads(page)) is not None


class OnlyInTraining(nn.Module):
    """A network behind a function of the images that it computes in train mode alone."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.network, self.change = network(), change

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.change(x) if self.training else x)


def in_train_mode(module: nn.Module) -> Fingerprint:
    return compute_fingerprint(module.train(), SHAPE, images=IMAGES, keep_modes=True)


def test_what_is_computed_in_train_mode_has_a_fingerprint_of_its_own() -> None:
    plain, other = OnlyInTraining(), OnlyInTraining(lambda x: 0.9 * x.flip(3))
    before = json.loads(json.dumps(in_train_mode(plain).to_json()))
    assert fingerprint(other).difference(stored(plain)) is None
    assert in_train_mode(OnlyInTraining()).difference(before) is None
    assert in_train_mode(plain.to(memory_format=torch.channels_last)).difference(before) is None
    difference = in_train_mode(other).difference(before)
    assert difference is not None
    assert difference.startswith("its logits on fixed images differ by ")
    # BatchNorm normalises with the batch there, not with its running statistics.
    assert in_train_mode(plain).difference(stored(plain)) is not None


def test_modes_and_statistics_are_kept_in_train_mode() -> None:
    module = OnlyInTraining().train()
    module.network[2].bn1.eval()
    modes = [each.training for each in module.modules()]
    tensors = {name: value.clone() for name, value in module.state_dict().items()}
    assert compute_fingerprint(module, SHAPE, keep_modes=True).note == ""
    assert [each.training for each in module.modules()] == modes
    assert all(torch.equal(value, tensors[name]) for name, value in module.state_dict().items())
    assert in_train_mode(nn.Sequential(nn.Dropout(0.5), network())).note == RANDOM
