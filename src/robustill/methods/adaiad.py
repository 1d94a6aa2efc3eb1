"""AdaIAD: AdaAD's adversary, with the teacher weighted by trust as in IAD."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import LossFn
from robustill.losses import kl
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range
from robustill.methods.targets import label_trust


class AdaIAD(Method):
    """t²·KL(T(x')/t ‖ S(x')/t) + (1 − p_T(y|x')^β)·KL(S(x) ‖ S(x')), x' maximising KL(T(x') ‖ S(x')) through both.

    The second term is added from `begin` on; in it S(x) is not detached. Neither it nor p_T(y|x') has a temperature.
    The attack starts at x + 0.001·N(0,1).

    Args:
        beta: β ≥ 0.
        temperature: t > 0.
        begin: share of the epochs, in [0,1], after which the second term is added; 0.3 as in IAD-I (epoch 60 of 200).
        joint_forward: x and x' in one forward pass of the outer loss, once both are needed; as published, in two.

    Reference: Huang et al. 2023, Boosting accuracy and robustness of student models via adaptive adversarial
        distillation.
    """

    roles = ("robust",)
    start = "gaussian"
    reference = "Huang et al. 2023"

    def __init__(
        self, *, beta: float = 0.1, temperature: float = 30.0, begin: float = 0.3, joint_forward: bool = False
    ) -> None:
        super().__init__()
        self.beta = in_range("beta", beta, 0)
        self.temperature = in_range("temperature", temperature, 1e-3)
        self.begin = in_range("begin", begin, 0, 1)
        self.joint_forward = joint_forward

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn:
        """Return the adversary's objective, KL(T(x') ‖ S(x'))."""
        return lambda x_adv: kl(student(x_adv), teacher(x_adv))

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute t²·KL(T(x')/t ‖ S(x')/t) + (1 − p_T(y|x')^β)·KL(S(x) ‖ S(x')), [B]."""
        with torch.no_grad():
            target = teacher(x_adv)
        if not batch.after(self.begin):
            adversarial = student(x_adv)
            distillation = kl(adversarial, target, self.temperature)
            return Outcome(loss=distillation, logits=adversarial, terms={"kl_teacher": distillation})
        clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
        terms = {"kl_teacher": kl(adversarial, target, self.temperature), "kl_self": kl(adversarial, clean)}
        loss = terms["kl_teacher"] + (1 - label_trust(target, batch.label, self.beta)) * terms["kl_self"]
        return Outcome(loss=loss, logits=adversarial, terms=terms, clean_logits=clean)
