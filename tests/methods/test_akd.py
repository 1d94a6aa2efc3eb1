"""AKD against its formula and its two ends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.tiny_networks import assert_formula, logits, one_hot, probabilities, scene
from robustill.core.errors import ConfigError
from robustill.core.randomness import generator
from robustill.methods import Method, build_method
from robustill.teachers.ensemble import Ensemble
from robustill.threat import Threat
from robustill.training.step import Step


def gradients(loss: torch.Tensor, student: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss.sum(), list(student.parameters())))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
def test_equals_the_formula(alpha: float) -> None:
    s = scene()
    outcome = build_method("akd", alpha=alpha).outer(s.batch, s.x_adv, s.student, s.robust)
    target = alpha * probabilities(logits(s.robust, s.x_adv)) + (1 - alpha) * one_hot(s.batch.y)
    prediction = probabilities(logits(s.student, s.x_adv))
    assert_formula(outcome.loss, -(target * torch.log(prediction)).sum(1))


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_a_temperature_softens_the_teacher_alone(temperature: float) -> None:
    s = scene()
    outcome = build_method("akd", alpha=0.7, temperature=temperature).outer(s.batch, s.x_adv, s.student, s.robust)
    target = 0.7 * probabilities(logits(s.robust, s.x_adv), temperature) + 0.3 * one_hot(s.batch.y)
    assert_formula(outcome.loss, -(target * torch.log(probabilities(logits(s.student, s.x_adv)))).sum(1))


@pytest.mark.parametrize("wrong_classes", ["permuted", "even"])
def test_controls_leave_the_entropy_and_take_what_distinguishes_wrong_classes(wrong_classes: str) -> None:
    s = scene()
    method = build_method("akd", alpha=1.0, temperature=2.0, wrong_classes=wrong_classes)
    outcome = method.outer(s.batch, s.x_adv, s.student, s.robust)
    prediction = probabilities(logits(s.student, s.x_adv))
    teacher = probabilities(logits(s.robust, s.x_adv), 2.0)
    for row, (p, y, image) in enumerate(zip(teacher, s.batch.y.tolist(), s.batch.index.tolist(), strict=True)):
        wrong = [(y + place) % len(p) for place in range(1, len(p))]
        target = torch.zeros_like(p)
        if wrong_classes == "permuted":
            target[y] = p[y]
            for place, k in enumerate(wrong):
                target[k] = p[wrong[(place + 1 + image % (len(p) - 2)) % len(wrong)]]
            assert (target[wrong] != p[wrong]).all()
            assert sorted(target.tolist()) == sorted(p.tolist())
        else:
            # Of many such distributions, the one whose entropy is nearest.
            shares = torch.linspace(1e-6, len(wrong) / len(p), 200_001, dtype=torch.float64)
            entropies = -((1 - shares) * torch.log(1 - shares) + shares * torch.log(shares / len(wrong)))
            share = shares[(entropies + (p * torch.log(p)).sum()).abs().argmin()]
            target[:] = share / len(wrong)
            target[y] = 1 - share
        torch.testing.assert_close(
            outcome.loss[row].double(), -(target * torch.log(prediction[row])).sum(), rtol=1e-4, atol=1e-4
        )
    assert method.single_label
    with pytest.raises(ConfigError, match="wrong_classes"):
        build_method("akd", wrong_classes="shuffled")


def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    s = scene()
    both = Ensemble([s.robust, s.natural], weights=[3.0, 1.0])
    outcome = build_method("akd", alpha=1.0).outer(s.batch, s.x_adv, s.student, both)
    robust, natural = (probabilities(logits(teacher, s.x_adv)) for teacher in (s.robust, s.natural))
    prediction = probabilities(logits(s.student, s.x_adv))
    assert_formula(outcome.loss, -((0.75 * robust + 0.25 * natural) * torch.log(prediction)).sum(1))


def test_alpha_zero_is_adversarial_training() -> None:
    def step(method: Method) -> tuple[torch.Tensor, list[torch.Tensor]]:
        s = scene()
        loss = Step(s.student, method, s.robust, Threat(norm="linf", eps=0.1), steps=5, step_size=0.03)(
            s.batch, generator(3)
        ).loss
        return loss, gradients(loss, s.student)

    mixed, plain = step(build_method("akd", alpha=0.0)), step(build_method("at"))
    torch.testing.assert_close(mixed, plain, rtol=1e-6, atol=1e-7)


def test_alpha_one_has_the_gradient_of_the_divergence() -> None:
    s = scene()
    mixed = gradients(build_method("akd", alpha=1.0).outer(s.batch, s.x_adv, s.student, s.robust).loss, s.student)
    target, prediction = s.robust(s.x_adv).softmax(1), s.student(s.x_adv).softmax(1)
    divergence = (target * (target / prediction).log()).sum(1)
    torch.testing.assert_close(mixed, gradients(divergence, s.student), rtol=1e-4, atol=1e-6)
