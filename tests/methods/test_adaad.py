"""AdaAD against its formula, and its gradient through the teacher."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny_networks import assert_formula, divergence, logits, probabilities, scene
from robustill.methods import build_method


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_equals_the_formula(alpha: float) -> None:
    s = scene()
    outcome = build_method("adaad", alpha=alpha).outer(s.batch, s.x_adv, s.student, s.robust)
    clean, adversarial = (
        divergence(probabilities(logits(s.robust, x)), probabilities(logits(s.student, x)))
        for x in (s.batch.x, s.x_adv)
    )
    assert_formula(outcome.loss, alpha * adversarial + (1 - alpha) * clean)


@pytest.mark.parametrize("name", ["adaad", "adaiad"])
def test_the_adversary_uses_both_gradients(name: str) -> None:
    s = scene()
    images = s.x_adv.requires_grad_()
    objective = build_method(name).inner(s.batch, s.student, s.robust)
    (gradient,) = torch.autograd.grad(objective(images).sum(), images)
    target, prediction = s.robust(images).softmax(1), s.student(images).softmax(1)
    (both,) = torch.autograd.grad((target * (target / prediction).log()).sum(), images, retain_graph=True)
    fixed = target.detach()
    (student_alone,) = torch.autograd.grad((fixed * (fixed / prediction).log()).sum(), images)
    torch.testing.assert_close(gradient, both, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gradient, student_alone, rtol=0.1)
