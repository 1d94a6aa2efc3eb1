"""Fair-ARD's class weights against a count by hand."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny_networks import assert_formula, divergence, logits, probabilities, scene
from robustill.core.errors import ConfigError
from robustill.methods import Batch, build_method


def batch_of(epoch: int) -> Batch:
    return Batch(
        x=torch.tensor([0.9, 0.8, 0.2, 0.6]).view(4, 1, 1, 1).expand(4, 1, 8, 8),
        y=torch.tensor([0, 0, 1, 1]),
        index=torch.arange(4),
        epoch=epoch,
        epochs=3,
    )


def threshold(images: torch.Tensor) -> torch.Tensor:
    """A network that predicts class 0 above a brightness of 0.5 and class 1 below."""
    return torch.stack([images[:, 0, 0, 0] - 0.5, 0.5 - images[:, 0, 0, 0]], dim=1)


def opposite(images: torch.Tensor) -> torch.Tensor:
    """A teacher that predicts the opposite."""
    return -threshold(images)


def test_weights_follow_the_correct_steps() -> None:
    method = build_method("fair_ard")
    first = batch_of(0)
    objective = method.inner(first, threshold, opposite)
    # Class 0 is right at the first step alone, class 1 at three of four.
    for brightness in ([0.9, 0.7, 0.6, 0.9], [0.4, 0.3, 0.2, 0.4], [0.1, 0.4, 0.4, 0.3], [0.4, 0.2, 0.4, 0.1]):
        objective(torch.tensor(brightness).view(4, 1, 1, 1).expand(4, 1, 8, 8))
    outcome = method.outer(first, first.x, threshold, opposite)
    method.update(first, outcome)
    plain = build_method("ard").outer(first, first.x, threshold, opposite).loss
    assert torch.equal(outcome.loss, plain)
    later = method.outer(batch_of(1), first.x, threshold, opposite).loss / plain
    # κ = (1, 3), κ^-2 = (1, 1/9), with mean 1: (1.8, 0.2), clamped from below by 5/6.
    torch.testing.assert_close(later, torch.tensor([1.8, 1.8, 5 / 6, 5 / 6]), rtol=1e-3, atol=0)


def test_classes_of_unequal_size_and_batches_of_unequal_size() -> None:
    method = build_method("fair_ard", beta=1.0, low=0.0, high=9.0)
    whole = batch_of(0)
    for own, steps in ((slice(0, 3), (0.9, 0.4)), (slice(3, 4), (0.4, 0.4)), (slice(1, 2), (0.9, 0.9))):
        part = whole.part(own)
        objective = method.inner(part, threshold, opposite)
        for brightness in steps:
            objective(torch.full((len(part.y), 1, 8, 8), brightness))
        method.update(part, method.outer(part, part.x, threshold, opposite))
    # Class 0: 1 + 1 + 2 steps over 3 images; class 1: 1 + 2 over 2. ω ∝ 1/κ with mean 1.
    kappa = torch.tensor([4 / 3, 3 / 2])
    torch.testing.assert_close(method._weights(batch_of(1), 2), 2 / kappa / (1 / kappa).sum(), rtol=1e-4, atol=0)


def test_weights_stay_within_their_bounds() -> None:
    method, batch = build_method("fair_ard", beta=30.0, high=1.5), batch_of(0)
    method.inner(batch, threshold, opposite)(torch.full((4, 1, 8, 8), 0.9))
    method.update(batch, method.outer(batch, batch.x, threshold, opposite))
    # No image of class 1 is right, and κ^-30 is beyond float32.
    torch.testing.assert_close(method._weights(batch_of(1), 2), torch.tensor([5 / 6, 1.5]))


def test_a_class_without_correct_steps_has_finite_weight() -> None:
    method, batch = build_method("fair_ard", beta=0.1, low=0.0, high=9.0), batch_of(0).part(slice(0, 3))
    method.inner(batch, threshold, opposite)(torch.full((3, 1, 8, 8), 0.9))
    method.update(batch, method.outer(batch, batch.x, threshold, opposite))
    # κ = (1, 0); the authors add 10⁻⁵.
    raw = torch.tensor([1.0, 1e-5]) ** -0.1
    torch.testing.assert_close(method._weights(batch_of(1), 2), 2 * raw / raw.sum(), rtol=1e-4, atol=0)


def test_a_class_of_one_image_counts_its_steps() -> None:
    method, batch = build_method("fair_ard", low=0.0, high=9.0), batch_of(0).part(slice(0, 3))
    objective = method.inner(batch, threshold, opposite)
    for brightness in (0.9, 0.4):
        objective(torch.full((3, 1, 8, 8), brightness))
    method.update(batch, method.outer(batch, batch.x, threshold, opposite))
    assert method._weights(batch_of(1), 2).tolist() == [1.0, 1.0]


def test_weights_resume_in_the_middle_of_an_epoch() -> None:
    s, method = scene(epoch=1), build_method("fair_ard", beta=1.0, low=0.0, high=9.0)
    for epoch in (0, 1):
        batch = scene(epoch=epoch).batch
        method.inner(batch, s.student, s.robust)(s.x_adv)
        method.update(batch, method.outer(batch, s.x_adv, s.student, s.robust))
    again = build_method("fair_ard", beta=1.0, low=0.0, high=9.0)
    again.load_state_dict(method.state_dict())
    losses = [each.outer(s.batch, s.x_adv, s.student, s.robust).loss for each in (method, again)]
    assert torch.equal(*losses)


def test_a_class_without_images_is_left_out() -> None:
    def three_classes(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([threshold(images), torch.full((len(images), 1), -9.0)], dim=1)

    method, batch = build_method("fair_ard"), batch_of(0)
    objective = method.inner(batch, three_classes, three_classes)
    for brightness in (0.9, 0.4, 0.4, 0.4):
        objective(torch.full((4, 1, 8, 8), brightness))
    method.update(batch, method.outer(batch, batch.x, three_classes, three_classes))
    weights = method._weights(batch_of(1), 3)
    torch.testing.assert_close(weights[:2], torch.tensor([1.8, 5 / 6]), rtol=1e-3, atol=0)


def test_rslad_can_be_the_base() -> None:
    s, method = scene(), build_method("fair_ard", base="rslad")
    assert method.start == "gaussian"
    plain = build_method("rslad").outer(s.batch, s.x_adv, s.student, s.robust).loss
    assert torch.equal(method.outer(s.batch, s.x_adv, s.student, s.robust).loss, plain)


@pytest.mark.parametrize("epoch", [0, 2])
def test_iad_can_be_the_base(epoch: int) -> None:
    s, method = scene(epoch=epoch, epochs=3), build_method("fair_ard", base="iad", low=0.0, high=9.0)
    plain = build_method("iad")
    # The weights of an earlier epoch.
    method.epoch, method.weight = epoch, torch.tensor([0.5, 1.0, 1.5, 2.0])
    loss = method.outer(s.batch, s.x_adv, s.student, s.robust).loss
    alone = plain.outer(s.batch, s.x_adv, s.student, s.robust).loss
    assert torch.equal(loss, torch.tensor([0.5, 1.0, 1.5, 2.0])[s.batch.y] * alone)
    objectives = [each.inner(s.batch, s.student, s.robust)(s.x_adv) for each in (method, plain)]
    assert torch.equal(*objectives)
    assert method.roles == ("robust",)


def test_three_steps_around_mtard_equal_the_formula() -> None:
    s, method = scene(epoch=1), build_method("fair_ard", base="mtard", base_options={"weight_rate": 0.3})
    method.epoch, method.weight = 1, torch.tensor([0.5, 1.0, 1.5, 2.0])
    method.right, method.images = torch.zeros(4), torch.zeros(4)
    omega = method.weight.double()[s.batch.y]
    natural_weight, first = 0.5, None
    for step in range(3):
        batch = Batch(x=s.batch.x * (1 - 0.3 * step), y=s.batch.y, index=s.batch.index, epoch=1, epochs=10)
        method.inner(batch, s.student, s.teachers)
        outcome = method.outer(batch, s.x_adv, s.student, s.teachers)
        with torch.no_grad():
            method.update(batch, outcome)
        pairs = [(s.robust, s.x_adv), (s.natural, batch.x)]
        kl_robust, kl_natural = (
            omega * divergence(probabilities(logits(teacher, x)), probabilities(logits(s.student, x)))
            for teacher, x in pairs
        )
        means = (kl_robust.mean(), kl_natural.mean())
        first = first or means
        relative = [now / then for now, then in zip(means, first, strict=True)]
        natural_weight = natural_weight - 0.3 * (natural_weight - relative[1] / sum(relative))
        assert_formula(outcome.loss, (1 - natural_weight) * kl_robust + natural_weight * kl_natural)
    assert abs(natural_weight - 0.5) > 1e-3
    assert method.roles == ("robust", "natural")


def test_other_bases_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^method fair_ard has base 'trades': expected ard, rslad, iad or mtard$"):
        build_method("fair_ard", base="trades")
