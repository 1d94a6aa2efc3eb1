"""Adversarial weight perturbation is compared with the published procedure on a copy of the network."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.small_runs import lines, small_config, weights
from helpers.tiny_networks import tiny_batch, tiny_network, tiny_teacher
from robustill.core.randomness import generator
from robustill.losses import ce
from robustill.methods import AT, TRADES, Batch, build_method
from robustill.threat import Threat
from robustill.training.awp import perturb_weights
from robustill.training.loop import train
from robustill.training.step import Step

THREAT = Threat(norm="linf", eps=0.1)


def make(method, student, **settings):
    return Step(student, method, None, THREAT, **{"steps": 2, "step_size": 0.05, "awp": 0.01, **settings})


def perturbed_by_hand(student, loss_of, gamma):
    """A copy of the network with w + gamma * |w| * g / |g| in every weight of more than one dimension."""
    climber = copy.deepcopy(student)
    loss_of(climber).backward()
    with torch.no_grad():
        for parameter in climber.parameters():
            if parameter.ndim > 1 and parameter.grad.any():
                length = parameter.square().sum().sqrt()
                parameter += gamma * length * parameter.grad / parameter.grad.square().sum().sqrt()
    climber.zero_grad()
    return climber


@pytest.mark.parametrize("gamma", [0.005, 0.3])
def test_awp_matches_the_published_procedure(gamma):
    batch, student = tiny_batch(), tiny_network(1)
    x_adv = make(AT(), student).attack(batch, generator(0))
    expected = copy.deepcopy(student)
    climber = perturbed_by_hand(expected, lambda network: ce(network(x_adv), batch.y).mean(), gamma)
    climber.load_state_dict({**climber.state_dict(), **dict(expected.named_buffers())})
    losses = ce(climber(x_adv), batch.y)
    losses.mean().backward()
    outcome = make(AT(), student, awp=gamma)(batch, generator(0))
    torch.testing.assert_close(outcome.loss, losses)
    assert not torch.allclose(losses, ce(expected(x_adv), batch.y), rtol=1e-4)
    outcome.loss.mean().backward()
    for own, other in zip(student.parameters(), climber.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    for own, other in zip(student.buffers(), climber.buffers(), strict=True):
        torch.testing.assert_close(own, other)


def test_the_loss_rises_with_gamma():
    batch = tiny_batch()
    heights = [
        make(TRADES(), tiny_network(1), awp=awp)(batch, generator(0)).loss.mean().item() for awp in (None, 0.01, 0.05)
    ]
    assert heights[0] < heights[1] < heights[2]


def test_the_weights_are_not_changed():
    student = tiny_network(1)
    before = [(id(each), each.clone()) for each in student.parameters()]
    outcome = make(AT(), student)(tiny_batch(), generator(0))
    assert all(each.grad is None for each in student.parameters())
    outcome.loss.mean().backward()
    for (identity, value), each in zip(before, student.parameters(), strict=True):
        assert identity == id(each)
        assert torch.equal(value, each)


def test_a_failing_loss_does_not_change_the_statistics():
    student = tiny_network(1)
    before = {name: value.clone() for name, value in student.state_dict().items()}

    class Broken(AT):
        def outer(self, batch, x_adv, student, teacher):
            student(x_adv)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(Broken(), student)(tiny_batch())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_biases_frozen_and_unused_weights_are_not_perturbed():
    student = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    student[1].weight.requires_grad_(False)
    student.idle = nn.Linear(4, 4)
    student.idle.forward = lambda x: x
    seen = {}

    def loss(network):
        return network(torch.ones(3, 1, 2, 2)).square().mean()

    network = perturb_weights(student, [loss], gamma=0.1)
    student[2].register_forward_hook(lambda layer, *_: seen.update(weight=layer.weight, bias=layer.bias))
    student[1].register_forward_hook(lambda layer, *_: seen.update(frozen=layer.weight))
    network(torch.ones(3, 1, 2, 2))
    assert torch.equal(seen["bias"], student[2].bias)
    assert torch.equal(seen["frozen"], student[1].weight)
    moved = (seen["weight"] - student[2].weight).norm()
    torch.testing.assert_close(moved, 0.1 * student[2].weight.norm())


def test_a_shared_weight_is_perturbed_once_in_both_places():
    shared = nn.Linear(2, 2, bias=False)
    student = nn.Sequential(shared, nn.Linear(2, 2, bias=False), shared)

    def loss(network):
        return network(torch.tensor([[1.0, 2.0]])).sum()

    by_hand = perturbed_by_hand(student, loss, 0.1)
    torch.testing.assert_close(loss(perturb_weights(student, [loss], 0.1)), loss(by_hand))


def test_a_gradient_of_zero_gives_no_perturbation():
    student = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    for length in (0.5, 50.0):
        student.weight.data *= length / student.weight.data.norm()
        assert torch.equal(perturb_weights(student, [lambda network: 0 * network(x).sum()], 0.5)(x), student(x))


@pytest.mark.parametrize("factor", [1e-30, 1e-20, 1.0, 1e25])
def test_the_perturbation_does_not_depend_on_the_loss_scale(factor):
    student, x = nn.Linear(3, 2, bias=False), torch.tensor([[1.0, 2.0, 2.0]])
    student.weight.data.fill_(1.0)
    moved = perturb_weights(student, [lambda network: factor * network(x)[0, 0]], 0.1)(x)
    # ‖w‖ is √6, and the gradient (1, 2, 2) has the length 3.
    torch.testing.assert_close(moved, torch.tensor([[5 + 0.1 * 6**0.5 * 3, 5.0]]))


def test_the_methods_state_is_updated_once():
    calls = []

    class Counting(AT):
        def update(self, batch, outcome):
            calls.append(outcome.loss)

    outcome = make(Counting(), tiny_network(1))(tiny_batch())
    assert len(calls) == 1
    assert calls[0] is outcome.loss


@pytest.mark.parametrize(("name", "trained_along"), [("peerad", "peer"), ("lbgat", "guide")])
def test_a_network_trained_along_is_not_perturbed_and_updated_once(name, trained_along):
    method = build_method(name)
    method.set_up(lambda *_, **__: tiny_network(7))
    before = [each.clone() for each in method.parameters()]
    make(method, tiny_network(1))(tiny_batch(), generator(0))
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))
    assert int(getattr(method, trained_along)[1].num_batches_tracked) == 1


@pytest.mark.parametrize("name", ["sgls", "te", "adr", "rebat"])
def test_awp_evaluates_a_loss_with_state_at_the_perturbed_weights(name):
    student, teacher, by_hand = tiny_network(1, batchnorm=False), tiny_teacher(3), build_method(name)
    step = Step(student, build_method(name), teacher, THREAT, steps=0, step_size=0.0, start="clean", awp=0.05)
    for seed in range(3):
        batch = tiny_batch(seed=seed)
        by_hand.inner(batch, student, teacher)
        climber = perturbed_by_hand(
            student, lambda network, batch=batch: by_hand.outer(batch, batch.x, network, teacher).loss.mean(), 0.05
        )
        expected = by_hand.outer(batch, batch.x, climber, teacher)
        with torch.no_grad():
            by_hand.update(batch, expected)
        outcome = step(batch)
        torch.testing.assert_close(outcome.loss, expected.loss, rtol=1e-4, atol=1e-5)
        expected.loss.mean().backward()
        student.zero_grad()
        outcome.loss.mean().backward()
        for own, other in zip(student.parameters(), climber.parameters(), strict=True):
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-4)
    for mine, other in zip(step.method.buffers(), by_hand.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("awp", [None, 0.05])
@pytest.mark.parametrize(
    "name", ["at", "trades", "fair_ard", "dkl", "sgls", "adr", "te", "rebat", "lbgat", "hat", "absld", "dgad"]
)
def test_parts_of_a_batch_give_the_gradient_of_the_whole(name, awp):
    from robustill.methods import METHODS

    # In float64: where an adversary begins, some objectives are so flat that float32's rounding chooses its way.
    batches = [tiny_batch(7, seed=1, epoch=8), tiny_batch(7, seed=2, epoch=9)]
    batches = [replace(batch, x=batch.x.double()) for batch in batches]
    gradients, outcomes = [], []
    for count in (1, 3):
        student = tiny_network(1, batchnorm=False).double()
        teacher = tiny_teacher(3).double() if METHODS[name].roles else None
        threat, method = Threat(norm="l2", eps=0.5), build_method(name)
        method.set_up(lambda *_, **__: tiny_network(7, batchnorm=False).double())
        step = Step(student, method, teacher, threat, steps=2, step_size=0.2, awp=awp)
        for batch in batches:
            student.zero_grad()
            taken = []
            for part, outcome in step.parts(batch, generator(0), count):
                (outcome.loss.mean() * (len(part.y) / 7)).backward()
                taken.append(outcome.loss.detach())
        gradients.append([each.grad for each in student.parameters()])
        outcomes.append(torch.cat(taken))
        assert len(taken) == count
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-4, atol=1e-5)
    for one, many in zip(*gradients, strict=True):
        torch.testing.assert_close(many, one, rtol=1e-3, atol=1e-5)


def test_a_batch_is_split_into_nearly_equal_parts():
    batch = Batch(x=torch.rand(5, 1, 2, 2), y=torch.arange(5), index=10 + torch.arange(5), epoch=3, epochs=9)
    parts = batch.split(2)
    assert [part.index.tolist() for part in parts] == [[10, 11, 12], [13, 14]]
    assert all((part.epoch, part.epochs) == (3, 9) for part in parts)
    assert len(batch.split(8)) == 5
    assert batch.split(1) == [batch]


def test_a_run_with_awp_repeats_and_differs_from_one_without(tmp_path):
    for name, optim in (("a", {"awp": 0.01}), ("b", {"awp": 0.01}), ("plain", {})):
        train(small_config(optim=optim), tmp_path / name, progress=False)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "plain")
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
