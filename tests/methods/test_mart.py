"""MART against its formula."""

from __future__ import annotations

import torch

from helpers.tiny_networks import assert_formula, cross_entropy, divergence, logits, one_hot, probabilities, scene
from robustill.methods import build_method


def test_equals_the_formula() -> None:
    s = scene()
    outcome = build_method("mart", beta=3.0).outer(s.batch, s.x_adv, s.student, s.robust)
    clean, adversarial = (probabilities(logits(s.student, x)) for x in (s.batch.x, s.x_adv))
    best_other = (adversarial * (1 - one_hot(s.batch.y))).max(dim=1).values
    boosted = cross_entropy(adversarial, s.batch.y) - torch.log(1.0001 - best_other)
    doubt = 1 - clean[torch.arange(6), s.batch.y]
    assert_formula(outcome.loss, boosted + 3 * divergence(clean, adversarial) * doubt)


def test_the_weight_is_differentiated() -> None:
    s = scene()
    build_method("mart").outer(s.batch, s.x_adv, s.student, s.robust).loss.sum().backward()
    gradient = s.student[-1].weight.grad.clone()
    s.student.zero_grad()
    clean, adversarial = s.student(s.batch.x).softmax(1), s.student(s.x_adv).softmax(1)
    rows, own = torch.arange(6), one_hot(s.batch.y).float()
    boosted = -adversarial[rows, s.batch.y].log() - (1.0001 - (adversarial * (1 - own)).max(1).values).log()
    (boosted + 5 * (clean * (clean / adversarial).log()).sum(1) * (1 - clean[rows, s.batch.y])).sum().backward()
    torch.testing.assert_close(gradient, s.student[-1].weight.grad, rtol=1e-4, atol=1e-5)
