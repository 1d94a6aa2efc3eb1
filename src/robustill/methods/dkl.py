"""DKL: TRADES with the KL divergence split into two terms of separate weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.attacks.pgd import LossFn
from robustill.core.distributed import all_reduce
from robustill.losses import soft_ce
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range
from robustill.methods.targets import label_ce


class DKL(Method):
    """CE(S(x), y) + α·softCE(p_S(x) → S(x')) + β·¼·Σ_jk w_j·w_k·(Δ_jk(x) − Δ_jk(x'))², Δ_jk = S_j − S_k.

    p_S(x) in the second term is detached; in the third, S(x) is not. w is the mean softmax(S(x)/t) over the images of
    the label's class in the previous epoch, and 1/K in the first epoch. x' maximises softCE(p_S(x) → S(x')) from
    x + 0.001·N(0,1); its gradient is that of TRADES' KL. The authors' recipe also increases the radius over the epochs
    and uses AWP and weight averaging, which are settings of the training.

    With γ ≠ 1 it is GKL, the authors' second version: the weights of the third term are (w_j·w_k)^γ, divided by the
    mean over the batch of their sums. Their scripts have γ = 0.2 and t = 1 for CIFAR-10, 0.4 and 1 for CIFAR-100. The
    adversary's objective keeps γ = 1.

    Args:
        alpha: α ≥ 0.
        beta: β ≥ 0.
        temperature: t > 0, for w only.
        gamma: γ ≥ 0; 1 is DKL. With another value the images of a batch are compared.
        inner_beta: ≥ 0, weight of the third term in the adversary's objective; 1 in the authors' script for CIFAR-100.
        joint_forward: x and x' in one forward pass of the outer loss; as published, in two.

    Reference: Cui et al. 2024, Decoupled Kullback-Leibler divergence loss; GKL: Cui et al. 2025, Generalized
        Kullback-Leibler divergence loss; in the form of the authors' code.
    """

    start = "gaussian"
    reference = "Cui et al. 2024"
    single_label = True
    weight: Tensor
    total: Tensor
    _clean: Tensor

    def __init__(
        self,
        *,
        alpha: float = 4.0,
        beta: float = 20.0,
        temperature: float = 4.0,
        gamma: float = 1.0,
        inner_beta: float = 0.0,
        joint_forward: bool = False,
    ) -> None:
        super().__init__()
        self.alpha = in_range("alpha", alpha, 0)
        self.beta = in_range("beta", beta, 0)
        self.temperature = in_range("temperature", temperature, 1e-3)
        self.gamma = in_range("gamma", gamma, 0)
        self.whole_batch = self.gamma != 1
        self.inner_beta = in_range("inner_beta", inner_beta, 0)
        self.joint_forward = joint_forward
        self.epoch = -1
        self.register_buffer("weight", torch.empty(0))
        self.register_buffer("total", torch.empty(0))

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn:
        """Return softCE(p_S(x) → S(x')) + inner_beta·¼·Σ_jk w_j·w_k·(Δ_jk(x) − Δ_jk(x'))², S(x) fixed."""
        with torch.no_grad():
            clean = student(batch.x).float()
        target = clean.softmax(dim=-1)
        weight = self._weights(batch, clean.shape[-1])[batch.y]

        def objective(x_adv: Tensor) -> Tensor:
            adversarial = student(x_adv)
            value = soft_ce(adversarial, target)
            return value if self.inner_beta == 0 else value + self.inner_beta * _spread(clean - adversarial, weight)

        return objective

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute CE(S(x), y) + α·softCE(p_S(x) → S(x')) + β·¼·Σ_jk w_j·w_k·(Δ_jk(x) − Δ_jk(x'))², [B]."""
        clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
        self._clean = clean.detach().float()
        weight = self._weights(batch, clean.shape[-1])[batch.y]
        terms = {
            "ce": label_ce(clean, batch),
            "soft_ce": soft_ce(adversarial, self._clean.softmax(dim=-1)),
            "wmse": self._weighted_spread(clean - adversarial.float(), weight),
        }
        loss = terms["ce"] + self.alpha * terms["soft_ce"] + self.beta * terms["wmse"]
        return Outcome(loss=loss, logits=adversarial, terms=terms, clean_logits=clean)

    def update(self, batch: Batch, outcome: Outcome) -> None:
        """Add the batch to the mean outputs of the classes; the first batch of an epoch closes the previous one."""
        num_classes = outcome.logits.shape[-1]
        if self.epoch != batch.epoch:
            self.weight = self._weights(batch, num_classes)
            self.total = torch.zeros_like(self.weight)
            self.epoch = batch.epoch
        own = F.one_hot(batch.y, num_classes).float()
        self.total += all_reduce(own.T @ (self._clean / self.temperature).softmax(dim=-1))

    def get_extra_state(self) -> int:
        """Return the epoch of the counts. It is a plain number because reading it from a GPU would synchronise."""
        return self.epoch

    def set_extra_state(self, state: int) -> None:
        """Restore the epoch of the counts."""
        self.epoch = state

    def _weighted_spread(self, difference: Tensor, weight: Tensor) -> Tensor:
        """Compute the third term, per sample."""
        if self.gamma == 1:
            return _spread(difference, weight)
        power = weight**self.gamma
        total = power.sum(dim=-1, keepdim=True)
        # Σ_jk (w_j·w_k)^γ is the square of Σ_k w_k^γ.
        share = total.square() / total.square().mean()
        return share[:, 0] * _spread(difference, power / total)

    def _weights(self, batch: Batch, num_classes: int) -> Tensor:
        """Return the weights w as [K,K]: row c has those of an image of class c."""
        if self.epoch == batch.epoch:
            return self.weight
        if self.epoch < 0:
            return torch.full((num_classes, num_classes), 1 / num_classes, device=batch.y.device)
        counts = self.total.sum(dim=1, keepdim=True)
        return torch.where(counts > 0, self.total / counts, self.weight)


def _spread(difference: Tensor, weight: Tensor) -> Tensor:
    """Compute ¼·Σ_jk w_j·w_k·(d_j − d_k)², per sample.

    Since Σ w = 1 it equals ½·Σ_k w_k·(d_k − Σ_j w_j·d_j)², which has K terms in place of K².
    """
    centre = (weight * difference).sum(dim=-1, keepdim=True)
    return 0.5 * (weight * (difference - centre).square()).sum(dim=-1)
