"""KD+SWA: distillation from the label, a robust and a natural teacher, all at the adversarial image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.losses import soft_ce
from robustill.methods.base import Batch, Method, Network, Outcome, in_range, remaining, teacher_of
from robustill.methods.targets import label_ce


class KDSWA(Method):
    """(1−λ₁−λ₂)·CE(S(x'), y) + λ₁·t²·softCE(T_rob(x')/t, S(x')/t) + λ₂·t²·softCE(T_nat(x')/t, S(x')/t).

    x' maximises CE(S(x'), y). Published together with stochastic weight averaging, which is a setting of the training
    and not part of the loss: `optim.swa`. Also written AKD²; a later comparison by other authors uses λ₁ = 0.5,
    λ₂ = 0.25 and KL in place of the soft cross-entropy, which has the same gradient.

    Args:
        robust_weight: λ₁, in [0,1].
        natural_weight: λ₂, in [0,1−λ₁].
        temperature: t > 0.

    Reference: Chen et al. 2021, Robust overfitting may be mitigated by properly learned smoothening.
    """

    roles = ("robust", "natural")
    reference = "Chen et al. 2021"

    def __init__(self, *, robust_weight: float = 0.6, natural_weight: float = 0.1, temperature: float = 2.0) -> None:
        super().__init__()
        self.robust_weight = in_range("robust_weight", robust_weight, 0, 1)
        self.natural_weight = in_range("natural_weight", natural_weight, 0, remaining(self.robust_weight))
        self.temperature = in_range("temperature", temperature, 1e-3)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute the weighted sum of the label's and the two teachers' terms, [B]."""
        t = self.temperature
        with torch.no_grad():
            robust = (teacher_of(teacher, "robust")(x_adv).float() / t).softmax(dim=-1)
            natural = (teacher_of(teacher, "natural")(x_adv).float() / t).softmax(dim=-1)
        logits = student(x_adv)
        scaled = logits.float() / t
        terms = {
            "ce": label_ce(logits, batch),
            "soft_ce_robust": t**2 * soft_ce(scaled, robust),
            "soft_ce_natural": t**2 * soft_ce(scaled, natural),
        }
        loss = (
            max(1 - self.robust_weight - self.natural_weight, 0) * terms["ce"]
            + self.robust_weight * terms["soft_ce_robust"]
            + self.natural_weight * terms["soft_ce_natural"]
        )
        return Outcome(loss=loss, logits=logits, terms=terms)
