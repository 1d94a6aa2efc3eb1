"""SAAD against its formula, and its adversary."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny_networks import assert_formula, divergence, logits, one_hot, probabilities, scene
from robustill.methods import Batch, build_method


@pytest.mark.parametrize(("beta", "order"), [(0.0, 1.0), (0.7, 1.0), (0.7, 2.0), (0.0, 0.5), (0.0, 1.0005)])
def test_equals_the_formula(beta: float, order: float) -> None:
    s = scene(epoch=4, epochs=10)
    method = build_method("saad", matching=2.0, beta=beta, order=order)
    outcome = method.outer(s.batch, s.x_adv, s.student, s.robust)
    opposite = 2 * s.batch.x - s.x_adv
    teacher, student = probabilities(logits(s.robust, s.x_adv)), probabilities(logits(s.student, s.x_adv))
    slopes = [probabilities(logits(n, s.x_adv) - logits(n, opposite)) for n in (s.robust, s.student)]
    entropy = -(teacher * torch.log(teacher)).sum(1)
    if order in (0.5, 2.0):
        entropy = torch.log((teacher**order).sum(1)) / (1 - order)
    weight = 5 * (entropy - entropy.min())
    share = (weight - weight.min()) / (weight.max() - weight.min())
    clean = divergence(probabilities(logits(s.robust, s.batch.x)), probabilities(logits(s.student, s.batch.x)))
    expected = weight * (divergence(teacher, student) + 2 * 0.5 * divergence(*slopes)) + beta * (1 - share) * clean
    assert_formula(outcome.loss, expected)


@pytest.mark.parametrize("order", [0.5, 2.0, 30.0])
def test_entropies_of_other_orders_are_finite(order: float) -> None:
    s, method = scene(), build_method("saad", order=order)
    with torch.no_grad():
        # Probabilities beyond float32.
        s.robust[-1].weight.mul_(100.0)
    loss = method.outer(s.batch, s.x_adv, s.student, s.robust).loss
    assert loss.isfinite().all()
    assert loss.detach().min() == 0


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_the_adversary_uses_the_linearised_logit(scale: float) -> None:
    s = scene()
    images = s.batch.x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((s.robust(images) * one_hot(s.batch.y)).sum(), images)
    rise = (slope * (s.x_adv - s.batch.x)).sum(dim=(1, 2, 3)).double()
    target = probabilities(logits(s.robust, s.batch.x) + scale * rise[:, None] * one_hot(s.batch.y))
    objective = build_method("saad", linearisation=scale).inner(s.batch, s.student, s.robust)
    assert_formula(objective(s.x_adv), divergence(target, probabilities(logits(s.student, s.x_adv))))
    assert not s.batch.x.requires_grad


def test_without_gradient_the_adversary_is_that_of_rslad() -> None:
    s = scene()
    saad, rslad = build_method("saad", linearisation=0.0), build_method("rslad")
    mine, theirs = (method.inner(s.batch, s.student, s.robust)(s.x_adv) for method in (saad, rslad))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_equal_entropies_leave_the_clean_term() -> None:
    s = scene()
    one = Batch(x=s.batch.x[:1], y=s.batch.y[:1], index=s.batch.index[:1])
    outcome = build_method("saad", beta=0.7).outer(one, s.x_adv[:1], s.student, s.robust)
    teacher, student = probabilities(logits(s.robust, one.x)), probabilities(logits(s.student, one.x))
    assert_formula(outcome.loss, 0.7 * divergence(teacher, student))
