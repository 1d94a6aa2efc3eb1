"""HAT: TRADES, with images beyond the adversarial ones that a natural network labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import LossFn
from robustill.losses import ce, kl
from robustill.methods.base import Batch, Method, Network, Outcome, in_range
from robustill.methods.targets import label_ce


class HAT(Method):
    """CE(S(x), y) + β·KL(S(x) ‖ S(x')) + γ·CE(S(x + h·δ), argmax N(x')), δ = x' − x; x' is that of TRADES.

    N is an ordinarily trained network, the teacher of role "natural"; its predictions are labels of the helper images
    x + h·δ, which may leave [0,1], as in the authors' code. S(x) is not detached, and x, x' and the helper images are
    three forward passes, as published.

    The default β and γ are those of the authors' commands for CIFAR-10. Their loss function has a default h of 3.5 that
    no command uses: the scripts pass 2, as in the paper.

    Args:
        beta: β ≥ 0.
        gamma: γ ≥ 0.
        distance: h ≥ 0.

    Reference: Rade and Moosavi-Dezfooli 2022, Reducing excessive margin to achieve a better accuracy vs. robustness
        trade-off.
    """

    roles = ("natural",)
    start = "gaussian"
    reference = "Rade and Moosavi-Dezfooli 2022"

    def __init__(self, *, beta: float = 2.5, gamma: float = 0.5, distance: float = 2.0) -> None:
        super().__init__()
        self.beta = in_range("beta", beta, 0)
        self.gamma = in_range("gamma", gamma, 0)
        self.distance = in_range("distance", distance, 0)

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn:
        """Return the adversary's objective, KL(S(x) ‖ S(x')) with S(x) fixed."""
        with torch.no_grad():
            clean = student(batch.x)
        return lambda x_adv: kl(student(x_adv), clean)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute CE(S(x), y) + β·KL(S(x) ‖ S(x')) + γ·CE(S(x + h·δ), argmax N(x')), [B]."""
        with torch.no_grad():
            helper_label = teacher(x_adv).argmax(dim=1)
        clean, adversarial = student(batch.x), student(x_adv)
        helper = student(batch.x + self.distance * (x_adv - batch.x))
        terms = {"ce": label_ce(clean, batch), "kl": kl(adversarial, clean), "helper_ce": ce(helper, helper_label)}
        loss = terms["ce"] + self.beta * terms["kl"] + self.gamma * terms["helper_ce"]
        return Outcome(loss=loss, logits=adversarial, terms=terms, clean_logits=clean)
