"""IAD-I: trust the teacher where it is right at x', and the student's own clean output elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.losses import kl, soft_kl
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range
from robustill.methods.targets import label_trust, mixed_target


class IAD(Method):
    """t²·KL(T(x)/t ‖ S(x')/t) + (1 − p_T(y|x')^β)·KL(S(x) ‖ S(x')); x' maximises CE(S(x'), y).

    The second term is added from `begin` on; in it S(x) is not detached. Neither it nor p_T(y|x') has a temperature.

    Args:
        beta: β ≥ 0; how fast the trust falls with the teacher's probability of the label at x'.
        temperature: t > 0.
        begin: share of the epochs, in [0,1], after which the second term is added; 0.3 is epoch 60 of 200.
        mix: weight of the teacher in the target at x, mix·p_T + (1−mix)·onehot(y), in [0,1]; 1 is as published.
        joint_forward: x and x' in one forward pass of the outer loss, once both are needed; as published, in two.

    Reference: Zhu et al. 2022, Reliable adversarial distillation with unreliable teachers; in the form of the authors'
        code.
    """

    roles = ("robust",)
    reference = "Zhu et al. 2022"

    def __init__(
        self,
        *,
        beta: float = 0.1,
        temperature: float = 1.0,
        begin: float = 0.3,
        mix: float = 1.0,
        joint_forward: bool = False,
    ) -> None:
        super().__init__()
        self.beta = in_range("beta", beta, 0)
        self.temperature = in_range("temperature", temperature, 1e-3)
        self.begin = in_range("begin", begin, 0, 1)
        self.mix = in_range("mix", mix, 0, 1)
        self.joint_forward = joint_forward

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute t²·KL(T(x)/t ‖ S(x')/t) + (1 − p_T(y|x')^β)·KL(S(x) ‖ S(x')), [B]."""
        with torch.no_grad():
            target = mixed_target(teacher(batch.x).float() / self.temperature, batch, self.mix)
        if not batch.after(self.begin):
            adversarial = student(x_adv)
            distillation = soft_kl(adversarial, target, self.temperature)
            return Outcome(loss=distillation, logits=adversarial, terms={"kl_teacher": distillation})
        with torch.no_grad():
            trust = label_trust(teacher(x_adv), batch.label, self.beta)
        clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
        terms = {"kl_teacher": soft_kl(adversarial, target, self.temperature), "kl_self": kl(adversarial, clean)}
        loss = terms["kl_teacher"] + (1 - trust) * terms["kl_self"]
        return Outcome(loss=loss, logits=adversarial, terms=terms, clean_logits=clean)
