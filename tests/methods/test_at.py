"""PGD-AT against its formula."""

from __future__ import annotations

from helpers.tiny_networks import assert_formula, cross_entropy, logits, probabilities, scene
from robustill.methods import build_method


def test_equals_the_formula() -> None:
    s = scene()
    outcome = build_method("at").outer(s.batch, s.x_adv, s.student, s.robust)
    assert_formula(outcome.loss, cross_entropy(probabilities(logits(s.student, s.x_adv)), s.batch.y))


def test_the_adversary_maximises_the_same_loss() -> None:
    s, method = scene(), build_method("at")
    objective = method.inner(s.batch, s.student, s.robust)
    assert_formula(objective(s.x_adv), cross_entropy(probabilities(logits(s.student, s.x_adv)), s.batch.y))
