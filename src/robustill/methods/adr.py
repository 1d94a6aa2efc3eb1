"""ADR: labels rectified by the average of the student's own weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.attacks.pgd import LossFn
from robustill.methods.base import Batch, Method, Network, Outcome, in_range
from robustill.methods.igdm import base_method
from robustill.methods.targets import label_probabilities


class ADR(Method):
    """base with the label r = λ_i·p + (1−λ_i)·onehot(y), p = softmax(EMA(x)/τ), λ_i = clip(λ − max_k p_k + p_y, 0, 1).

    With the base "at" this is softCE(r, S(x')), x' maximising the same; with "trades" r replaces y in CE(S(x), y). EMA
    is the average of the student's own weights after the last step, `optim.ema`, 0.995 as published. λ rises and τ
    falls along half a cosine: v(e) = last + ½·(first − last)·(1 + cos(π·e/epochs)), e counted from 0. Of a mixed label,
    which the authors do not use, p_y is Σ_k y_k·p_k.

    In the authors' code λ and τ change in every step instead of every epoch, and the decay of the average is the same
    from the first step on. With AWP their settings for CIFAR-10 are `weight` 0.85 and `temperature` 1.5; without it
    those for CIFAR-100 are `first_temperature` 1.5 and `temperature` 1. With "trades" they set its `joint_forward`.

    Args:
        weight: λ after the last epoch, in [0,1].
        first_weight: λ in the first epoch, in [0,1].
        temperature: τ after the last epoch, > 0.
        first_temperature: τ in the first epoch, > 0.
        base: "at" or "trades".
        base_options: options of the base; null keeps the published ones.

    Reference: Wu et al. 2024, Annealing self-distillation rectification improves adversarial training.
    """

    roles = ("self",)
    reference = "Wu et al. 2024"

    def __init__(
        self,
        *,
        weight: float = 0.95,
        first_weight: float = 0.7,
        temperature: float = 2.0,
        first_temperature: float = 2.5,
        base: str = "at",
        base_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.weight = in_range("weight", weight, 0, 1)
        self.first_weight = in_range("first_weight", first_weight, 0, 1)
        self.temperature = in_range("temperature", temperature, 1e-3)
        self.first_temperature = in_range("first_temperature", first_temperature, 1e-3)
        self.base = base_method("adr", base, base_options, among=("at", "trades"))
        self.start = self.base.start

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn | None:
        """Return the base's objective with the label r."""
        return self.base.inner(self._rectified(batch, teacher), student, teacher)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute the base's loss with the label r, [B]."""
        return self.base.outer(self._rectified(batch, teacher), x_adv, student, teacher)

    def _rectified(self, batch: Batch, average: nn.Module) -> Batch:
        """Return the batch with the label r, which is not smoothed once more."""
        progress = batch.epoch / batch.epochs
        with torch.no_grad():
            logits = average(batch.x).float()
        p = (logits / _annealed(self.first_temperature, self.temperature, progress)).softmax(dim=-1)
        shown = F.one_hot(batch.y, p.shape[-1]) if batch.mixed is None else batch.mixed
        excess = p.amax(dim=-1, keepdim=True) - (shown * p).sum(dim=-1, keepdim=True)
        weight = (_annealed(self.first_weight, self.weight, progress) - excess).clamp(0, 1)
        label = weight * p + (1 - weight) * label_probabilities(batch, p.shape[-1])
        return replace(batch, mixed=label, smoothing=0.0)


def _annealed(first: float, last: float, progress: float) -> float:
    """Return the value between the first and the last one on half a cosine, at a progress in [0,1]."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
