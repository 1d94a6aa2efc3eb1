"""MART: adversarial training with more weight on images whose label has a low probability."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.losses import ce, kl
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range
from robustill.methods.targets import label_ce


class MART(Method):
    """BCE(S(x'), y) + β·KL(S(x) ‖ S(x'))·(1 − p_S(y|x)); x' maximises CE(S(x'), y).

    BCE = CE(S(x'), y) − log(1.0001 − max_{k≠y} p_S(k|x')). Neither S(x) nor the weight is detached. The authors' code
    has β = 6 as its default and starts its attack at x + 0.001·N(0,1).

    Args:
        beta: β ≥ 0; 5 is the paper's value.
        joint_forward: x and x' in one forward pass of the outer loss; as published, in two.

    Reference: Wang et al. 2020, Improving adversarial robustness requires revisiting misclassified examples.
    """

    reference = "Wang et al. 2020"
    single_label = True

    def __init__(self, *, beta: float = 5.0, joint_forward: bool = False) -> None:
        super().__init__()
        self.beta = in_range("beta", beta, 0)
        self.joint_forward = joint_forward

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute BCE(S(x'), y) + β·KL(S(x) ‖ S(x'))·(1 − p_S(y|x)), [B]."""
        clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
        own = F.one_hot(batch.y, clean.shape[-1]).bool()
        best_other = adversarial.float().softmax(dim=-1).masked_fill(own, 0).amax(dim=-1)
        weight = 1 - torch.exp(-ce(clean, batch.y))
        terms = {
            "bce": label_ce(adversarial, batch) - torch.log(1.0001 - best_other),
            "kl": kl(adversarial, clean) * weight,
        }
        return Outcome(loss=terms["bce"] + self.beta * terms["kl"], logits=adversarial, terms=terms, clean_logits=clean)
