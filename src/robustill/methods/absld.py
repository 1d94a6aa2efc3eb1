"""ABSLD: RSLAD, with sharper targets for the classes on which the student's risk is higher."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.attacks.pgd import LossFn
from robustill.core.distributed import all_reduce
from robustill.losses import ce, kl
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range


class ABSLD(Method):
    """w·KL(T(x)/τ′_y ‖ S(x')) + (1−w)·KL(T(x)/τ_y ‖ S(x)), x' maximising KL(T(x)/τ′_y ‖ S(x')) from x + 0.001·N(0,1).

    Every class c has a temperature τ′_c for the adversarial and τ_c for the clean images, all 1 in the first epoch. At
    the end of an epoch τ_c ← τ_c − r·gap_c/max|gap|, clamped to [lowest,highest], where gap_c is the mean of
    CE(S(x), y) over the images of class c in this epoch, less the mean of these means over the classes; τ′ likewise,
    from CE(S(x'), y). r is multiplied by the share of the largest learning rate that the next epoch begins with: the
    authors multiply it by 0.1 whenever they do so with the learning rate. They sum the risk of a class over its images,
    which is the same if all classes are equally frequent, and average the KLs over the classes as well, which makes
    their loss K times smaller. The student has no temperature.

    In the authors' code both targets share their memory, so that each is divided by both temperatures, τ′_y·τ_y;
    `as_coded` does the same. No weight depends on it, so that the equations are the default.

    Args:
        adversarial_weight: w, in [0,1].
        temperature_rate: r ≥ 0; 0 is RSLAD.
        lowest: the lowest temperature, > 0.
        highest: the highest temperature, at least `lowest`.
        as_coded: follow the authors' code where it differs from the equations.
        joint_forward: x and x' in one forward pass of the outer loss; as published, in two.

    Reference: Zhao et al. 2024, Improving adversarial robust fairness via anti-bias soft label distillation.
    """

    roles = ("robust",)
    start = "gaussian"
    reference = "Zhao et al. 2024"
    single_label = True
    temperature: Tensor
    risk: Tensor
    images: Tensor

    def __init__(
        self,
        *,
        adversarial_weight: float = 5 / 6,
        temperature_rate: float = 0.1,
        lowest: float = 0.5,
        highest: float = 5.0,
        as_coded: bool = False,
        joint_forward: bool = False,
    ) -> None:
        super().__init__()
        self.adversarial_weight = in_range("adversarial_weight", adversarial_weight, 0, 1)
        self.temperature_rate = in_range("temperature_rate", temperature_rate, 0)
        self.lowest = in_range("lowest", lowest, 1e-3)
        self.highest = in_range("highest", highest, self.lowest)
        self.as_coded = as_coded
        self.joint_forward = joint_forward
        self.epoch = -1
        # Of the adversarial images first, of the clean ones second: [2,K], and the number of images, [K].
        for name in ("temperature", "risk", "images"):
            self.register_buffer(name, torch.empty(0))

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn:
        """Return the adversary's objective, KL(T(x)/τ′_y ‖ S(x'))."""
        target, _ = self._targets(batch, teacher)
        return lambda x_adv: kl(student(x_adv), target)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute w·KL(T(x)/τ′_y ‖ S(x')) + (1−w)·KL(T(x)/τ_y ‖ S(x)), [B]."""
        target, clean_target = self._targets(batch, teacher)
        clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
        terms = {"kl_adversarial": kl(adversarial, target), "kl_clean": kl(clean, clean_target)}
        w = self.adversarial_weight
        return Outcome(
            loss=w * terms["kl_adversarial"] + (1 - w) * terms["kl_clean"],
            logits=adversarial,
            terms=terms,
            clean_logits=clean,
        )

    def update(self, batch: Batch, outcome: Outcome) -> None:
        """Add the batch to the risks of the classes; the first batch of an epoch sets the temperatures."""
        num_classes = outcome.logits.shape[-1]
        assert outcome.clean_logits is not None
        if self.epoch != batch.epoch:
            self.temperature = self._temperatures(batch, num_classes)
            self.risk, self.images = torch.zeros_like(self.temperature), torch.zeros_like(self.temperature[0])
            self.epoch = batch.epoch
        own = F.one_hot(batch.y, num_classes).float()
        risks = torch.stack([ce(outcome.logits, batch.y), ce(outcome.clean_logits, batch.y)])
        self.risk += all_reduce(risks @ own)
        self.images += all_reduce(own.sum(dim=0))

    def get_extra_state(self) -> int:
        """Return the epoch of the risks. It is a plain number because reading it from a GPU would synchronise."""
        return self.epoch

    def set_extra_state(self, state: int) -> None:
        """Restore the epoch of the risks."""
        self.epoch = state

    def _targets(self, batch: Batch, teacher: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the logits that S(x') and S(x) learn, each [B,K]."""
        with torch.no_grad():
            logits = teacher(batch.x).float()
        adversarial, clean = self._temperatures(batch, logits.shape[-1])[:, batch.y, None]
        if self.as_coded:
            adversarial = clean = adversarial * clean
        return logits / adversarial, logits / clean

    def _temperatures(self, batch: Batch, num_classes: int) -> Tensor:
        """Return the temperatures in the batch's epoch, [2,K]."""
        if self.epoch == batch.epoch:
            return self.temperature
        if self.epoch < 0:
            return torch.ones(2, num_classes, device=batch.y.device)
        # A class without images has no risk, and keeps its temperature.
        present = self.images > 0
        mean = self.risk / self.images.clamp_min(1)
        gap = (mean - mean.sum(dim=1, keepdim=True) / present.sum()) * present
        largest = gap.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(gap.dtype).tiny)
        temperature = self.temperature - self.temperature_rate * batch.rate_factor * gap / largest
        return temperature.clamp(self.lowest, self.highest)
