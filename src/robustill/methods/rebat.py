"""ReBAT: late in training the output stays near that of the averaged weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.losses import kl
from robustill.methods.base import Batch, Method, Network, Outcome, in_range
from robustill.methods.targets import label_ce


class ReBAT(Method):
    """CE(S(x'), y) + (from `begin`) β·KL(EMA(x') ‖ S(x')), x' maximising CE(S(x'), y).

    EMA is the average of the student's own weights after the last step, `optim.ema`, 0.999 as published; the average
    is also the network to use. In the authors' code it starts at `begin` as a copy of the student, and normalises with
    the batch until that epoch ends. Here it starts with the training, which is the same some thousand steps later.

    Published with mild decays of the learning rate, which are a setting of the training: `optim.schedule` multistep
    with `optim.decay` 0.667 (a factor of 1.5) at half and at three quarters of the epochs, for PreActResNet-18 with
    β 1; and a factor of 4 for WRN-34-10 with CutMix and β 2. ReBAT++ has a factor of 1.7 and, after the first decay, an
    attack of 12 steps within 10/255. The authors attack in train mode (`attack.batchnorm` train), and BatchNorm sees
    the clean images as well, in a pass after each step whose loss is only shown.

    Args:
        beta: β ≥ 0.
        begin: share of the epochs after which the second term begins, in [0,1].

    Reference: Wang et al. 2023, Balance, imbalance, and rebalance: understanding robust overfitting from a minimax game
        perspective.
    """

    roles = ("self",)
    reference = "Wang et al. 2023"

    def __init__(self, *, beta: float = 1.0, begin: float = 0.525) -> None:
        super().__init__()
        self.beta = in_range("beta", beta, 0)
        self.begin = in_range("begin", begin, 0, 1)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute CE(S(x'), y) + β·KL(EMA(x') ‖ S(x')), [B]."""
        logits = student(x_adv)
        terms = {"ce": label_ce(logits, batch)}
        if not batch.after(self.begin):
            return Outcome(loss=terms["ce"], logits=logits, terms=terms)
        with torch.no_grad():
            average = teacher(x_adv)
        terms["kl"] = kl(logits, average)
        return Outcome(loss=terms["ce"] + self.beta * terms["kl"], logits=logits, terms=terms)
