"""ARD against its formula."""

from __future__ import annotations

import pytest

from helpers.tiny_networks import assert_formula, cross_entropy, divergence, logits, one_hot, probabilities, scene
from robustill.methods import build_method


@pytest.mark.parametrize(("alpha", "mix"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.3), (0.6, 0.3)])
def test_equals_the_formula(alpha: float, mix: float) -> None:
    s = scene()
    method = build_method("ard", alpha=alpha, mix=mix, temperature=4.0)
    outcome = method.outer(s.batch, s.x_adv, s.student, s.robust)
    target = mix * probabilities(logits(s.robust, s.batch.x), 4.0) + (1 - mix) * one_hot(s.batch.y)
    distillation = 16 * divergence(target, probabilities(logits(s.student, s.x_adv), 4.0))
    label = cross_entropy(probabilities(logits(s.student, s.batch.x)), s.batch.y)
    assert_formula(outcome.loss, alpha * distillation + (1 - alpha) * label)


def test_the_published_temperature() -> None:
    s = scene()
    outcome = build_method("ard").outer(s.batch, s.x_adv, s.student, s.robust)
    target = probabilities(logits(s.robust, s.batch.x), 30.0)
    # float32 leaves about five digits of a divergence this small.
    assert_formula(outcome.loss, 900 * divergence(target, probabilities(logits(s.student, s.x_adv), 30.0)), rtol=1e-3)


def test_without_the_teacher_the_target_is_the_label() -> None:
    s = scene()
    outcome = build_method("ard", mix=0.0, temperature=1.0).outer(s.batch, s.x_adv, s.student, s.robust)
    assert_formula(outcome.loss, cross_entropy(probabilities(logits(s.student, s.x_adv)), s.batch.y))
