"""MTARD's and B-MTARD's losses, weights and temperatures against a loop written out."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.tiny_networks import Rounded, assert_formula, divergence, logits, probabilities, scene
from robustill.methods import Batch, build_method


@pytest.mark.parametrize(("rate", "sharpness"), [(0.0, 1.0), (0.2, 0.3), (0.2, 3.0), (6.0, 0.3), (60.0, 3.0)])
def test_four_steps_equal_the_formula(rate: float, sharpness: float) -> None:
    s, method = scene(), build_method("mtard", weight_rate=0.3, temperature_rate=rate)
    # The teacher that is surer of itself is the one whose temperature rises: the natural one, or the robust one.
    with torch.no_grad():
        for parameter in s.robust[-1].parameters():
            parameter *= sharpness
    weight, first, temperature = 0.5, None, [1.0, 1.0]
    for step, share in enumerate((1.0, 1.0, 1.0, 0.25)):
        # The second batch is smaller, as the last one of an epoch may be.
        batch = Batch(x=s.batch.x.roll(step, 0) * (1 - 0.3 * step), y=s.batch.y, index=s.batch.index)
        own = slice(4) if step == 1 else slice(6)
        # The learning rate of the last step is a quarter.
        batch, x_adv = replace(batch.part(own), rate_factor=share), s.x_adv[own]
        outcome = method.outer(batch, x_adv, s.student, s.teachers)
        method.update(batch, outcome)
        robust = probabilities(logits(s.robust, x_adv), temperature[0])
        natural = probabilities(logits(s.natural, batch.x), temperature[1])
        kl_robust = divergence(robust, probabilities(logits(s.student, x_adv)))
        kl_natural = divergence(natural, probabilities(logits(s.student, batch.x)))
        means = (kl_robust.mean(), kl_natural.mean())
        first = first or means
        relative = [now / then for now, then in zip(means, first, strict=True)]
        weight = weight - 0.3 * share * (weight - relative[1] / sum(relative))
        assert_formula(outcome.loss, (1 - weight) * kl_robust + weight * kl_natural)
        entropies = [-(p * torch.log(p)).sum(1).mean() for p in (robust, natural)]
        sign = 1.0 if entropies[0] > entropies[1] else -1.0
        temperature = [
            min(10.0, max(1.0, temperature[i] - rate * share * direction)) for i, direction in ((0, sign), (1, -sign))
        ]
        if step == 0:
            risen = [each > 1 for each in temperature]
            assert risen == [rate > 0 and sharpness > 1, rate > 0 and sharpness < 1]
    assert weight != 0.5
    torch.testing.assert_close(method.temperature, torch.tensor(temperature))


def test_the_weights_are_fixed_where_the_loss_is_differentiated() -> None:
    s, method = scene(), build_method("mtard", weight_rate=0.9)
    with torch.no_grad():
        method.update(s.batch, method.outer(s.batch, s.x_adv.flip(0), s.student, s.teachers))
    outcome = method.outer(s.batch, s.x_adv, s.student, s.teachers)
    (gradient,) = torch.autograd.grad(outcome.loss.sum(), s.student[-1].weight, retain_graph=True)
    weight = method._updated_natural_weight(s.batch, outcome.terms).detach()
    fixed = (1 - weight) * outcome.terms["kl_robust"] + weight * outcome.terms["kl_natural"]
    (expected,) = torch.autograd.grad(fixed.sum(), s.student[-1].weight)
    torch.testing.assert_close(gradient, expected)


def test_bf16_logits_are_divided_in_float32() -> None:
    s, losses = scene(), []
    for widened in (False, True):
        method = build_method("mtard")
        method.temperature.fill_(3.0)
        teachers = nn.ModuleDict({role: Rounded(each, widened=widened) for role, each in s.teachers.items()})
        losses.append(method.outer(s.batch, s.x_adv, s.student, teachers).loss)
    assert torch.equal(*losses)


def test_equally_certain_teachers_keep_temperatures() -> None:
    s = scene()
    s.teachers["natural"] = s.robust
    for rate in (0.0, 0.5):
        method = build_method("mtard", temperature_rate=rate)
        method.temperature.fill_(3.0)
        method.update(s.batch, method.outer(s.batch, s.batch.x, s.student, s.teachers))
        assert method.temperature.tolist() == [3.0, 3.0]


def test_a_copy_of_the_teacher_has_finite_weights() -> None:
    s, method = scene(), build_method("mtard", weight_rate=0.3)
    own = copy.deepcopy(s.student)
    teachers = nn.ModuleDict({"robust": own, "natural": own})
    weight = 0.5
    for step in range(3):
        outcome = method.outer(s.batch, s.x_adv, s.student, teachers)
        method.update(s.batch, outcome)
        assert outcome.loss.isfinite().all()
        robust, natural = (float(outcome.terms[name].detach().mean()) for name in ("kl_robust", "kl_natural"))
        if step > 0:
            # Both began at 0, so that they are weighed as they are; at first there was nothing to weigh.
            weight -= 0.3 * (weight - natural / (robust + natural))
        assert float(method.natural_weight) == pytest.approx(weight, rel=1e-4)
        with torch.no_grad():
            s.student[-1].weight *= 1.5
    assert weight != 0.5
