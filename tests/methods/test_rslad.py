"""RSLAD against its formula."""

from __future__ import annotations

import pytest

from helpers.tiny_networks import assert_formula, divergence, logits, one_hot, probabilities, scene
from robustill.methods import build_method


@pytest.mark.parametrize(("mix", "t"), [(1.0, 1.0), (0.4, 1.0), (1.0, 2.0)])
def test_equals_the_formula(mix: float, t: float) -> None:
    s, method = scene(), build_method("rslad", mix=mix, temperature=t)
    outcome = method.outer(s.batch, s.x_adv, s.student, s.robust)
    target = mix * probabilities(logits(s.robust, s.batch.x), t) + (1 - mix) * one_hot(s.batch.y)
    clean, adversarial = (
        t**2 * divergence(target, probabilities(logits(s.student, x), t)) for x in (s.batch.x, s.x_adv)
    )
    assert_formula(outcome.loss, 5 / 6 * adversarial + 1 / 6 * clean)
    assert_formula(method.inner(s.batch, s.student, s.robust)(s.x_adv), adversarial)
