"""ReBAT's loss and gradient against its formula."""

from __future__ import annotations

import copy

import pytest
import torch

from helpers.tiny_networks import assert_formula, cross_entropy, divergence, logits, probabilities, scene
from robustill.methods import build_method


@pytest.mark.parametrize(("epoch", "begun"), [(0, False), (104, False), (105, True), (199, True)])
def test_equals_the_formula_in_every_phase(epoch: int, begun: bool) -> None:
    s, method = scene(epoch=epoch, epochs=200), build_method("rebat", beta=1.7)
    adversarial = probabilities(logits(s.student, s.x_adv))
    hard = cross_entropy(adversarial, s.batch.y)
    kept = divergence(probabilities(logits(s.robust, s.x_adv)), adversarial)
    outcome = method.outer(s.batch, s.x_adv, s.student, s.robust)
    assert_formula(outcome.loss, hard + 1.7 * begun * kept)
    assert_formula(method.inner(s.batch, s.student, s.robust)(s.x_adv), hard)


def test_three_steps_beside_an_average_equal_the_formula() -> None:
    s, method = scene(), build_method("rebat")
    average, twin = copy.deepcopy(s.student).requires_grad_(False), copy.deepcopy(s.student).double()
    for step in range(3):
        x_adv = s.x_adv.roll(step, 0)
        loss = method.outer(s.batch, x_adv, s.student, average).loss
        assert loss.requires_grad
        gradients = torch.autograd.grad(loss.mean(), list(s.student.parameters()))
        log_p, target = twin(x_adv.double()).log_softmax(1), probabilities(logits(average, x_adv))
        kept = (target * (torch.log(target) - log_p)).sum(1)
        expected = -log_p[torch.arange(6), s.batch.y] + kept
        assert_formula(loss, expected.detach())
        assert (kept.detach().abs().max() > 1e-3) == (step > 0)
        by_hand = torch.autograd.grad(expected.mean(), list(twin.parameters()))
        networks = (s.student.parameters(), twin.parameters(), average.parameters())
        with torch.no_grad():
            for gradient, hand, (mine, other, mean) in zip(
                gradients, by_hand, zip(*networks, strict=True), strict=True
            ):
                torch.testing.assert_close(gradient.double(), hand, rtol=1e-4, atol=1e-6)
                mine -= 0.5 * hand.float()
                other.copy_(mine)
                mean.lerp_(mine, 0.1)
