"""ABSLD's loss and temperatures against a loop over classes written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.tiny_networks import CLASSES, Scene, assert_formula, divergence, logits, probabilities, scene
from robustill.core.errors import ConfigError
from robustill.methods import Method, build_method


def part_of(s: Scene, rows: slice, epoch: int, rate_factor: float) -> tuple:
    return replace(s.batch.part(rows), epoch=epoch, rate_factor=rate_factor), s.x_adv[rows]


def risks_of_classes(s: Scene, images: torch.Tensor, labels: list[int]) -> dict[int, float]:
    log_p = torch.log(probabilities(logits(s.student, images)))
    own = {c: [-log_p[i, c].item() for i in range(len(labels)) if labels[i] == c] for c in labels}
    return {c: sum(each) / len(each) for c, each in own.items()}


def trained(method: Method, s: Scene, epoch: int, rate_factor: float = 1.0) -> None:
    """Train an epoch of two batches."""
    for rows in (slice(4), slice(4, 6)):
        batch, x_adv = part_of(s, rows, epoch, rate_factor)
        with torch.no_grad():
            method.update(batch, method.outer(batch, x_adv, s.student, s.robust))


@pytest.mark.parametrize("as_coded", [False, True])
@pytest.mark.parametrize("rate", [0.1, 2.0])
def test_three_epochs_equal_the_formula(rate: float, as_coded: bool) -> None:
    s, method = scene(), build_method("absld", temperature_rate=rate, as_coded=as_coded)
    # One class has no image, and the others unequally many.
    labels = [0, 3, 0, 1, 1, 0]
    s.batch = replace(s.batch, y=torch.tensor(labels))
    temperatures = [dict.fromkeys(labels, 1.0) for _ in range(2)]
    risks: list[dict[int, float]] = []
    for epoch, factor in enumerate((1.0, 0.5, 1.0)):
        if epoch > 0:
            for temperature, risk in zip(temperatures, risks, strict=True):
                gap = {c: risk[c] - sum(risk.values()) / len(risk) for c in risk}
                for c in risk:
                    moved = temperature[c] - rate * factor * gap[c] / max(abs(g) for g in gap.values())
                    temperature[c] = min(5.0, max(0.5, moved))
        batch, x_adv = part_of(s, slice(6), epoch, factor)
        by_image = [torch.tensor([each[c] for c in labels], dtype=torch.float64)[:, None] for each in temperatures]
        if as_coded:
            by_image = [by_image[0] * by_image[1]] * 2
        target = [probabilities(logits(s.robust, batch.x) / each) for each in by_image]
        adversarial = divergence(target[0], probabilities(logits(s.student, x_adv)))
        clean = divergence(target[1], probabilities(logits(s.student, batch.x)))
        assert_formula(method.inner(batch, s.student, s.robust)(x_adv), adversarial)
        outcome = method.outer(batch, x_adv, s.student, s.robust)
        assert_formula(outcome.loss, 5 / 6 * adversarial + clean / 6)
        trained(method, s, epoch, factor)
        risks = [risks_of_classes(s, images, labels) for images in (s.x_adv, s.batch.x)]
        with torch.no_grad():
            # Another student in every epoch.
            s.student[-1].weight.mul_(0.5)
            s.student[-1].bias.add_(torch.arange(CLASSES) * 0.3)
    reached = [value for temperature in temperatures for value in temperature.values()]
    assert (min(reached) == 0.5) == (rate == 2.0)
    assert max(reached) > 1


def test_the_gradient_takes_the_targets_as_constants() -> None:
    s, method = scene(), build_method("absld", temperature_rate=1.0)
    trained(method, s, 8)
    (gradient,) = torch.autograd.grad(
        method.outer(s.batch, s.x_adv, s.student, s.robust).loss.sum(), s.student[-1].weight
    )
    temperature = method.temperature.clone()
    trained(method, s, 9)
    assert not torch.equal(method.temperature, temperature)
    targets = [(s.robust(s.batch.x) / each[s.batch.y, None]).softmax(1) for each in method.temperature]
    log_q = [s.student(images).log_softmax(1) for images in (s.x_adv, s.batch.x)]
    kl = [(p * (p.log() - q)).sum(1) for p, q in zip(targets, log_q, strict=True)]
    (expected,) = torch.autograd.grad((5 / 6 * kl[0] + kl[1] / 6).sum(), s.student[-1].weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_without_a_rate_it_is_rslad() -> None:
    s = scene()
    absld, rslad = build_method("absld", temperature_rate=0.0), build_method("rslad")
    trained(absld, s, 8)
    one, other = (method.outer(s.batch, s.x_adv, s.student, s.robust).loss for method in (absld, rslad))
    torch.testing.assert_close(one, other)
    assert absld.start == rslad.start
    assert build_method("absld").adversarial_weight == rslad.adversarial_weight


def test_equal_risks_leave_the_temperatures() -> None:
    s, method = scene(), build_method("absld")
    with torch.no_grad():
        for parameter in s.student[-1].parameters():
            parameter.zero_()
    trained(method, s, 0)
    trained(method, s, 1)
    assert torch.equal(method.temperature, torch.ones(2, CLASSES))


def test_a_learning_rate_of_zero_keeps_the_temperatures() -> None:
    s, method = scene(), build_method("absld")
    trained(method, s, 0)
    trained(method, s, 1, rate_factor=0.0)
    assert torch.equal(method.temperature, torch.ones(2, CLASSES))


def test_temperatures_resume_in_the_middle_of_an_epoch() -> None:
    s, method = scene(), build_method("absld")
    trained(method, s, 0)
    batch, x_adv = part_of(s, slice(4), 1, 1.0)
    method.update(batch, method.outer(batch, x_adv, s.student, s.robust))
    again = build_method("absld")
    again.load_state_dict(method.state_dict())
    for each in (method, again):
        batch, x_adv = part_of(s, slice(4, 6), 1, 1.0)
        each.update(batch, each.outer(batch, x_adv, s.student, s.robust))
    later = replace(s.batch, epoch=2)
    losses = [each.outer(later, s.x_adv, s.student, s.robust).loss for each in (method, again)]
    assert torch.equal(*losses)


def test_a_highest_temperature_below_the_lowest_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^highest is 0.4, expected a number of at least 0.5$"):
        build_method("absld", highest=0.4)
