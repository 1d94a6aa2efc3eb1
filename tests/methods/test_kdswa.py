"""KD+SWA against its formula."""

from __future__ import annotations

import torch

from robustill.methods import build_method
from tiny_networks import assert_formula, cross_entropy, logits, probabilities, scene


def test_equals_the_formula() -> None:
    s = scene()
    outcome = build_method("kdswa").outer(s.batch, s.x_adv, s.student, s.teachers)
    student = logits(s.student, s.x_adv)
    robust, natural = (
        -4 * (probabilities(logits(network, s.x_adv), 2.0) * torch.log(probabilities(student, 2.0))).sum(1)
        for network in (s.robust, s.natural)
    )
    assert_formula(outcome.loss, 0.3 * cross_entropy(probabilities(student), s.batch.y) + 0.6 * robust + 0.1 * natural)
