"""AdaAD: the adversary maximises the difference between student and teacher, through both networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import LossFn
from robustill.losses import kl
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range


class AdaAD(Method):
    """α·KL(T(x') ‖ S(x')) + (1−α)·KL(T(x) ‖ S(x)), x' maximising KL(T(x') ‖ S(x')) from x + 0.001·N(0,1).

    The adversary's gradient goes through the student and through the teacher; labels are not used. With α = 1, as
    published for CIFAR-10, the clean images are not used either.

    Args:
        alpha: weight of the term at x', in [0,1].
        joint_forward: x and x' in one forward pass of the outer loss (only when α < 1).

    Reference: Huang et al. 2023, Boosting accuracy and robustness of student models via adaptive adversarial
        distillation.
    """

    roles = ("robust",)
    start = "gaussian"
    reference = "Huang et al. 2023"

    def __init__(self, *, alpha: float = 1.0, joint_forward: bool = False) -> None:
        super().__init__()
        self.alpha = in_range("alpha", alpha, 0, 1)
        self.joint_forward = joint_forward

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn:
        """Return the adversary's objective, KL(T(x') ‖ S(x'))."""
        return lambda x_adv: kl(student(x_adv), teacher(x_adv))

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute α·KL(T(x') ‖ S(x')) + (1−α)·KL(T(x) ‖ S(x)), [B]."""
        with torch.no_grad():
            target = teacher(x_adv)
        if self.alpha == 1:
            adversarial = student(x_adv)
            distillation = kl(adversarial, target)
            return Outcome(loss=distillation, logits=adversarial, terms={"kl_adversarial": distillation})
        with torch.no_grad():
            clean_target = teacher(batch.x)
        clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
        terms = {"kl_adversarial": kl(adversarial, target), "kl_clean": kl(clean, clean_target)}
        loss = self.alpha * terms["kl_adversarial"] + (1 - self.alpha) * terms["kl_clean"]
        return Outcome(loss=loss, logits=adversarial, terms=terms, clean_logits=clean)
