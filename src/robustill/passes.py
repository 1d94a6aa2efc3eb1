"""What a training step of a method costs, counted while it runs."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustill.methods.base import Batch, Method
from robustill.step import Step
from robustill.teachers import combine
from robustill.threat import Threat

_CLASSES = 3
_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Passes a training step, each over a batch of B images: one over the 2B images of x and x' together counts 2.

    Args:
        student_forward: of the student, attack and loss together.
        student_backward: through the student, towards the images or the weights.
        teacher_forward: of the teachers; of an ensemble this many for each member. A network that the method itself
            trains beside the student counts as a teacher.
        teacher_backward: through them.
    """

    student_forward: int
    student_backward: int
    teacher_forward: int
    teacher_backward: int


def passes(method: Method, steps: int) -> Passes:
    """Counted on one small batch of the last epoch, when everything a method begins later has begun.

    Args:
        method: newly built; left as it is.
        steps: of PGD.

    Example:
        >>> from robustill.methods import build_method
        >>> passes(build_method("at"), steps=10)
        Passes(student_forward=11, student_backward=11, teacher_forward=0, teacher_backward=0)
    """
    method = copy.deepcopy(method)
    count: Counter[str] = Counter()
    student = _network("student", count)
    method.set_up(lambda *_, **__: _network("teacher", count))
    teachers = [(role, 1.0, _network("teacher", count)) for role in method.roles]
    step = Step(student, method, combine(teachers), Threat(norm="linf", eps=0.1), steps=steps, step_size=0.05)
    x = torch.linspace(0, 1, 4 * _IMAGES).view(_IMAGES, 1, 2, 2)
    labels = torch.arange(_IMAGES)
    outcome = step(Batch(x=x, y=labels, index=labels, epoch=99, epochs=100), torch.Generator())
    outcome.loss.mean().backward()
    return Passes(
        student_forward=count["student forward"],
        student_backward=count["student backward"],
        teacher_forward=count["teacher forward"],
        teacher_backward=count["teacher backward"],
    )


def _network(who: str, count: Counter[str]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, _CLASSES))

    def counted(_: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> None:
        size = len(logits) // _IMAGES
        count[f"{who} forward"] += size
        if logits.requires_grad:
            logits.register_hook(lambda _: count.update({f"{who} backward": size}))  # type: ignore[no-untyped-call]

    network.register_forward_hook(counted)
    return network
