"""DGAD: learn from the teacher at x' where it is right at x, else at x; its mistakes are mended."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.attacks.pgd import LossFn
from robustill.losses import kl
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range


class DGAD(Method):
    """KL(T̃(x') ‖ S(x')) where the teacher is right at x, KL(T̃(x) ‖ S(x)) where not; + β·(1/K)·‖p_S(x') − p_S(x)‖².

    T̃ is T with the logits of the label and of the largest other class exchanged where that one is larger. x' maximises
    KL(T(x') ‖ S(x')) through both networks from x + 0.001·N(0,1), as in AdaAD.

    The authors' code divides by the nominal size of a batch also where the last one is smaller, and for a MobileNetV2 a
    misplaced parenthesis multiplies its two KLs; here the loss is the mean of the equation for every student.

    Args:
        beta: β ≥ 0.
        joint_forward: x and x' in one forward pass of the outer loss; as published, in two.

    Reference: Park and Min 2024, Dynamic guidance adversarial distillation with enhanced teacher knowledge.
    """

    roles = ("robust",)
    start = "gaussian"
    reference = "Park and Min 2024"
    single_label = True

    def __init__(self, *, beta: float = 1.0, joint_forward: bool = False) -> None:
        super().__init__()
        self.beta = in_range("beta", beta, 0)
        self.joint_forward = joint_forward

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn:
        """Return the adversary's objective, KL(T(x') ‖ S(x'))."""
        return lambda x_adv: kl(student(x_adv), teacher(x_adv))

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute KL(T̃(x') ‖ S(x')) or KL(T̃(x) ‖ S(x)), and add β·(1/K)·‖p_S(x') − p_S(x)‖², [B]."""
        with torch.no_grad():
            clean_target, target = teacher(batch.x), teacher(x_adv)
        clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
        difference = adversarial.float().softmax(dim=-1) - clean.float().softmax(dim=-1)
        terms = {
            "kl_adversarial": kl(adversarial, _corrected(target, batch.y)),
            "kl_clean": kl(clean, _corrected(clean_target, batch.y)),
            "mse": difference.square().mean(dim=-1),
        }
        is_right = clean_target.argmax(dim=1) == batch.y
        distillation = torch.where(is_right, terms["kl_adversarial"], terms["kl_clean"])
        return Outcome(
            loss=distillation + self.beta * terms["mse"], logits=adversarial, terms=terms, clean_logits=clean
        )


def _corrected(logits: Tensor, y: Tensor) -> Tensor:
    """Return logits [B,K] with that of the label and that of the largest other class exchanged where it is larger."""
    label = y[:, None]
    own = logits.gather(1, label)
    other, index = logits.masked_fill(F.one_hot(y, logits.shape[-1]).bool(), -torch.inf).max(dim=1, keepdim=True)
    return logits.scatter(1, label, own.maximum(other)).scatter(1, index, own.minimum(other))
