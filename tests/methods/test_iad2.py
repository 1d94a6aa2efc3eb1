"""IAD-II against its formula."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny_networks import assert_formula, cross_entropy, divergence, logits, probabilities, scene
from robustill.core.errors import ConfigError
from robustill.methods import build_method


@pytest.mark.parametrize("epoch", [39, 40])
def test_equals_the_formula_before_and_after_begin(epoch: int) -> None:
    s, t = scene(epoch=epoch, epochs=200), 2.0
    method = build_method("iad2", alpha1=0.4, alpha2=0.3, beta=0.5, temperature=t)
    outcome = method.outer(s.batch, s.x_adv, s.student, s.teachers)
    clean, adversarial = (probabilities(logits(s.student, x)) for x in (s.batch.x, s.x_adv))
    warm = probabilities(logits(s.student, s.x_adv), t)
    robust, natural = (t**2 * divergence(probabilities(logits(n, s.x_adv), t), warm) for n in (s.robust, s.natural))
    trust = probabilities(logits(s.robust, s.x_adv))[torch.arange(6), s.batch.y] ** 0.5 if epoch == 40 else 1
    mixed = trust * robust + (1 - trust) * t**2 * divergence(clean, adversarial)
    assert epoch == 40 or not outcome.terms["kl_self"].any()
    assert_formula(outcome.loss, 0.3 * cross_entropy(adversarial, s.batch.y) + 0.4 * mixed + 0.3 * natural)


def test_weights_beyond_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"alpha2 is 0\.3, .* at most 0\.2"):
        build_method("iad2", alpha1=0.8, alpha2=0.3)


@pytest.mark.parametrize("weights", [(0.8, 0.2), (0.9, 0.1), (2 / 3, 1 / 3), (1.0, 0.0)])
def test_weights_may_leave_the_label_nothing(weights: tuple[float, float]) -> None:
    # 1 − 0.8 − 0.2 is a little less than zero in floating point.
    s = scene()
    method = build_method("iad2", alpha1=weights[0], alpha2=weights[1], begin=1.0)
    outcome = method.outer(s.batch, s.x_adv, s.student, s.teachers)
    terms = outcome.terms
    assert torch.equal(outcome.loss, weights[0] * terms["kl_robust"] + weights[1] * terms["kl_natural"])
