"""TE's averages, weights, losses and gradients over several steps against a loop written out."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from helpers.tiny_networks import CLASSES, assert_formula, assert_same_step, logits, probabilities, scene, tiny_network
from robustill.methods import Batch, build_method

# Some images come back, one is new, and one batch is in another order; the epoch of each of four steps of twenty.
STEPS = (([0, 1, 2, 3], 8), ([4, 2, 0], 9), ([5, 3, 2, 1, 0], 12), ([0, 1, 2, 3, 4, 5], 17))


def ramped(epoch: int) -> float:
    """The weight over 20 epochs with the published options: from epoch 9 on, whole after epoch 15."""
    if epoch < 9:
        return 0.0
    return 300 * math.exp(-5 * (1 - min(1.0, (epoch - 9) / 6)) ** 2)


def test_four_steps_equal_the_formula() -> None:
    s, method = scene(), build_method("te")
    student = copy.deepcopy(s.student).double()
    average = torch.zeros(6, CLASSES, dtype=torch.float64)
    for rows, epoch in STEPS:
        x, y, index = s.batch.x[rows], s.batch.y[rows], s.batch.index[rows]
        batch, x_adv = Batch(x=x, y=y, index=index, epoch=epoch, epochs=20), s.x_adv[rows]
        inner = method.inner(batch, s.student, s.robust)(x_adv)
        outcome = method.outer(batch, x_adv, s.student, s.robust)
        method.update(batch, outcome)
        log_p = student(x_adv.double()).log_softmax(1)
        loss = -log_p[torch.arange(len(rows)), y]
        if ramped(epoch) > 0:
            average[rows] = 0.9 * average[rows] + 0.1 * probabilities(logits(s.student, x))
            target = average[rows] / average[rows].sum(1, keepdim=True)
            loss = loss + ramped(epoch) / CLASSES * ((log_p.exp() - target) ** 2).sum(1)
        assert_formula(inner, loss.detach())
        assert_formula(outcome.loss, loss.detach())
        assert_same_step(outcome.loss, s.student, loss, student, rate=0.02)
    torch.testing.assert_close(method.averages.rows.double(), average, rtol=1e-4, atol=1e-6)


def test_the_first_target_is_the_first_clean_prediction() -> None:
    s, method = scene(), build_method("te")
    outcome = method.outer(s.batch, s.batch.x, s.student, s.robust)
    assert outcome.terms["mse"].max() < 1e-12


def test_no_ramp_gives_the_whole_weight_at_once() -> None:
    s, method = scene(epoch=5), build_method("te", ramp=0.0, begin=0.5)
    terms = method.outer(s.batch, s.x_adv, s.student, s.robust).terms
    assert terms["mse"].min() > 0
    loss = method.outer(s.batch, s.x_adv, s.student, s.robust).loss
    torch.testing.assert_close(loss, terms["ce"] + 300 * terms["mse"])


@pytest.mark.parametrize("begin", [0.07, 0.29])
def test_the_ramp_starts_from_its_lowest_weight(begin: float) -> None:
    # Of 100 epochs, where 0.07 · 100 and 0.29 · 100 are not whole numbers in floating point.
    s, method = scene(epoch=round(100 * begin), epochs=100), build_method("te", begin=begin)
    outcome = method.outer(s.batch, s.x_adv, s.student, s.robust)
    assert_formula(
        (outcome.loss - outcome.terms["ce"]) / outcome.terms["mse"], torch.full((6,), 300 * math.exp(-5)).double()
    )


def test_the_clean_prediction_is_that_of_the_attacked_network_in_every_attack() -> None:
    s, method, student = scene(), build_method("te"), tiny_network(1)
    for _ in range(2):
        # The second time the same batch is attacked with other weights and statistics.
        with torch.no_grad():
            expected = student.eval()(s.batch.x)
        method.inner(s.batch, student, s.robust)
        outcome = method.outer(s.batch, s.x_adv, student.train(), s.robust)
        assert outcome.clean_logits is not None
        torch.testing.assert_close(outcome.clean_logits, expected)
        method.update(s.batch, outcome)
        with torch.no_grad():
            student[-1].weight.mul_(2)
