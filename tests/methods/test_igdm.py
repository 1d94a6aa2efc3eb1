"""IGDM against its formula, on two bases."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny_networks import assert_formula, divergence, logits, probabilities, scene
from robustill.core.errors import ConfigError
from robustill.methods import build_method


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (1.5, 0.0)])
@pytest.mark.parametrize(("base", "options"), [("adaad", None), ("rslad", {"temperature": 2.0}), ("at", None)])
def test_equals_the_base_plus_the_matching_term(
    base: str, options: dict[str, float] | None, beta: float, gamma: float
) -> None:
    s = scene(epoch=4, epochs=10)
    method = build_method("igdm", weight=3.0, beta=beta, gamma=gamma, base=base, base_options=options)
    outcome = method.outer(s.batch, s.x_adv, s.student, s.robust)
    alone = build_method(base, **(options or {})).outer(s.batch, s.x_adv, s.student, s.robust).loss
    delta = s.x_adv - s.batch.x
    ahead, behind = s.batch.x + beta * delta, s.batch.x - gamma * delta
    assert (behind < 0).any() == (gamma > 0)
    target, prediction = (
        probabilities(logits(network, ahead) - logits(network, behind)) for network in (s.robust, s.student)
    )
    assert_formula(outcome.loss, alone.detach().double() + 3 * 5 / 10 * divergence(target, prediction))
    assert method.start == build_method(base).start


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (0.5, 2.0)])
def test_both_images_are_differentiated(beta: float, gamma: float) -> None:
    s = scene()
    method = build_method("igdm", beta=beta, gamma=gamma)
    term = method.outer(s.batch, s.x_adv, s.student, s.robust).terms["igdm"]
    (gradient,) = torch.autograd.grad(term.sum(), s.student[-1].weight)
    delta = s.x_adv - s.batch.x
    ahead, behind = s.batch.x + beta * delta, s.batch.x - gamma * delta
    target = (s.robust(ahead) - s.robust(behind)).softmax(1)
    prediction = (s.student(ahead) - s.student(behind)).softmax(1)
    (expected,) = torch.autograd.grad((target * (target / prediction).log()).sum(), s.student[-1].weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_a_base_with_two_teachers_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^method igdm has base 'mtard', which takes teachers robust, natural: expected a base"
    ):
        build_method("igdm", base="mtard")


def test_an_unknown_base_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean rslad"):
        build_method("igdm", base="rslda")


def test_the_state_of_its_base_is_updated() -> None:
    alone, added = build_method("dkl"), build_method("igdm", base="dkl")
    for epoch in (0, 1):
        s = scene(epoch=epoch, epochs=2)
        for method in (alone, added):
            method.update(s.batch, method.outer(s.batch, s.x_adv, s.student, s.robust))
    assert alone.weight.std() > 0
    assert torch.equal(added.base.weight, alone.weight)
