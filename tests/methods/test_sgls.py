"""SGLS's labels, losses and gradients over several steps against a loop written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from helpers.tiny_networks import (
    CLASSES,
    Scene,
    assert_formula,
    assert_same_step,
    cross_entropy,
    logits,
    one_hot,
    probabilities,
    scene,
)
from robustill.methods import Batch, build_method

# Three steps: some images come back, one is new, and one batch is in another order.
ROWS = ([0, 1, 2, 3], [4, 2, 0], [5, 3, 2, 1, 0])


def batches(s: Scene, *, epochs: list[int], smoothing: float = 0.0) -> list[tuple[Batch, Tensor]]:
    def at(rows: list[int], epoch: int) -> Batch:
        x, y, index = s.batch.x[rows], s.batch.y[rows], s.batch.index[rows]
        return Batch(x=x, y=y, index=index, epoch=epoch, epochs=10, smoothing=smoothing)

    return [(at(rows, epoch), s.x_adv[rows]) for rows, epoch in zip(ROWS, epochs, strict=True)]


@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "clean": 0.7}])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_three_steps_equal_the_formula(options: dict[str, float], smoothing: float) -> None:
    s, method = scene(), build_method("sgls", **options)
    momentum, share = options.get("momentum", 0.9), options.get("clean", 0.2)
    student = copy.deepcopy(s.student).double()
    target = (1 - smoothing) * one_hot(s.batch.y) + smoothing / CLASSES
    for batch, x_adv in batches(s, epochs=[0, 0, 1], smoothing=smoothing):
        outcome = method.outer(batch, x_adv, s.student, s.robust)
        method.update(batch, outcome)
        rows = batch.index
        adversarial = student(x_adv.double()).log_softmax(1)
        prediction = share * probabilities(logits(s.student, batch.x)) + (1 - share) * adversarial.detach().exp()
        target[rows] = momentum * target[rows] + (1 - momentum) * prediction
        loss = -(target[rows] * adversarial).sum(1)
        assert_formula(outcome.loss, loss.detach())
        assert_same_step(outcome.loss, s.student, loss, student, rate=0.5)
    torch.testing.assert_close(method.targets.rows.double(), target, rtol=1e-4, atol=1e-6)


def test_the_adversary_maximises_the_cross_entropy_with_the_label() -> None:
    s, method = scene(), build_method("sgls")
    expected = cross_entropy(probabilities(logits(s.student, s.x_adv)), s.batch.y)
    for _ in range(2):
        assert_formula(method.inner(s.batch, s.student, s.robust)(s.x_adv), expected)
        method.update(s.batch, method.outer(s.batch, s.x_adv, s.student, s.robust))


def test_before_it_begins_the_label_is_kept() -> None:
    s, method = scene(), build_method("sgls", begin=0.3)
    for (batch, x_adv), begun in zip(batches(s, epochs=[0, 2, 3]), (False, False, True), strict=True):
        outcome = method.outer(batch, x_adv, s.student, s.robust)
        method.update(batch, outcome)
        hard = cross_entropy(probabilities(logits(s.student, x_adv)), batch.y)
        assert torch.allclose(outcome.loss.double(), hard, rtol=1e-4) != begun
        assert (len(method.targets.rows) > 0) == begun
        assert (outcome.clean_logits is not None) == begun


def test_a_momentum_of_one_keeps_the_label() -> None:
    s, method = scene(), build_method("sgls", momentum=1.0)
    for batch, x_adv in batches(s, epochs=[0, 1, 2]):
        outcome = method.outer(batch, x_adv, s.student, s.robust)
        method.update(batch, outcome)
        assert_formula(outcome.loss, cross_entropy(probabilities(logits(s.student, x_adv)), batch.y))
