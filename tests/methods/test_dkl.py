"""DKL against its formula with all K² pairs, and its class means."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny_networks import CLASSES, assert_formula, cross_entropy, logits, probabilities, scene
from robustill.methods import build_method


def pairs(clean: torch.Tensor, adversarial: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """¼ Σ_jk w_j w_k (Δ_jk(x) − Δ_jk(x'))², pair by pair."""
    total = torch.zeros(len(clean), dtype=torch.float64)
    for j in range(CLASSES):
        for k in range(CLASSES):
            change = (clean[:, j] - clean[:, k]) - (adversarial[:, j] - adversarial[:, k])
            total += weight[:, j] * weight[:, k] * change**2 / 4
    return total


@pytest.mark.parametrize("inner_beta", [0.0, 1.0])
def test_equals_the_formula_in_the_second_epoch(inner_beta: float) -> None:
    s, method = scene(epoch=0, epochs=2), build_method("dkl", inner_beta=inner_beta)
    weight = torch.full((CLASSES, CLASSES), 1 / CLASSES, dtype=torch.float64)
    for epoch in range(2):
        s = scene(epoch=epoch, epochs=2)
        clean, adversarial = logits(s.student, s.batch.x), logits(s.student, s.x_adv)
        own = weight[s.batch.y]
        soft = -(probabilities(clean) * torch.log(probabilities(adversarial))).sum(1)
        spread = pairs(clean, adversarial, own)
        assert_formula(method.inner(s.batch, s.student, s.robust)(s.x_adv), soft + inner_beta * spread)
        outcome = method.outer(s.batch, s.x_adv, s.student, s.robust)
        assert_formula(outcome.loss, cross_entropy(probabilities(clean), s.batch.y) + 4 * soft + 20 * spread)
        method.update(s.batch, outcome)
        for label in s.batch.y.unique():
            weight[label] = probabilities(clean, 4.0)[s.batch.y == label].mean(0)


@pytest.mark.parametrize("gamma", [0.0, 0.2, 2.0])
def test_gkl_equals_the_formula_in_the_second_epoch(gamma: float) -> None:
    method = build_method("dkl", gamma=gamma, temperature=1.0, inner_beta=1.0)
    s = scene(epoch=0, epochs=2)
    with torch.no_grad():
        method.update(s.batch, method.outer(s.batch, s.x_adv, s.student, s.robust))
    s = scene(epoch=1, epochs=2)
    clean, adversarial = logits(s.student, s.batch.x), logits(s.student, s.x_adv)
    weight = torch.zeros(CLASSES, CLASSES, dtype=torch.float64)
    for label in s.batch.y.unique():
        weight[label] = probabilities(clean)[s.batch.y == label].mean(0)
    own = weight[s.batch.y]
    total = sum(own[:, j] ** gamma * own[:, k] ** gamma for j in range(CLASSES) for k in range(CLASSES)).mean()
    soft = -(probabilities(clean) * torch.log(probabilities(adversarial))).sum(1)
    outcome = method.outer(s.batch, s.x_adv, s.student, s.robust)
    expected = cross_entropy(probabilities(clean), s.batch.y) + 4 * soft
    assert_formula(outcome.loss, expected + 20 * pairs(clean, adversarial, own**gamma) / total)
    assert_formula(method.inner(s.batch, s.student, s.robust)(s.x_adv), soft + pairs(clean, adversarial, own))
    assert method.whole_batch
    assert not build_method("dkl").whole_batch


@pytest.mark.parametrize("gamma", [1.0, 0.4])
def test_the_documented_terms_are_detached(gamma: float) -> None:
    s = scene()
    outcome = build_method("dkl", gamma=gamma).outer(s.batch, s.x_adv, s.student, s.robust)
    (gradient,) = torch.autograd.grad(outcome.loss.sum(), s.student[-1].weight)
    clean, adversarial = s.student(s.batch.x), s.student(s.x_adv)
    label = -clean.log_softmax(1)[torch.arange(6), s.batch.y]
    soft = -(clean.detach().softmax(1) * adversarial.log_softmax(1)).sum(1)
    spread = pairs(clean, adversarial, torch.full((6, CLASSES), 1 / CLASSES))
    (expected,) = torch.autograd.grad((label + 4 * soft + 20 * spread).sum(), s.student[-1].weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
