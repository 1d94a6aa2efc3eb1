"""The step's bookkeeping for methods: what teachers look at, and when state changes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.methods import Batch, Method, Network, Outcome, build_method
from robustill.methods.passes import passes
from robustill.randomness import generator
from robustill.step import Step
from robustill.threat import Threat
from tiny_networks import scene, tiny_network


class Curious(Method):
    """Asks its teacher again and again, and evaluates its loss twice."""

    roles = ("robust",)

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[Tensor] = []

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        for _ in range(3):
            assert not teacher(batch.x).requires_grad
            assert torch.equal(teacher(x_adv), teacher(x_adv))
        teacher(2 * batch.x - x_adv)
        logits = student(x_adv)
        return Outcome(loss=logits.square().sum(dim=1), logits=logits)

    def update(self, batch: Batch, outcome: Outcome) -> None:
        assert not torch.is_grad_enabled()
        self.updates.append(outcome.loss)


def test_a_teacher_looks_at_each_of_the_steps_images_once() -> None:
    counted = passes(Curious(), steps=4)
    assert (counted.teacher_forward, counted.teacher_backward) == (3, 0)


def test_a_new_step_looks_anew() -> None:
    s, seen = scene(), []
    s.robust.register_forward_hook(lambda module, inputs, logits: seen.append(inputs[0]))
    step = Step(tiny_network(1), build_method("ard"), s.robust, Threat(norm="linf", eps=0.1), steps=1, step_size=0.1)
    step(s.batch, generator(0))
    step(s.batch, generator(0))
    assert len(seen) == 2


def test_state_is_updated_once_a_step() -> None:
    s, method = scene(), Curious()
    step = Step(tiny_network(1), method, s.robust, Threat(norm="linf", eps=0.1), steps=1, step_size=0.1)
    outcomes = [step(s.batch, generator(0)) for _ in range(2)]
    step.attack(s.batch, generator(0))
    assert [id(loss) for loss in method.updates] == [id(outcome.loss) for outcome in outcomes]


def test_counting_leaves_the_method_and_the_random_state_as_they_were() -> None:
    method = build_method("mtard")
    before, state = torch.get_rng_state(), {key: value.clone() for key, value in method.state_dict().items()}
    passes(method, steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) or value.isnan().all() for key, value in method.state_dict().items())
