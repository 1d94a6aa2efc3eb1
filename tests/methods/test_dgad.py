"""DGAD against its formula, image by image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.tiny_networks import CLASSES, assert_formula, divergence, logits, probabilities, scene
from robustill.methods import build_method


def mended(logits_of_image: list[float], label: int) -> list[float]:
    """The label's logit and the largest one exchanged."""
    largest = logits_of_image.index(max(logits_of_image))
    exchanged = list(logits_of_image)
    exchanged[label], exchanged[largest] = logits_of_image[largest], logits_of_image[label]
    return exchanged


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_equals_the_formula(beta: float) -> None:
    s, method = scene(), build_method("dgad", beta=beta)
    at_x, at_x_adv = logits(s.robust, s.batch.x), logits(s.robust, s.x_adv)
    # The teacher is right at both images, at x alone, and at none.
    y = at_x.argmax(1)
    y[[1, 4]] = (y[[1, 4]] + 1) % CLASSES
    batch = replace(s.batch, y=y)
    outcome = method.outer(batch, s.x_adv, s.student, s.robust)
    expected = []
    for i in range(6):
        is_right = at_x[i].argmax() == y[i]
        target = torch.tensor([mended((at_x_adv if is_right else at_x)[i].tolist(), int(y[i]))], dtype=torch.float64)
        own = logits(s.student, (s.x_adv if is_right else batch.x)[i : i + 1])
        change = probabilities(logits(s.student, s.x_adv[i : i + 1]))
        change = change - probabilities(logits(s.student, batch.x[i : i + 1]))
        expected.append(divergence(probabilities(target), probabilities(own)) + beta * change.square().mean())
    assert_formula(outcome.loss, torch.cat(expected))
    assert (at_x.argmax(1) == y).any()
    assert (at_x.argmax(1) != y).any()
    assert ((at_x.argmax(1) == y) & (at_x_adv.argmax(1) != y)).any()


def test_the_gradient_of_both_images_is_taken() -> None:
    s, method = scene(), build_method("dgad", beta=3.0)
    batch = replace(s.batch, y=s.robust(s.batch.x).argmax(1))
    batch = replace(batch, y=torch.where(torch.arange(6) < 3, batch.y, (batch.y + 1) % CLASSES))
    loss = method.outer(batch, s.x_adv, s.student, s.robust).loss
    (gradient,) = torch.autograd.grad(loss.sum(), s.student[-1].weight)
    clean, adversarial = s.student(batch.x), s.student(s.x_adv)
    rows = []
    for i in range(6):
        teacher, student = (s.robust(s.x_adv), adversarial) if i < 3 else (s.robust(batch.x), clean)
        p = torch.tensor(mended(teacher[i].tolist(), int(batch.y[i]))).softmax(0)
        change = adversarial[i].softmax(0) - clean[i].softmax(0)
        rows.append((p * (p.log() - student[i].log_softmax(0))).sum() + 3 * change.square().sum() / CLASSES)
    (expected,) = torch.autograd.grad(torch.stack(rows).sum(), s.student[-1].weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_the_adversary_is_that_of_adaad() -> None:
    s = scene()
    mine, theirs = (build_method(name).inner(s.batch, s.student, s.robust) for name in ("dgad", "adaad"))
    assert torch.equal(mine(s.x_adv), theirs(s.x_adv))
    assert build_method("dgad").start == build_method("adaad").start
