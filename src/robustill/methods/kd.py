"""KD: distillation on clean images, a baseline without an adversary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.losses import kl
from robustill.methods.base import Batch, Method, Network, Outcome, in_range
from robustill.methods.targets import label_ce


class KD(Method):
    """α·t²·KL(T(x)/t ‖ S(x)/t) + (1−α)·CE(S(x), y); no adversary.

    The paper does not fix α and t; the defaults are our choice.

    Args:
        alpha: weight of the teacher, in [0,1].
        temperature: t > 0.

    Reference: Hinton et al. 2015, Distilling the knowledge in a neural network.
    """

    roles = ("robust",)
    reference = "Hinton et al. 2015"

    def __init__(self, *, alpha: float = 0.9, temperature: float = 4.0) -> None:
        super().__init__()
        self.alpha = in_range("alpha", alpha, 0, 1)
        self.temperature = in_range("temperature", temperature, 1e-3)

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> None:
        """Return None: there is no adversary."""
        return None

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute α·t²·KL(T(x)/t ‖ S(x)/t) + (1−α)·CE(S(x), y), [B]."""
        with torch.no_grad():
            target = teacher(batch.x)
        logits = student(batch.x)
        terms = {"kl": kl(logits, target, self.temperature), "ce": label_ce(logits, batch)}
        return Outcome(loss=self.alpha * terms["kl"] + (1 - self.alpha) * terms["ce"], logits=logits, terms=terms)
