"""SAAD: more weight on the images whose adversarial version makes the teacher uncertain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import LossFn
from robustill.losses import kl
from robustill.methods.base import Batch, Method, Network, Outcome, in_range
from robustill.methods.igdm import gradient_matching
from robustill.methods.mtard import entropy


class SAAD(Method):
    """w·[KL(T(x') ‖ S(x')) + λ·(epoch/epochs)·IGDM] + β·(1−w̄)·KL(T(x) ‖ S(x)), epochs counted from 1.

    w = s·(H − min H) with H the entropy of T(x') and the minimum over the batch, w̄ = (w − min w)/(max w − min w). H is
    Rényi's entropy of order a, log(Σ_k p_k^a)/(1−a), and with a = 1, as published, Shannon's, −Σ_k p_k·log p_k.
    x' maximises KL(T̃(x') ‖ S(x')) from x + 0.001·N(0,1), where T̃ is T(x) with the label's logit linearised:
    T̃_y = T_y(x) + μ·∇T_y(x)·(x' − x). Published together with stochastic weight averaging, which is a setting of the
    training. With β = 0 the student does not see the clean images; the authors' code passes them through it
    nevertheless, which updates its BatchNorm statistics.

    Args:
        entropy_scale: s ≥ 0.
        matching: λ ≥ 0; 1 for CIFAR-10, 10 for CIFAR-100.
        beta: β ≥ 0.
        linearisation: μ ≥ 0.
        order: a > 0; within 0.001 of 1 it counts as 1.

    Reference: Lee and Chung 2026, Sample-wise adaptive weighting for transfer consistency in adversarial distillation.
    """

    roles = ("robust",)
    start = "gaussian"
    reference = "Lee and Chung 2026"
    single_label = True
    whole_batch = True

    def __init__(
        self,
        *,
        entropy_scale: float = 5.0,
        matching: float = 1.0,
        beta: float = 0.0,
        linearisation: float = 1.0,
        order: float = 1.0,
    ) -> None:
        super().__init__()
        self.entropy_scale = in_range("entropy_scale", entropy_scale, 0)
        self.matching = in_range("matching", matching, 0)
        self.beta = in_range("beta", beta, 0)
        self.linearisation = in_range("linearisation", linearisation, 0)
        self.order = in_range("order", order, 1e-3)

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn:
        """Return the adversary's objective, KL(T̃(x') ‖ S(x'))."""
        with torch.enable_grad():
            x = batch.x.detach().requires_grad_(True)
            logits = teacher(x).float()
            label_logit = logits.gather(1, batch.y[:, None])
            (gradient,) = torch.autograd.grad(label_logit.sum(), x)
        fixed = logits.detach()

        def objective(x_adv: Tensor) -> Tensor:
            rise = (gradient * (x_adv - batch.x)).flatten(1).sum(dim=1, keepdim=True)
            return kl(student(x_adv), fixed.scatter_add(1, batch.y[:, None], self.linearisation * rise))

        return objective

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute w·[KL(T(x') ‖ S(x')) + λ·(epoch/epochs)·IGDM] + β·(1−w̄)·KL(T(x) ‖ S(x)), [B]."""
        with torch.no_grad():
            target = teacher(x_adv)
            uncertainty = _renyi_entropy(target, self.order)
            weight = self.entropy_scale * (uncertainty - uncertainty.min())
            share = weight / weight.max().clamp_min(1e-8)
        adversarial = student(x_adv)
        terms = {
            "kl_adversarial": kl(adversarial, target),
            "igdm": gradient_matching(x_adv, 2 * batch.x - x_adv, adversarial, student, teacher),
        }
        progress = (batch.epoch + 1) / batch.epochs
        loss = weight * (terms["kl_adversarial"] + self.matching * progress * terms["igdm"])
        clean = None
        if self.beta > 0:
            with torch.no_grad():
                clean_target = teacher(batch.x)
            clean = student(batch.x)
            terms["kl_clean"] = kl(clean, clean_target)
            loss = loss + self.beta * (1 - share) * terms["kl_clean"]
        return Outcome(loss=loss, logits=adversarial, terms=terms, clean_logits=clean)


def _renyi_entropy(logits: Tensor, order: float) -> Tensor:
    """Compute Rényi's entropy of the softmax, per sample: log(Σ_k p_k^a)/(1−a)."""
    # Near 1 numerator and denominator both vanish, and float32 keeps no digit of their ratio.
    if abs(order - 1) < 1e-3:
        return entropy(logits)
    return (order * logits.float().log_softmax(dim=-1)).logsumexp(dim=-1) / (1 - order)
