"""IAD-I against its formula."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny_networks import assert_formula, divergence, logits, one_hot, probabilities, scene
from robustill.methods import build_method


@pytest.mark.parametrize(("mix", "t"), [(1.0, 1.0), (0.3, 1.0), (1.0, 3.0)])
def test_equals_the_formula(mix: float, t: float) -> None:
    s = scene()
    outcome = build_method("iad", mix=mix, temperature=t).outer(s.batch, s.x_adv, s.student, s.robust)
    target = mix * probabilities(logits(s.robust, s.batch.x), t) + (1 - mix) * one_hot(s.batch.y)
    teacher = t**2 * divergence(target, probabilities(logits(s.student, s.x_adv), t))
    clean, adversarial = (probabilities(logits(s.student, x)) for x in (s.batch.x, s.x_adv))
    trust = probabilities(logits(s.robust, s.x_adv))[torch.arange(6), s.batch.y] ** 0.1
    assert_formula(outcome.loss, teacher + (1 - trust) * divergence(clean, adversarial))


@pytest.mark.parametrize(("epoch", "terms"), [(59, 1), (60, 2)])
def test_the_second_term_begins_at_epoch_60_of_200(epoch: int, terms: int) -> None:
    s = scene(epoch=epoch, epochs=200)
    outcome = build_method("iad").outer(s.batch, s.x_adv, s.student, s.robust)
    assert len(outcome.terms) == terms
    alone = divergence(probabilities(logits(s.robust, s.batch.x)), probabilities(logits(s.student, s.x_adv)))
    assert torch.allclose(outcome.loss.double(), alone, rtol=1e-4) == (terms == 1)
