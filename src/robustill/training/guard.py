"""A guard against catastrophic overfitting: it looks for it within an epoch, and answers with a stronger attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robustill.core.contexts import evaluating, preserving_buffers
from robustill.core.distributed import SINGLE_PROCESS, ProcessGroup, all_gather
from robustill.core.randomness import Generators
from robustill.methods import Batch
from robustill.training.diagnostics import has_collapsed
from robustill.training.step import Step

_NUM_IMAGES = 64
_CHECK_STEPS, _ANSWER_STEPS = 5, 3


class Guard:
    """Notices catastrophic overfitting to a training attack of few steps, and trains with PGD-3 until it is over.

    Now and then the first 64 images of a batch are attacked as in training and with PGD-5. If the student is right on
    at most half as many of the latter, and on fewer by more than chance, see `has_collapsed`, the steps up to the next
    check are made with PGD-3. Both start uniformly in the ball, are projected to it, and have n steps of length
    2.5·eps/n. A check changes no running statistics.

    Args:
        every: steps between two checks; the first step of every epoch has one.

    Reference: Li et al. 2020, "Towards understanding fast adversarial training", whose PGD answers in the same way.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.is_answering = False
        """Whether the present steps are made with PGD-3."""
        self.num_answered = 0
        """How many steps of the present epoch were."""

    @contextmanager
    def watching(
        self, number: int, step: Step, batch: Batch, generator: Generators, group: ProcessGroup = SINGLE_PROCESS
    ) -> Iterator[None]:
        """Check the student if it is time, and answer for the block in which the step is made.

        Args:
            number: of the step, counted from 0 in the epoch.
            step: with the attack of the training.
            batch: the images of this process.
            generator: draws the random starts of the check.
            group: processes that share the batch; each checks the same images, and the main process decides.
        """
        if number % self.every == 0:
            usual, strong, images = group.broadcast(self._count(step, batch, generator, group))
            self.is_answering = has_collapsed(usual / images, strong / images, images)
        self.num_answered += self.is_answering
        if self.is_answering:
            with _stronger(step, max(_ANSWER_STEPS, step.steps)):
                yield
        else:
            yield

    def _count(self, step: Step, batch: Batch, generator: Generators, group: ProcessGroup) -> tuple[int, int, int]:
        """Return how many images are classified correctly under the training's attack and PGD-5, and of how many."""
        part = _first_images(batch, group)
        with preserving_buffers(step.student, step.method):
            usual = _num_correct(step, part, generator)
            with _stronger(step, max(_CHECK_STEPS, step.steps)):
                strong = _num_correct(step, part, generator)
        return int(usual), int(strong), len(part.y)

    def start_epoch(self) -> None:
        """Count the answered steps of a new epoch."""
        self.is_answering, self.num_answered = False, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what an unfinished epoch goes on with."""
        return {"is_answering": self.is_answering, "num_answered": self.num_answered}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of an unfinished epoch."""
        self.is_answering, self.num_answered = state["is_answering"], state["num_answered"]


def passes_of_check(steps: int, batch_size: int) -> int:
    """Return the passes of one check, over all of its images, for a training attack of so many steps."""
    return min(_NUM_IMAGES, batch_size) * (2 * steps + 1 + 2 * max(_CHECK_STEPS, steps) + 1)


def _first_images(batch: Batch, group: ProcessGroup) -> Batch:
    """Return the first images of the batch that the processes share."""
    part = batch.part(slice(_NUM_IMAGES))
    if group.world_size == 1:
        return part

    def first(rows: Tensor) -> Tensor:
        return all_gather(rows)[:_NUM_IMAGES]

    return replace(
        part,
        x=first(part.x).contiguous(memory_format=torch.channels_last),
        y=first(part.y),
        index=first(part.index),
        mixed=None if part.mixed is None else first(part.mixed),
    )


@contextmanager
def _stronger(step: Step, steps: int) -> Iterator[None]:
    """Attack with PGD from a uniform start for the block."""
    before = step.steps, step.step_size, step.start, step.noise
    step.steps, step.step_size, step.start, step.noise = steps, 2.5 * step.threat.eps / steps, "uniform", None
    try:
        yield
    finally:
        step.steps, step.step_size, step.start, step.noise = before


def _num_correct(step: Step, batch: Batch, generator: Generators) -> Tensor:
    x_adv = step.attack(batch, generator)
    with torch.no_grad(), evaluating(step.student):
        logits: Tensor = step.student(x_adv)
        return (logits.argmax(dim=1) == batch.y).sum()
