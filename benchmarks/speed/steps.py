"""One training step, again and again: what several of the scripts beside it measure."""

from __future__ import annotations

from collections.abc import Callable

import torch

from robustill.core.randomness import generator
from robustill.methods import Batch
from robustill.training.step import Step


def repeated(step: Step, batch: Batch, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Attack, loss, backward pass and update on always the same batch, with the same random start."""

    def run() -> None:
        outcome = step(batch, generator(0, "attack"))
        optimizer.zero_grad(set_to_none=True)
        outcome.loss.mean().backward()
        optimizer.step()

    return run
