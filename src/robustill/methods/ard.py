"""ARD: the teacher's clean output as the target at the adversarial image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.losses import soft_kl
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range
from robustill.methods.targets import label_ce, mixed_target


class ARD(Method):
    """α·t²·KL(T(x)/t ‖ S(x')/t) + (1−α)·CE(S(x), y); x' maximises CE(S(x'), y).

    With α = 1, as published for CIFAR-10, the student does not see the clean images. The gradient is up to t times
    that of a cross-entropy: a network without BatchNorm, or a sharp target, may need `optim.clip_norm`.

    Args:
        alpha: weight of the distillation term, in [0,1].
        temperature: t > 0.
        mix: weight of the teacher in the distillation target, mix·p_T + (1−mix)·onehot(y), in [0,1]; 1 is as published.
        joint_forward: x and x' in one forward pass of the outer loss (only when α < 1).

    Reference: Goldblum et al. 2020, Adversarially robust distillation, eq. 4.
    """

    roles = ("robust",)
    reference = "Goldblum et al. 2020"

    def __init__(
        self, *, alpha: float = 1.0, temperature: float = 30.0, mix: float = 1.0, joint_forward: bool = False
    ) -> None:
        super().__init__()
        self.alpha = in_range("alpha", alpha, 0, 1)
        self.temperature = in_range("temperature", temperature, 1e-3)
        self.mix = in_range("mix", mix, 0, 1)
        self.joint_forward = joint_forward

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute α·t²·KL(T(x)/t ‖ S(x')/t) + (1−α)·CE(S(x), y), [B]."""
        with torch.no_grad():
            target = mixed_target(teacher(batch.x).float() / self.temperature, batch, self.mix)
        if self.alpha == 1:
            adversarial = student(x_adv)
            distillation = soft_kl(adversarial, target, self.temperature)
            return Outcome(loss=distillation, logits=adversarial, terms={"kl": distillation})
        clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
        terms = {"kl": soft_kl(adversarial, target, self.temperature), "ce": label_ce(clean, batch)}
        return Outcome(
            loss=self.alpha * terms["kl"] + (1 - self.alpha) * terms["ce"],
            logits=adversarial,
            terms=terms,
            clean_logits=clean,
        )
