"""The properties that every method must have, and the published defaults of each."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.tiny_networks import CLASSES, Rounded, shard_of, tiny_batch, tiny_network, tiny_teacher
from robustill.core.contexts import evaluating, frozen
from robustill.core.errors import ConfigError
from robustill.core.randomness import generator
from robustill.methods import METHODS, ImageState, Method, Outcome, build_method, method_options
from robustill.teachers.ensemble import combine
from robustill.threat import Threat
from robustill.training.cost import Passes, count_passes
from robustill.training.step import Step


class Published(NamedTuple):
    """The defaults and the cost of a method."""

    defaults: dict[str, Any]
    passes: tuple[int, int, int, int]
    """Passes of a step with ten steps of PGD: student forward, student backward, teacher forward, teacher backward."""
    batchnorm: int
    """How often a step updates the student's running statistics."""
    independent: bool = True
    """Whether a sample's loss is independent of the batch, given networks without BatchNorm and the method's state."""


CONTRACT: dict[str, Published] = {
    "clean": Published({}, (1, 1, 0, 0), 1),
    "at": Published({}, (11, 11, 0, 0), 1),
    "trades": Published({"beta": 6.0, "joint_forward": False}, (13, 12, 0, 0), 2),
    "mart": Published({"beta": 5.0, "joint_forward": False}, (12, 12, 0, 0), 2),
    "dkl": Published(
        {"alpha": 4.0, "beta": 20.0, "temperature": 4.0, "gamma": 1.0, "inner_beta": 0.0, "joint_forward": False},
        (13, 12, 0, 0),
        2,
    ),
    "sgls": Published({"momentum": 0.9, "clean": 0.2, "begin": 0.0}, (12, 11, 0, 0), 2),
    "adr": Published(
        {
            "weight": 0.95,
            "first_weight": 0.7,
            "temperature": 2.0,
            "first_temperature": 2.5,
            "base": "at",
            "base_options": None,
        },
        (11, 11, 1, 0),
        1,
    ),
    "te": Published({"momentum": 0.9, "weight": 300.0, "begin": 0.45, "ramp": 0.3}, (12, 11, 0, 0), 1),
    "rebat": Published({"beta": 1.0, "begin": 0.525}, (11, 11, 1, 0), 1),
    "peerad": Published(
        {
            "label": 0.0,
            "from_peer": 1.0,
            "from_self": 1.0,
            "temperature": 5.0,
            "peer_label": 1.0,
            "peer_from_student": 0.1,
            "peer": None,
            "peer_options": None,
            "as_coded": True,
            "joint_forward": False,
        },
        (12, 12, 2, 1),
        2,
    ),
    "lbgat": Published(
        {"beta": 0.0, "natural": None, "natural_options": None, "joint_forward": False}, (12, 11, 1, 1), 1
    ),
    "kd": Published({"alpha": 0.9, "temperature": 4.0}, (1, 1, 1, 0), 1),
    "akd": Published({"alpha": 0.8, "temperature": 1.0, "wrong_classes": "teacher"}, (11, 11, 1, 0), 1),
    "ard": Published({"alpha": 1.0, "temperature": 30.0, "mix": 1.0, "joint_forward": False}, (11, 11, 1, 0), 1),
    "rslad": Published(
        {"adversarial_weight": 5 / 6, "temperature": 1.0, "mix": 1.0, "joint_forward": False}, (12, 12, 1, 0), 2
    ),
    "iad": Published(
        {"beta": 0.1, "temperature": 1.0, "begin": 0.3, "mix": 1.0, "joint_forward": False}, (12, 12, 2, 0), 2
    ),
    "iad2": Published(
        {"alpha1": 0.5, "alpha2": 0.25, "beta": 0.1, "temperature": 1.0, "begin": 0.2, "joint_forward": False},
        (12, 12, 2, 0),
        2,
    ),
    "kdswa": Published({"robust_weight": 0.6, "natural_weight": 0.1, "temperature": 2.0}, (11, 11, 2, 0), 1),
    "adaad": Published({"alpha": 1.0, "joint_forward": False}, (11, 11, 11, 10), 1),
    "adaiad": Published({"beta": 0.1, "temperature": 30.0, "begin": 0.3, "joint_forward": False}, (12, 12, 11, 10), 2),
    "mtard": Published(
        {"weight_rate": 0.025, "temperature_rate": 0.0, "joint_forward": False}, (12, 12, 2, 0), 2, independent=False
    ),
    "igdm": Published(
        {"weight": 1.0, "beta": 1.0, "gamma": 1.0, "base": "adaad", "base_options": None}, (12, 12, 12, 10), 2
    ),
    "saad": Published(
        {"entropy_scale": 5.0, "matching": 1.0, "beta": 0.0, "linearisation": 1.0, "order": 1.0},
        (12, 12, 3, 1),
        2,
        independent=False,
    ),
    "fair_ard": Published(
        {"beta": 2.0, "low": 5 / 6, "high": 5 / 2, "base": "ard", "base_options": None}, (11, 11, 1, 0), 1
    ),
    "hat": Published({"beta": 2.5, "gamma": 0.5, "distance": 2.0}, (14, 13, 1, 0), 3),
    "absld": Published(
        {
            "adversarial_weight": 5 / 6,
            "temperature_rate": 0.1,
            "lowest": 0.5,
            "highest": 5.0,
            "as_coded": False,
            "joint_forward": False,
        },
        (12, 12, 1, 0),
        2,
    ),
    "dgad": Published({"beta": 1.0, "joint_forward": False}, (12, 12, 12, 10), 2),
}


def make_teacher(method: Method, members: int) -> nn.Module | None:
    seeds = {role: 10 * number for number, role in enumerate(method.roles, start=1)}
    return combine((role, 1.0, tiny_teacher(seeds[role] + i)) for role in method.roles for i in range(members))


def make_step(
    method: Method, student: nn.Module, members: int = 1, *, batchnorm_of_peer: bool = True, **settings: Any
) -> Step:
    method.set_up(lambda name=None, **options: tiny_network(7, batchnorm=batchnorm_of_peer))
    threat = Threat(norm="l2", eps=0.5)
    return Step(student, method, make_teacher(method, members), threat, **{"steps": 3, "step_size": 0.2, **settings})


def run_step(step: Step, batch: Any) -> Outcome:
    # One generator for each sample, so that a sample's start does not depend on the batch it is in.
    outcome: Outcome = step(batch, [generator(0, "attack", int(i)) for i in batch.index])
    return outcome


def test_every_method_is_in_the_contract() -> None:
    assert list(CONTRACT) == list(METHODS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_finite(name: str, members: int, precision: Any) -> None:
    student, batch = tiny_network(1), tiny_batch()
    step = make_step(build_method(name), student, members, precision=precision)
    teacher = step._teacher[0]
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    modes = [module.training for module in teacher.modules()]
    outcome = run_step(step, batch)
    assert outcome.logits.shape == (len(batch.y), CLASSES)
    for value in (outcome.loss, *outcome.terms.values()):
        assert value.shape == (len(batch.y),)
        assert value.dtype == torch.float32
        assert value.isfinite().all()
    outcome.loss.mean().backward()
    for key, parameter in [*student.named_parameters(), *step.method.named_parameters()]:
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert [module.training for module in teacher.modules()] == modes
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(key.startswith("_teacher") for key in step.state_dict())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in METHODS),
        ("ard", {"alpha": 0.6}),
        ("adaad", {"alpha": 0.6}),
        ("saad", {"beta": 0.5}),
        ("lbgat", {"beta": 6.0}),
    ],
)
def test_clean_logits_are_returned_if_computed(name: str, options: dict[str, float]) -> None:
    student, batch = tiny_network(1).eval(), tiny_batch()
    step = make_step(build_method(name, **options), student)
    x_adv = (batch.x + 0.01).clamp(0, 1)
    is_clean = []

    def recording_student(images: torch.Tensor) -> torch.Tensor:
        is_clean.append(images is batch.x)
        return student(images)

    outcome = step.method.outer(batch, x_adv, recording_student, step._teacher[0])
    if step.method.inner(batch, student, step._teacher[0]) is None:
        torch.testing.assert_close(outcome.logits, student(batch.x))
    else:
        assert (outcome.clean_logits is not None) == any(is_clean)
        torch.testing.assert_close(outcome.logits, student(x_adv))
    if outcome.clean_logits is not None:
        torch.testing.assert_close(outcome.clean_logits, student(batch.x))


# Options with other state, other terms or other teachers than the defaults.
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in METHODS),
    ("dkl", {"gamma": 0.4}),
    ("igdm", {"beta": 0.5, "gamma": 2.0, "base": "absld"}),
    ("fair_ard", {"base": "iad"}),
    ("fair_ard", {"base": "mtard"}),
    ("saad", {"order": 2.0}),
    ("lbgat", {"beta": 6.0}),
    ("absld", {"as_coded": True}),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("members", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_a_step_with_awp_is_finite(name: str, options: dict[str, Any], members: int, precision: Any) -> None:
    # A perturbation larger than the rounding of bf16; no attack steps, so that both have the same x'.
    students = [tiny_network(1) for _ in range(2)]
    steps = [
        make_step(build_method(name, **options), student, members, steps=0, precision=precision, awp=awp)
        for student, awp in zip(students, (None, 0.05), strict=True)
    ]
    before = [parameter.clone() for parameter in students[1].parameters()]
    teacher = {key: value.clone() for key, value in steps[1]._teacher[0].state_dict().items()}
    plain, perturbed = (run_step(step, tiny_batch()) for step in steps)
    assert perturbed.loss.isfinite().all()
    assert perturbed.loss.mean() > plain.loss.mean()
    perturbed.loss.mean().backward()
    for (key, parameter), value in zip(students[1].named_parameters(), before, strict=True):
        assert torch.equal(parameter, value), key
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    assert int(students[1][1].num_batches_tracked) == int(students[0][1].num_batches_tracked)
    for one, other in zip(steps[0].method.parameters(), steps[1].method.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(value, teacher[key]) for key, value in steps[1]._teacher[0].state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in steps[1]._teacher[0].parameters())


@pytest.mark.parametrize("base", [name for name, method in METHODS.items() if set(method.roles) <= {"robust"}])
def test_igdm_extends_every_possible_base(base: str) -> None:
    alone, added = (
        make_step(method, tiny_network(1), steps=0)
        for method in (build_method(base), build_method("igdm", base=base, weight=0.5))
    )
    # In the last epoch IGDM has its full weight.
    one, both = run_step(alone, tiny_batch()), run_step(added, tiny_batch())
    torch.testing.assert_close(both.loss, one.loss + 0.5 * both.terms["igdm"])
    assert both.terms.keys() == {*one.terms, "igdm"}
    both.loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in added.student.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_mixed_labels_are_used_in_place_of_hard_ones(name: str) -> None:
    def losses(shift: int) -> torch.Tensor:
        step = make_step(build_method(name), tiny_network(1))
        run_step(step, tiny_batch(seed=1, epoch=8))
        batch = tiny_batch()
        label = F.one_hot(batch.y, CLASSES).float()
        mixed = 0.6 * label + 0.4 * label.roll(1, dims=1)
        outcome = run_step(step, replace(batch, y=(batch.y + shift) % CLASSES, mixed=mixed))
        outcome.loss.mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in step.student.parameters())
        return outcome.loss

    # With mixed labels `y` must have no influence on attack or loss; otherwise the method must refuse mixed labels. So
    # must one that keeps numbers of each image, since a mixed image is another one in every epoch.
    keeps_images = any(isinstance(module, ImageState) for module in build_method(name).modules())
    assert (not torch.equal(losses(0), losses(1)) or keeps_images) == METHODS[name].single_label


@pytest.mark.parametrize("name", METHODS)
def test_bf16_stays_near_fp32(name: str) -> None:
    # No attack steps: rounding would lead the two attacks to different images.
    fp32, bf16 = (
        run_step(make_step(build_method(name), tiny_network(1), steps=0, precision=precision), tiny_batch()).loss
        for precision in ("fp32", "bf16")
    )
    torch.testing.assert_close(bf16, fp32, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_the_attack_leaves_the_student_unchanged(name: str) -> None:
    student = tiny_network(1)
    student[1].eval()
    student[0].weight.requires_grad_(False)
    step = make_step(build_method(name), student)
    modes = [module.training for module in student.modules()]
    flags = [parameter.requires_grad for parameter in student.parameters()]
    before = {key: value.clone() for key, value in student.state_dict().items()}
    x_adv = step.attack(tiny_batch(), generator(0))
    assert [module.training for module in student.modules()] == modes
    assert [parameter.requires_grad for parameter in student.parameters()] == flags
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert all(p.grad is None for p in [*student.parameters(), *step.method.parameters()])
    assert not x_adv.requires_grad
    assert step.threat.contains(x_adv, tiny_batch().x).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_attack_on_the_folded_copy_is_the_same(name: str) -> None:
    images, losses = [], []
    for light in (False, True):
        student = tiny_network(1)
        step = make_step(build_method(name), student, light=light)
        # The second step's attack is on a student that the first one has changed.
        run_step(step, tiny_batch(seed=1, epoch=8)).loss.mean().backward()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= 0.01 * parameter.grad  # type: ignore[operator]
        images.append(step.attack(tiny_batch(), [generator(0, i) for i in range(6)]))
        losses.append(run_step(step, tiny_batch()).loss)
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_batchnorm_is_updated_as_documented(name: str) -> None:
    student = tiny_network(1)
    run_step(make_step(build_method(name), student, batchnorm="eval"), tiny_batch())
    assert int(student[1].num_batches_tracked) == CONTRACT[name].batchnorm


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_state_is_restored_from_a_checkpoint(name: str, options: dict[str, Any]) -> None:
    batches = [tiny_batch(seed=seed, epoch=epoch) for seed, epoch in enumerate([7, 8, 8, 9])]
    student = tiny_network(1)
    step = make_step(build_method(name, **options), student)
    for batch in batches[:3]:
        run_step(step, batch)
    file = io.BytesIO()
    torch.save({"student": student.state_dict(), "method": step.method.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    again = make_step(build_method(name, **options), tiny_network(2))
    again.student.load_state_dict(stored["student"])
    again.method.load_state_dict(stored["method"])
    assert torch.equal(run_step(again, batches[3]).loss, run_step(step, batches[3]).loss)


@pytest.mark.parametrize("name", METHODS)
def test_losses_do_not_depend_on_the_batch_size(name: str) -> None:
    def losses(start: int, stop: int) -> torch.Tensor:
        step = make_step(build_method(name), tiny_network(1, batchnorm=False), batchnorm_of_peer=False)
        run_step(step, tiny_batch(seed=1, epoch=8))
        return run_step(step, shard_of(tiny_batch(), start, stop)).loss

    equal = torch.allclose(torch.cat([losses(0, 2), losses(2, 6)]), losses(0, 6), rtol=1e-4, atol=1e-5)
    assert equal == CONTRACT[name].independent
    assert METHODS[name].whole_batch != equal


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_may_be_one_image_of_the_last_class(name: str) -> None:
    batch = shard_of(tiny_batch(), 0, 1)
    batch = replace(batch, y=torch.tensor([CLASSES - 1]))
    step = make_step(build_method(name), tiny_network(1, batchnorm=False), batchnorm_of_peer=False)
    for epoch in (0, 1):
        assert run_step(step, replace(batch, epoch=epoch)).loss.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_the_attack_increases_the_inner_objective(name: str) -> None:
    student, batch = tiny_network(1).eval(), tiny_batch()
    step = make_step(build_method(name), student, steps=0)
    with evaluating(student, step.method), frozen(student):
        objective = step.method.inner(batch, student, step._teacher[0])
        if objective is None:
            assert CONTRACT[name].passes[0] == 1
            return
        values = []
        for steps in (0, 1, 10):
            step.steps, step.step_size = steps, 0.05
            values.append(objective(step.attack(batch, generator(0))).mean().item())
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", [name for name in METHODS if "joint_forward" in method_options(name)])
def test_joint_forward_is_one_pass_with_the_same_loss(name: str) -> None:
    # With these options every method uses x and x'.
    options = {"ard": {"alpha": 0.5}, "adaad": {"alpha": 0.5}, "lbgat": {"beta": 6.0}}.get(name, {})
    losses, updates = [], []
    for joint in (False, True):
        method = build_method(name, joint_forward=joint, **options)
        step = make_step(method, tiny_network(1, batchnorm=False), batchnorm_of_peer=False)
        losses.append(run_step(step, tiny_batch()).loss)
        student = tiny_network(1)
        run_step(make_step(method, student), tiny_batch())
        updates.append(int(student[1].num_batches_tracked))
    torch.testing.assert_close(losses[1], losses[0])
    assert updates == [2, 1]
    apart, joined = (
        count_passes(build_method(name, joint_forward=joint, **options), steps=2) for joint in (False, True)
    )
    assert apart == joined


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_the_outer_loss_changes_no_state(name: str, options: dict[str, Any]) -> None:
    student, batch = tiny_network(1), tiny_batch()
    step = make_step(build_method(name, **options), student)
    run_step(step, tiny_batch(epoch=8))
    x_adv = step.attack(batch, generator(0))
    with evaluating(step):
        once, twice = (step.method.outer(batch, x_adv, student, step._teacher[0]).loss for _ in range(2))
    assert torch.equal(once, twice)


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_as_published(name: str) -> None:
    options = method_options(name)
    assert {key: option.default for key, option in options.items()} == CONTRACT[name].defaults
    docstring = METHODS[name].__doc__ or ""
    assert [key for key in options if f"{key}:" not in docstring] == []
    assert [word for word in METHODS[name].reference.replace(" et al.", "").split() if word not in docstring] == []


@pytest.mark.parametrize("name", METHODS)
def test_the_passes_of_a_step_are_as_documented(name: str) -> None:
    forward, backward, teacher_forward, teacher_backward = CONTRACT[name].passes
    assert count_passes(build_method(name), steps=10) == Passes(
        student_forward=forward,
        student_backward=backward,
        teacher_forward=teacher_forward,
        teacher_backward=teacher_backward,
    )


# Ranges that depend on another option, at the default of that option.
BOUND_BY_OTHERS = {
    "alpha2": (0.0, 0.5),
    "natural_weight": (0.0, 0.4),
    "high": (5 / 6, math.inf),
    "highest": (0.5, math.inf),
}


def documented_range(name: str, option: str) -> tuple[float, float]:
    """Return the range of a number according to the docstring."""
    text = (METHODS[name].__doc__ or "").split(f" {option}: ", 1)[1]
    entry = re.split(r"\n +\w+: |\n\n", text, maxsplit=1)[0]
    if bounds := re.search(r"in \[(\d),([\d.]+)\]", entry):
        return float(bounds[1]), float(bounds[2])
    if "> 0" in entry:
        return 1e-3, math.inf
    assert "≥ 0" in entry, f"{name}'s {option} has no range: {entry}"
    return 0.0, math.inf


@pytest.mark.parametrize("name", METHODS)
def test_options_have_their_documented_range(name: str) -> None:
    for option, default in CONTRACT[name].defaults.items():
        if type(default) is not float:
            continue
        low, high = BOUND_BY_OTHERS.get(option) or documented_range(name, option)
        for invalid in (low - 1e-4, high + 1e-4, math.nan, "much"):
            if invalid != math.inf:
                with pytest.raises(ConfigError, match=rf"^{option} is .*, expected a number of at least"):
                    build_method(name, **{option: invalid})
        # Two weights whose sum is at most 1: at the bound of one the other must be 0.
        others = {"alpha1": {"alpha2": 0.0}, "robust_weight": {"natural_weight": 0.0}}.get(option, {})
        for valid in (low, min(high, 5 / 2)):
            assert getattr(build_method(name, **{option: valid}, **others), option) == valid


# Weights of the terms, with the published options, in a first step of the last epoch; None if they vary by sample.
WEIGHTS: dict[str, dict[str, float | None]] = {
    "clean": {},
    "at": {},
    "trades": {"ce": 1, "kl": 6},
    "mart": {"bce": 1, "kl": 5},
    "dkl": {"ce": 1, "soft_ce": 4, "wmse": 20},
    "sgls": {},
    "adr": {},
    "te": {"ce": 1, "mse": 300},
    "rebat": {"ce": 1, "kl": 1},
    "kd": {"kl": 0.9, "ce": 0.1},
    "akd": {},
    "ard": {"kl": 1},
    "rslad": {"kl_adversarial": 5 / 6, "kl_clean": 1 / 6},
    "iad": {"kl_teacher": 1, "kl_self": None},
    "iad2": {"ce": 0.25, "kl_robust": None, "kl_self": None, "kl_natural": 0.25},
    "kdswa": {"ce": 0.3, "soft_ce_robust": 0.6, "soft_ce_natural": 0.1},
    "adaad": {"kl_adversarial": 1},
    "adaiad": {"kl_teacher": 1, "kl_self": None},
    "mtard": {"kl_robust": 0.5, "kl_natural": 0.5},
    "igdm": {"kl_adversarial": 1, "igdm": 1},
    "saad": {"kl_adversarial": None, "igdm": None},
    "fair_ard": {"kl": 1},
    "peerad": {"ce": 0, "kl_peer": 1 / CLASSES, "kl_self": 1 / CLASSES, "peer_ce": 1, "peer_kl": 0.1 / CLASSES},
    "lbgat": {"mse": 1, "natural_ce": 1},
    "hat": {"ce": 1, "kl": 2.5, "helper_ce": 0.5},
    "absld": {"kl_adversarial": 5 / 6, "kl_clean": 1 / 6},
    "dgad": {"kl_adversarial": None, "kl_clean": None, "mse": 1},
}


# Weights that depend on the options or the epoch.
OTHER_WEIGHTS: list[tuple[str, dict[str, float], int, dict[str, float | None]]] = [
    ("ard", {"alpha": 0.6}, 9, {"kl": 0.6, "ce": 0.4}),
    ("adaad", {"alpha": 0.6}, 9, {"kl_adversarial": 0.6, "kl_clean": 0.4}),
    ("te", {}, 0, {"ce": 1}),
    ("rebat", {}, 0, {"ce": 1}),
    ("iad", {}, 0, {"kl_teacher": 1}),
    ("adaiad", {}, 0, {"kl_teacher": 1}),
    ("iad2", {}, 0, {"ce": 0.25, "kl_robust": 0.5, "kl_self": 0, "kl_natural": 0.25}),
    ("saad", {"beta": 0.5}, 9, {"kl_adversarial": None, "igdm": None, "kl_clean": None}),
    ("peerad", {"as_coded": False}, 9, {"ce": 0, "kl_peer": 1, "kl_self": 1, "peer_ce": 1, "peer_kl": 0.1}),
    ("lbgat", {"beta": 6.0}, 9, {"mse": 1, "natural_ce": 1, "kl": 6}),
]


@pytest.mark.parametrize(
    ("name", "options", "epoch", "weights"),
    [*((name, {}, 9, weights) for name, weights in WEIGHTS.items()), *OTHER_WEIGHTS],
)
def test_the_loss_is_the_weighted_sum_of_its_terms(
    name: str, options: dict[str, float], epoch: int, weights: dict[str, float | None]
) -> None:
    outcome = run_step(make_step(build_method(name, **options), tiny_network(1)), tiny_batch(epoch=epoch))
    assert outcome.terms.keys() == weights.keys()
    assert all(each.dtype == torch.float32 for each in outcome.terms.values())
    fixed_part = sum(weight * outcome.terms[term] for term, weight in weights.items() if weight is not None)
    varying = [term for term, weight in weights.items() if weight is None]
    if weights and not varying:
        torch.testing.assert_close(outcome.loss, fixed_part)
    elif varying and name != "saad":
        # The varying weights are in [0,1].
        assert (outcome.loss >= fixed_part).all()
        assert (outcome.loss <= fixed_part + sum(outcome.terms[term] for term in varying)).all()


@pytest.mark.parametrize("epoch", [0, 9])
@pytest.mark.parametrize("name", METHODS)
def test_losses_of_bf16_logits_are_in_float32(name: str, epoch: int) -> None:
    # Division of bf16 by this temperature is inexact.
    inexact = {"temperature": 3.0, "temperature_rate": 2.0}
    options = {key: value for key, value in inexact.items() if key in method_options(name)}
    losses = []
    for widened in (False, True):
        method = build_method(name, **options)
        method.set_up(lambda network=None, widened=widened, **_: Rounded(tiny_network(7), widened=widened))
        student = Rounded(tiny_network(1), widened=widened).eval()
        teacher = combine(
            (role, 1.0, Rounded(tiny_teacher(place), widened=widened)) for place, role in enumerate(method.roles)
        )
        batch = tiny_batch(epoch=epoch)
        x_adv = (batch.x + 0.03 * torch.randn(batch.x.shape, generator=generator(0))).clamp(0, 1)
        objective = method.inner(batch, student, teacher)
        inner = torch.zeros(1) if objective is None else objective(x_adv)
        outcome = method.outer(batch, x_adv, student, teacher)
        method.update(batch, outcome)
        # The state that a step updates may be a temperature, too.
        later = method.outer(replace(batch, epoch=epoch + 1), x_adv, student, teacher)
        losses.append((inner, outcome.loss, outcome.terms, later.loss, outcome.clean_logits is None))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
