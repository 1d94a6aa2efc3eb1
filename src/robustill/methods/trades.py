"""TRADES: cross-entropy on clean images, plus a KL that keeps the output constant around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import LossFn
from robustill.losses import kl
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range
from robustill.methods.targets import label_ce


class TRADES(Method):
    """CE(S(x), y) + β·KL(S(x) ‖ S(x')), x' maximising the same KL with S(x) fixed, from x + 0.001·N(0,1).

    S(x) is differentiated in the outer loss (detaching it costs about 2.7 points of robust accuracy).

    Args:
        beta: β ≥ 0.
        joint_forward: x and x' in one forward pass of the outer loss; as published, in two.

    Reference: Zhang et al. 2019, Theoretically principled trade-off between robustness and accuracy, eq. 5.
    """

    start = "gaussian"
    reference = "Zhang et al. 2019"

    def __init__(self, *, beta: float = 6.0, joint_forward: bool = False) -> None:
        super().__init__()
        self.beta = in_range("beta", beta, 0)
        self.joint_forward = joint_forward

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn:
        """Return the adversary's objective, KL(S(x) ‖ S(x')) with S(x) fixed."""
        with torch.no_grad():
            clean = student(batch.x)
        return lambda x_adv: kl(student(x_adv), clean)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute CE(S(x), y) + β·KL(S(x) ‖ S(x')), [B]."""
        clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
        terms = {"ce": label_ce(clean, batch), "kl": kl(adversarial, clean)}
        return Outcome(loss=terms["ce"] + self.beta * terms["kl"], logits=adversarial, terms=terms, clean_logits=clean)
