"""LBGAT: follow the logits of a natural network that is trained together with the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import LossFn
from robustill.losses import kl
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range
from robustill.methods.targets import label_ce


class LBGAT(Method):
    """(1/K)·‖S(x') − N(x)‖² + CE(N(x), y) + β·KL(S(x) ‖ S(x')), of logits; x' maximises KL(S(x) ‖ S(x')), S(x) fixed.

    N is a natural network that is trained together with the student: the squared distance moves both, and neither it
    nor S(x) is detached in the loss. x' starts at x + 0.001·N(0,1). N's parameters belong to the method and are trained
    by the student's optimizer, at its learning rate, as published. The authors train a ResNet-18 beside a
    WideResNet-34-10; their published script has β = 0, and the other results of the paper β = 6.

    With β = 0 the loss does not take S(x); the authors' code passes x through the student nevertheless, which updates
    its BatchNorm statistics.

    Args:
        beta: β ≥ 0.
        natural: the architecture of N; null takes the student's.
        natural_options: options of that architecture.
        joint_forward: x and x' in one forward pass of the student's outer loss (only when β > 0); as published, in two.

    Reference: Cui et al. 2021, Learnable boundary guided adversarial training.
    """

    start = "gaussian"
    reference = "Cui et al. 2021"

    def __init__(
        self,
        *,
        beta: float = 0.0,
        natural: str | None = None,
        natural_options: Mapping[str, Any] | None = None,
        joint_forward: bool = False,
    ) -> None:
        super().__init__()
        self.beta = in_range("beta", beta, 0)
        self.natural_name, self.natural_options = natural, dict(natural_options or {})
        self.joint_forward = joint_forward

    def set_up(self, network: Callable[..., nn.Module]) -> None:
        """Build the natural network."""
        self.guide = network(self.natural_name, **self.natural_options)

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn:
        """Return the adversary's objective, KL(S(x) ‖ S(x')) with S(x) fixed."""
        with torch.no_grad():
            clean = student(batch.x)
        return lambda x_adv: kl(student(x_adv), clean)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute (1/K)·‖S(x') − N(x)‖² + CE(N(x), y) + β·KL(S(x) ‖ S(x')), [B]."""
        natural = self.guide(batch.x)
        clean = None
        if self.beta > 0:
            clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
        else:
            adversarial = student(x_adv)
        terms = {
            "mse": (adversarial.float() - natural.float()).square().mean(dim=-1),
            "natural_ce": label_ce(natural, batch),
        }
        loss = terms["mse"] + terms["natural_ce"]
        if clean is not None:
            terms["kl"] = kl(adversarial, clean)
            loss = loss + self.beta * terms["kl"]
        return Outcome(loss=loss, logits=adversarial, terms=terms, clean_logits=clean)
