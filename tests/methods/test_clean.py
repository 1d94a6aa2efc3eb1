"""Ordinary training against its formula."""

from __future__ import annotations

from helpers.tiny_networks import assert_formula, cross_entropy, logits, probabilities, scene
from robustill.methods import build_method


def test_equals_the_formula_and_has_no_adversary() -> None:
    s, method = scene(), build_method("clean")
    assert method.inner(s.batch, s.student, s.robust) is None
    outcome = method.outer(s.batch, s.batch.x, s.student, s.robust)
    assert_formula(outcome.loss, cross_entropy(probabilities(logits(s.student, s.batch.x)), s.batch.y))
