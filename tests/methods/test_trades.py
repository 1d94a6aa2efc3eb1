"""TRADES against its formula, and its clean branch."""

from __future__ import annotations

import torch

from helpers.tiny_networks import assert_formula, cross_entropy, divergence, logits, probabilities, scene
from robustill.methods import build_method


def test_equals_the_formula() -> None:
    s, method = scene(), build_method("trades")
    outcome = method.outer(s.batch, s.x_adv, s.student, s.robust)
    clean, adversarial = (probabilities(logits(s.student, x)) for x in (s.batch.x, s.x_adv))
    assert_formula(outcome.loss, cross_entropy(clean, s.batch.y) + 6 * divergence(clean, adversarial))
    objective = method.inner(s.batch, s.student, s.robust)
    assert_formula(objective(s.x_adv), divergence(clean, adversarial))


def test_the_clean_branch_is_differentiated() -> None:
    s = scene()
    build_method("trades").outer(s.batch, s.x_adv, s.student, s.robust).loss.sum().backward()
    gradient = s.student[-1].weight.grad.clone()
    s.student.zero_grad()
    clean, adversarial = s.student(s.batch.x).softmax(1), s.student(s.x_adv).softmax(1)
    label = -clean[torch.arange(6), s.batch.y].log()
    (label + 6 * (clean * (clean / adversarial).log()).sum(1)).sum().backward()
    torch.testing.assert_close(gradient, s.student[-1].weight.grad, rtol=1e-4, atol=1e-5)
