"""AKD: adversarial training on a mixture of the label and a robust teacher's output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.losses import soft_ce
from robustill.methods.base import Batch, Method, Network, Outcome, in_range
from robustill.methods.targets import mixed_target


class AKD(Method):
    """Soft cross-entropy at x' against α·p_T(x') + (1−α)·onehot(y); x' maximises CE(S(x'), y) on the hard label.

    The teacher's output is the one at x', the student's own adversarial image. There is no temperature and no term for
    clean images. α = 0 is PGD-AT; α = 1 has the gradient of KL(T(x') ‖ S(x')).

    Args:
        alpha: weight of the teacher in the mixture, in [0,1]. The default is our choice: the authors' later public code
            searches 0.2 to 1.0.

    Reference: Maroto, Ortiz-Jiménez and Frossard 2022, arXiv 2203.07159.
    """

    roles = ("robust",)
    reference = "Maroto et al. 2022"

    def __init__(self, *, alpha: float = 0.8) -> None:
        super().__init__()
        self.alpha = in_range("alpha", alpha, 0, 1)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute the soft CE(S(x'), α·p_T(x') + (1−α)·onehot(y)), [B]."""
        with torch.no_grad():
            target = mixed_target(teacher(x_adv), batch, self.alpha)
        logits = student(x_adv)
        return Outcome(loss=soft_ce(logits, target), logits=logits)
