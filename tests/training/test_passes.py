"""What a step costs is what it does, however the method asks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.methods import Batch, Method, Network, Outcome, build_method
from robustill.training.cost import passes


class Curious(Method):
    """Asks its teacher again and again, and evaluates its loss twice."""

    roles = ("robust",)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        for _ in range(3):
            assert not teacher(batch.x).requires_grad
            assert torch.equal(teacher(x_adv), teacher(x_adv))
        teacher(2 * batch.x - x_adv)
        logits = student(x_adv)
        return Outcome(loss=logits.square().sum(dim=1), logits=logits)


def test_a_teacher_looks_at_each_of_the_steps_images_once() -> None:
    counted = passes(Curious(), steps=4)
    assert (counted.teacher_forward, counted.teacher_backward) == (3, 0)


def test_counting_leaves_the_method_and_the_random_state_as_they_were() -> None:
    method = build_method("mtard")
    before, state = torch.get_rng_state(), {key: value.clone() for key, value in method.state_dict().items()}
    passes(method, steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) or value.isnan().all() for key, value in method.state_dict().items())
