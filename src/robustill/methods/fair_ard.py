"""Fair-ARD: more weight for the classes whose images are misclassified after few steps of the attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.attacks.pgd import LossFn
from robustill.core.distributed import all_reduce
from robustill.methods.base import Batch, Method, Network, Outcome, in_range
from robustill.methods.igdm import base_method
from robustill.methods.mtard import MTARD


class FairARD(Method):
    """base·ω_y with ω_c ∝ κ_c^(−β), mean 1 over the classes, then clamped; x' is the base's.

    κ_c is the mean number of the attack's steps at whose start an image of class c is still classified correctly, over
    the previous epoch; in the first epoch all ω are 1. The authors' code divides the count by N/K, which is the same if
    all classes are equally frequent.

    With MTARD as the base, which needs its two teachers, the balance of MTARD's two terms follows them with their
    weights ω, as in the authors' code. That code lets both terms learn from the robust teacher at x' and leaves the
    natural one unused; here the second term is MTARD's, KL(T_nat(x) ‖ S(x)).

    Args:
        beta: β ≥ 0.
        low: smallest ω, ≥ 0.
        high: largest ω, at least `low`.
        base: "ard", "rslad", "iad" or "mtard".
        base_options: options of the base; null keeps the published ones.

    Reference: Yue et al. 2023, Revisiting adversarial robustness distillation from the perspective of robust fairness.
    """

    roles: tuple[str, ...] = ("robust",)
    reference = "Yue et al. 2023"
    single_label = True
    weight: Tensor
    right: Tensor
    images: Tensor

    def __init__(
        self,
        *,
        beta: float = 2.0,
        low: float = 5 / 6,
        high: float = 5 / 2,
        base: str = "ard",
        base_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.beta = in_range("beta", beta, 0)
        self.low = in_range("low", low, 0)
        self.high = in_range("high", high, self.low)
        self.base = base_method("fair_ard", base, base_options, among=("ard", "rslad", "iad", "mtard"))
        self.roles = self.base.roles
        self.start = self.base.start
        self.epoch = -1
        for name in ("weight", "right", "images"):
            self.register_buffer(name, torch.empty(0))
        # One entry for each batch, because a step may attack several parts of a batch before it updates with the first.
        self._correct_steps: WeakKeyDictionary[Batch, Tensor] = WeakKeyDictionary()

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn | None:
        """Return the base's objective; it also counts the steps at which each image is still classified correctly."""
        correct_steps = torch.zeros(len(batch.y), device=batch.y.device)
        self._correct_steps[batch] = correct_steps

        def counting_student(images: Tensor) -> Tensor:
            logits = student(images)
            correct_steps.add_(logits.argmax(dim=1) == batch.y)
            return logits

        return self.base.inner(batch, counting_student, teacher)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute the base's loss times ω_y, [B]."""
        outcome = self.base.outer(batch, x_adv, student, teacher)
        weight = self._weights(batch, outcome.logits.shape[-1])[batch.y]
        if isinstance(self.base, MTARD):
            terms = {name: weight * term for name, term in outcome.terms.items()}
            return replace(outcome, loss=self.base.balanced(batch, terms), terms=terms)
        return replace(outcome, loss=weight * outcome.loss)

    def update(self, batch: Batch, outcome: Outcome) -> None:
        """Add the batch to the counts; the first batch of an epoch sets the weights from the previous epoch."""
        self.base.update(batch, outcome)
        num_classes = outcome.logits.shape[-1]
        if self.epoch != batch.epoch:
            self.weight = self._weights(batch, num_classes)
            self.right, self.images = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
            self.epoch = batch.epoch
        own = F.one_hot(batch.y, num_classes).float()
        self.right += all_reduce(own.T @ self._correct_steps[batch])
        self.images += all_reduce(own.sum(dim=0))

    def get_extra_state(self) -> int:
        """Return the epoch of the counts. It is a plain number because reading it from a GPU would synchronise."""
        return self.epoch

    def set_extra_state(self, state: int) -> None:
        """Restore the epoch of the counts."""
        self.epoch = state

    def _weights(self, batch: Batch, num_classes: int) -> Tensor:
        if self.epoch == batch.epoch:
            return self.weight
        if self.epoch < 0:
            return torch.ones(num_classes, device=batch.y.device)
        # In log space, where a class without any correct image does not overflow; a class without images is left out.
        present = self.images > 0
        log_raw = -self.beta * torch.log(self.right / self.images.clamp_min(1) + 1e-5)
        shares = log_raw.masked_fill(~present, -torch.inf).softmax(dim=0)
        return (shares * present.sum()).clamp(self.low, self.high)
