"""KD+SWA against its formula."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny_networks import assert_formula, cross_entropy, logits, probabilities, scene
from robustill.core.errors import ConfigError
from robustill.methods import build_method


@pytest.mark.parametrize("t", [2.0, 3.0])
def test_equals_the_formula(t: float) -> None:
    s = scene()
    outcome = build_method("kdswa", temperature=t).outer(s.batch, s.x_adv, s.student, s.teachers)
    student = logits(s.student, s.x_adv)
    robust, natural = (
        -(t**2) * (probabilities(logits(network, s.x_adv), t) * torch.log(probabilities(student, t))).sum(1)
        for network in (s.robust, s.natural)
    )
    assert_formula(outcome.loss, 0.3 * cross_entropy(probabilities(student), s.batch.y) + 0.6 * robust + 0.1 * natural)


def test_weights_of_the_teachers_are_one_at_most() -> None:
    # 1 − 0.8 − 0.2 is a little less than zero in floating point.
    s = scene()
    method = build_method("kdswa", robust_weight=0.8, natural_weight=0.2)
    outcome = method.outer(s.batch, s.x_adv, s.student, s.teachers)
    terms = outcome.terms
    assert torch.equal(outcome.loss, 0.8 * terms["soft_ce_robust"] + 0.2 * terms["soft_ce_natural"])
    with pytest.raises(ConfigError, match=r"natural_weight is 0\.3, .* at most 0\.2"):
        build_method("kdswa", robust_weight=0.8, natural_weight=0.3)
