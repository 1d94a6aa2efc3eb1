"""AdaIAD against its formula."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny_networks import assert_formula, divergence, logits, probabilities, scene
from robustill.methods import build_method


@pytest.mark.parametrize("epoch", [59, 60])
def test_equals_the_formula_before_and_after_begin(epoch: int) -> None:
    s = scene(epoch=epoch, epochs=200)
    outcome = build_method("adaiad", temperature=5.0).outer(s.batch, s.x_adv, s.student, s.robust)
    teacher, student = logits(s.robust, s.x_adv), logits(s.student, s.x_adv)
    expected = 25 * divergence(probabilities(teacher, 5.0), probabilities(student, 5.0))
    if epoch == 60:
        trust = probabilities(teacher)[torch.arange(6), s.batch.y] ** 0.1
        own = divergence(probabilities(logits(s.student, s.batch.x)), probabilities(student))
        expected = expected + (1 - trust) * own
    assert_formula(outcome.loss, expected)
