"""HAT against its formula, on images that leave [0,1]."""

from __future__ import annotations

import torch

from helpers.tiny_networks import assert_formula, cross_entropy, divergence, logits, probabilities, scene
from robustill.methods import build_method


def test_equals_the_formula() -> None:
    s, method = scene(), build_method("hat", beta=3.0, gamma=0.7, distance=3.5)
    outcome = method.outer(s.batch, s.x_adv, s.student, s.natural)
    beyond = s.batch.x + 3.5 * (s.x_adv - s.batch.x)
    assert (beyond < 0).any()
    helper_label = logits(s.natural, s.x_adv).argmax(1)
    assert (helper_label != s.batch.y).any()
    clean, adversarial, helper = (probabilities(logits(s.student, images)) for images in (s.batch.x, s.x_adv, beyond))
    stability = divergence(clean, adversarial)
    expected = cross_entropy(clean, s.batch.y) + 3 * stability + 0.7 * cross_entropy(helper, helper_label)
    assert_formula(outcome.loss, expected)
    assert_formula(method.inner(s.batch, s.student, s.natural)(s.x_adv), stability)


def test_without_helper_images_it_is_trades() -> None:
    s = scene()
    hat, trades = build_method("hat", beta=6.0, gamma=0.0), build_method("trades")
    losses = [method.outer(s.batch, s.x_adv, s.student, s.natural).loss for method in (hat, trades)]
    gradients = [torch.autograd.grad(loss.sum(), s.student[-1].weight)[0] for loss in losses]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert hat.start == trades.start


def test_all_three_images_are_differentiated() -> None:
    s, method = scene(), build_method("hat")
    loss = method.outer(s.batch, s.x_adv, s.student, s.natural).loss
    (gradient,) = torch.autograd.grad(loss.sum(), s.student[-1].weight)
    clean, adversarial = s.student(s.batch.x).log_softmax(1), s.student(s.x_adv).log_softmax(1)
    helper = s.student(2 * s.x_adv - s.batch.x).log_softmax(1)
    rows = torch.arange(6)
    stability = (clean.exp() * (clean - adversarial)).sum(1)
    own = -clean[rows, s.batch.y] - 0.5 * helper[rows, s.natural(s.x_adv).argmax(1)]
    (expected,) = torch.autograd.grad((own + 2.5 * stability).sum(), s.student[-1].weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
