"""RSLAD: the teacher's clean output replaces every label, also the adversary's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import LossFn
from robustill.losses import soft_kl
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range
from robustill.methods.targets import mixed_target


class RSLAD(Method):
    """w·KL(T(x) ‖ S(x')) + (1−w)·KL(T(x) ‖ S(x)); x' maximises KL(T(x) ‖ S(x')) from x + 0.001·N(0,1); no labels.

    Args:
        adversarial_weight: w, in [0,1].
        temperature: t > 0; with t ≠ 1 each KL is at temperature t and multiplied by t².
        mix: weight of the teacher in the target, mix·p_T + (1−mix)·onehot(y), in [0,1]; 1 is as published.
        joint_forward: x and x' in one forward pass of the outer loss; as published, in two.

    Reference: Zi et al. 2021, Revisiting adversarial robustness distillation, eq. 6.
    """

    roles = ("robust",)
    start = "gaussian"
    reference = "Zi et al. 2021"

    def __init__(
        self,
        *,
        adversarial_weight: float = 5 / 6,
        temperature: float = 1.0,
        mix: float = 1.0,
        joint_forward: bool = False,
    ) -> None:
        super().__init__()
        self.adversarial_weight = in_range("adversarial_weight", adversarial_weight, 0, 1)
        self.temperature = in_range("temperature", temperature, 1e-3)
        self.mix = in_range("mix", mix, 0, 1)
        self.joint_forward = joint_forward

    def _target(self, batch: Batch, teacher: nn.Module) -> Tensor:
        with torch.no_grad():
            return mixed_target(teacher(batch.x).float() / self.temperature, batch, self.mix)

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn:
        """Return the adversary's objective, KL(T(x) ‖ S(x'))."""
        target = self._target(batch, teacher)
        return lambda x_adv: soft_kl(student(x_adv), target, self.temperature)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute w·KL(T(x) ‖ S(x')) + (1−w)·KL(T(x) ‖ S(x)), [B]."""
        target = self._target(batch, teacher)
        clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
        terms = {
            "kl_adversarial": soft_kl(adversarial, target, self.temperature),
            "kl_clean": soft_kl(clean, target, self.temperature),
        }
        w = self.adversarial_weight
        return Outcome(
            loss=w * terms["kl_adversarial"] + (1 - w) * terms["kl_clean"],
            logits=adversarial,
            terms=terms,
            clean_logits=clean,
        )
