"""IAD-II: the label, a robust and a natural teacher and the student's clean output, by trust."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.losses import kl
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range, remaining, teacher_of
from robustill.methods.targets import label_ce, label_trust


class IAD2(Method):
    """(1−α₁−α₂)·CE(S(x'), y) + α₁·[A·KL(T_rob(x') ‖ S(x')) + (1−A)·KL(S(x) ‖ S(x'))] + α₂·KL(T_nat(x') ‖ S(x')).

    A = p_Trob(y|x')^β from `begin` on, and 1 before it; x' maximises CE(S(x'), y). S(x) is not detached. With t ≠ 1 the
    KL of the two teachers are at temperature t, the KL of the student with itself is at 1, and all three are multiplied
    by t², as in the authors' code.

    Args:
        alpha1: α₁, weight of the robust teacher and of the student itself, in [0,1].
        alpha2: α₂, weight of the natural teacher, in [0,1−α₁].
        beta: β ≥ 0.
        temperature: t > 0.
        begin: share of the epochs, in [0,1], after which A is no longer 1; 0.2 is epoch 40 of 200.
        joint_forward: x and x' in one forward pass of the outer loss, once both are needed; as published, in two.

    Reference: Zhu et al. 2022, Reliable adversarial distillation with unreliable teachers; in the form of the authors'
        code.
    """

    roles = ("robust", "natural")
    reference = "Zhu et al. 2022"

    def __init__(
        self,
        *,
        alpha1: float = 0.5,
        alpha2: float = 0.25,
        beta: float = 0.1,
        temperature: float = 1.0,
        begin: float = 0.2,
        joint_forward: bool = False,
    ) -> None:
        super().__init__()
        self.alpha1 = in_range("alpha1", alpha1, 0, 1)
        self.alpha2 = in_range("alpha2", alpha2, 0, remaining(self.alpha1))
        self.beta = in_range("beta", beta, 0)
        self.temperature = in_range("temperature", temperature, 1e-3)
        self.begin = in_range("begin", begin, 0, 1)
        self.joint_forward = joint_forward

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute the weighted sum of the four terms, [B]."""
        with torch.no_grad():
            robust = teacher_of(teacher, "robust")(x_adv)
            natural = teacher_of(teacher, "natural")(x_adv)
        if batch.after(self.begin):
            clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
            trust = label_trust(robust, batch.label, self.beta)
            kl_self = self.temperature**2 * kl(adversarial, clean)
        else:
            clean, adversarial = None, student(x_adv)
            trust = torch.ones_like(batch.y)
            kl_self = torch.zeros_like(batch.y, dtype=torch.float32)
        terms = {
            "ce": label_ce(adversarial, batch),
            "kl_robust": kl(adversarial, robust, self.temperature),
            "kl_self": kl_self,
            "kl_natural": kl(adversarial, natural, self.temperature),
        }
        loss = (
            max(1 - self.alpha1 - self.alpha2, 0) * terms["ce"]
            + self.alpha1 * (trust * terms["kl_robust"] + (1 - trust) * terms["kl_self"])
            + self.alpha2 * terms["kl_natural"]
        )
        return Outcome(loss=loss, logits=adversarial, terms=terms, clean_logits=clean)
