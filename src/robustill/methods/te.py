"""TE: each image's prediction stays near the average of its earlier clean ones."""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import LossFn
from robustill.losses import ce
from robustill.methods.base import Batch, Method, Network, Outcome, in_range
from robustill.methods.image_state import ImageState
from robustill.methods.targets import label_ce


class TE(Method):
    """CE(S(x'), y) + w·(1/K)·Σ_k (p_S(x')_k − q_k)², x' maximising the same; q ← m·q + (1−m)·p_S(x) before every step.

    Temporal ensembling: each training image has its own q, an average of its clean predictions that begins with the
    first of them and is normalised to sum 1. p_S(x) is computed before the attack by the network that is attacked, in
    eval mode. From `begin` on, w = weight·exp(−5·(1−u)²) with u rising from 0 to 1 within `ramp` of the epochs; before,
    the loss is CE(S(x'), y).

    The authors' code counts epochs from 1 and begins with the 90th of 200, one earlier than here.

    Args:
        momentum: m, in [0,0.999].
        weight: w after the ramp, ≥ 0.
        begin: share of the epochs after which the second term begins, in [0,1].
        ramp: share of the epochs in which w rises, in [0,1].

    Reference: Dong et al. 2022, Exploring memorization in adversarial training.
    """

    reference = "Dong et al. 2022"
    single_label = True

    def __init__(self, *, momentum: float = 0.9, weight: float = 300.0, begin: float = 0.45, ramp: float = 0.3) -> None:
        super().__init__()
        self.momentum = in_range("momentum", momentum, 0, 0.999)
        self.weight = in_range("weight", weight, 0)
        self.begin = in_range("begin", begin, 0, 1)
        self.ramp = in_range("ramp", ramp, 0, 1)
        # Averages from 0, whose sums are 1−m^n after n predictions.
        self.averages = ImageState()
        # One entry for each batch, because a step may attack several parts of a batch before it updates with the first.
        self._clean: WeakKeyDictionary[Batch, Tensor] = WeakKeyDictionary()

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn:
        """Return CE(S(x'), y) + w·(1/K)·Σ_k (p_S(x')_k − q_k)²."""
        if not batch.after(self.begin):
            return lambda x_adv: ce(student(x_adv), batch.label)
        # Anew even if this very batch was trained on before.
        self._clean.pop(batch, None)
        target, weight = self._target(batch, student), self._ramped(batch)

        def objective(x_adv: Tensor) -> Tensor:
            adversarial = student(x_adv)
            return ce(adversarial, batch.label) + weight * _mse(adversarial, target)

        return objective

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute CE(S(x'), y) + w·(1/K)·Σ_k (p_S(x')_k − q_k)², [B]."""
        adversarial = student(x_adv)
        label = label_ce(adversarial, batch)
        if not batch.after(self.begin):
            return Outcome(loss=label, logits=adversarial, terms={"ce": label})
        terms = {"ce": label, "mse": _mse(adversarial, self._target(batch, student))}
        loss = terms["ce"] + self._ramped(batch) * terms["mse"]
        return Outcome(loss=loss, logits=adversarial, terms=terms, clean_logits=self._clean[batch])

    def update(self, batch: Batch, outcome: Outcome) -> None:
        """Store the averages with this step's prediction."""
        if outcome.clean_logits is not None:
            self.averages.set(batch.index, self._average(batch, outcome.clean_logits))

    def _average(self, batch: Batch, clean: Tensor) -> Tensor:
        """Return the average of each image's predictions from 0, [B,K], to which S(x) is added."""
        prediction = clean.float().softmax(dim=-1)
        previous = self.averages.get(batch.index, default=torch.zeros_like(prediction))
        return self.momentum * previous + (1 - self.momentum) * prediction

    def _target(self, batch: Batch, student: Network) -> Tensor:
        """Return q, [B,K]; S(x) is computed once for a batch, before its attack if there is one."""
        if batch not in self._clean:
            with torch.no_grad():
                self._clean[batch] = student(batch.x)
        average = self._average(batch, self._clean[batch])
        return average / average.sum(dim=-1, keepdim=True)

    def _ramped(self, batch: Batch) -> float:
        """Return w."""
        passed = batch.epoch / batch.epochs - self.begin
        progress = min(passed / self.ramp, 1.0) if self.ramp > 0 else 1.0
        return self.weight * math.exp(-5 * (1 - progress) ** 2)


def _mse(logits: Tensor, target: Tensor) -> Tensor:
    """Return (1/K)·Σ_k (p_k − q_k)², per sample."""
    return (logits.float().softmax(dim=-1) - target).square().mean(dim=-1)
