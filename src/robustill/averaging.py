"""Averages of the student's weights over training."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """Exponential moving average of weights and BatchNorm statistics: a ← d·a + (1−d)·w after each step.

    The decay grows with the steps, d_i = min(decay, (1+i)/(10+i)) with i from 0, so that a short run is not held back
    by its start.

    Args:
        model: whose weights are averaged; left as it is.
        decay: d in [0,1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one more step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        # Unlike a state_dict, these name a shared weight once: it must move once a step.
        averages = [*self.model.parameters(), *self.model.buffers()]
        currents = [*model.parameters(), *model.buffers()]
        floating = [i for i, average in enumerate(averages) if average.is_floating_point()]
        torch._foreach_lerp_([averages[i] for i in floating], [currents[i] for i in floating], 1 - decay)
        for average, current in zip(averages, currents, strict=True):
            if not average.is_floating_point():
                average.copy_(current)
