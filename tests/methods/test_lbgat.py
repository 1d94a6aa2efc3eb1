"""LBGAT against its formula, its gradients, and the training of its natural network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.companions import train_both, with_companion
from helpers.tiny_networks import (
    CLASSES,
    assert_formula,
    cross_entropy,
    divergence,
    logits,
    probabilities,
    scene,
    tiny_network,
)
from robustill.methods import build_method


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_equals_the_formula(beta: float) -> None:
    s, method = scene(), with_companion("lbgat", beta=beta)
    outcome = method.outer(s.batch, s.x_adv, s.student, nn.Identity())
    student, clean = logits(s.student, s.x_adv), logits(s.student, s.batch.x)
    natural = logits(method.guide, s.batch.x)
    stability = divergence(probabilities(clean), probabilities(student))
    expected = (student - natural).square().sum(1) / CLASSES + cross_entropy(probabilities(natural), s.batch.y)
    assert_formula(outcome.loss, expected + beta * stability)
    assert_formula(method.inner(s.batch, s.student, nn.Identity())(s.x_adv), stability)


def test_both_networks_have_the_gradient_of_the_formula() -> None:
    s, method = scene(), with_companion("lbgat", beta=6.0)
    weights = [s.student[-1].weight, method.guide[-1].weight]
    gradients = torch.autograd.grad(method.outer(s.batch, s.x_adv, s.student, nn.Identity()).loss.sum(), weights)
    student, clean, natural = s.student(s.x_adv), s.student(s.batch.x), method.guide(s.batch.x)
    p, q = clean.softmax(1), student.softmax(1)
    label = -natural.log_softmax(1)[torch.arange(6), s.batch.y]
    loss = (student - natural).square().mean(1) + label + 6 * (p * (p / q).log()).sum(1)
    for gradient, expected in zip(gradients, torch.autograd.grad(loss.sum(), weights), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_the_optimizer_trains_the_natural_network_too() -> None:
    method, losses = train_both("lbgat", 0.01, ("natural_ce", "mse"))
    assert losses[-1][0] < 0.5 * losses[0][0]
    assert losses[-1][1] < 0.5 * losses[0][1]
    assert int(method.guide[1].num_batches_tracked) == 15


def test_the_natural_architecture_is_given_by_name() -> None:
    asked: list[tuple[str | None, dict[str, object]]] = []

    def network(name: str | None = None, **options: object) -> nn.Module:
        asked.append((name, options))
        return tiny_network(7)

    build_method("lbgat", natural="resnet18", natural_options={"width": 8}).set_up(network)
    build_method("lbgat").set_up(network)
    assert asked == [("resnet18", {"width": 8}), (None, {})]
