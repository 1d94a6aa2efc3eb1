"""ADR's labels, losses and gradients against its formula."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.tiny_networks import CLASSES, Scene, assert_formula, divergence, logits, one_hot, probabilities, scene
from robustill.core.errors import ConfigError
from robustill.methods import build_method


def rectified(s: Scene, label: Tensor, p_y: Tensor, weight: float, temperature: float) -> Tensor:
    """The label r, image by image."""
    p = probabilities(logits(s.robust, s.batch.x), temperature)
    rows = []
    for i in range(len(p)):
        own = min(max(weight - (float(p[i].max()) - float(p_y[i])), 0.0), 1.0)
        rows.append(own * p[i] + (1 - own) * label[i])
    return torch.stack(rows)


@pytest.mark.parametrize(("epoch", "options"), [(0, {}), (3, {}), (9, {}), (5, {"weight": 0.2, "first_weight": 0.1})])
@pytest.mark.parametrize("base", ["at", "trades"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_equals_the_formula_with_both_bases(epoch: int, options: dict[str, float], base: str, smoothing: float) -> None:
    s, method = scene(epoch=epoch, epochs=10), build_method("adr", base=base, **options)
    batch = replace(s.batch, smoothing=smoothing)
    rise = (1 - math.cos(math.pi * epoch / 10)) / 2
    first, last = options.get("first_weight", 0.7), options.get("weight", 0.95)
    temperature = 2.5 - 0.5 * rise
    p = probabilities(logits(s.robust, s.batch.x), temperature)
    label = (1 - smoothing) * one_hot(batch.y) + smoothing / CLASSES
    r = rectified(s, label, p[torch.arange(6), batch.y], first + (last - first) * rise, temperature)
    twin = copy.deepcopy(s.student).double()
    clean, adversarial = twin(batch.x.double()).log_softmax(1), twin(s.x_adv.double()).log_softmax(1)
    if base == "at":
        expected = inner = -(r * adversarial).sum(1)
    else:
        kl = (clean.exp() * (clean - adversarial)).sum(1)
        expected, inner = -(r * clean).sum(1) + 6 * kl, divergence(clean.exp(), adversarial.exp())
    assert_formula(method.inner(batch, s.student, s.robust)(s.x_adv), inner.detach())
    loss = method.outer(batch, s.x_adv, s.student, s.robust).loss
    assert_formula(loss, expected.detach())
    gradients = torch.autograd.grad(loss.mean(), list(s.student.parameters()))
    for gradient, hand in zip(gradients, torch.autograd.grad(expected.mean(), list(twin.parameters())), strict=True):
        torch.testing.assert_close(gradient.double(), hand, rtol=1e-4, atol=1e-6)


def test_a_mixed_label_counts_each_of_its_classes() -> None:
    s, method = scene(epoch=0), build_method("adr")
    shown = F.one_hot(s.batch.y, CLASSES).float()
    mixed = 0.6 * shown + 0.4 * shown.roll(1, dims=1)
    p_y = (mixed.double() * probabilities(logits(s.robust, s.batch.x), 2.5)).sum(1)
    r = rectified(s, mixed.double(), p_y, 0.7, 2.5)
    loss = method.outer(replace(s.batch, mixed=mixed), s.x_adv, s.student, s.robust).loss
    assert_formula(loss, -(r * torch.log(probabilities(logits(s.student, s.x_adv)))).sum(1))


def test_a_confident_mistake_of_the_average_leaves_the_label() -> None:
    s, method = scene(), build_method("adr")
    wrong = 60.0 * F.one_hot((s.batch.y + 1) % CLASSES, CLASSES)
    expected = build_method("at").outer(s.batch, s.x_adv, s.student, s.robust).loss
    found = method.outer(s.batch, s.x_adv, s.student, lambda _: wrong).loss
    torch.testing.assert_close(found, expected)


def test_other_bases_are_refused() -> None:
    with pytest.raises(ConfigError, match="method adr has base 'mart': expected at or trades"):
        build_method("adr", base="mart")
    with pytest.raises(ConfigError, match="method at has no option 'beta'"):
        build_method("adr", base_options={"beta": 5})
    assert build_method("adr", base="trades", base_options={"beta": 5}).start == "gaussian"
    assert build_method("adr").start == "uniform"
