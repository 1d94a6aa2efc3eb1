"""Clean distillation against its formula."""

from __future__ import annotations

from helpers.tiny_networks import assert_formula, cross_entropy, divergence, logits, probabilities, scene
from robustill.methods import build_method


def test_equals_the_formula() -> None:
    s = scene()
    outcome = build_method("kd", alpha=0.7, temperature=3.0).outer(s.batch, s.x_adv, s.student, s.robust)
    student, teacher = logits(s.student, s.batch.x), logits(s.robust, s.batch.x)
    distillation = 9 * divergence(probabilities(teacher, 3.0), probabilities(student, 3.0))
    assert_formula(outcome.loss, 0.7 * distillation + 0.3 * cross_entropy(probabilities(student), s.batch.y))
