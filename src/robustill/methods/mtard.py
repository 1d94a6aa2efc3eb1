"""MTARD and B-MTARD: a robust teacher for adversarial and a natural one for clean images, with adaptive weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.losses import kl
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range, teacher_of

# The range of B-MTARD's temperatures in the authors' code.
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 1.0, 10.0
# Lower bound of a first loss, in nats, since the other losses are divided by it.
_SMALLEST_LOSS = 1e-8


class MTARD(Method):
    """w_a·KL(T_rob(x') ‖ S(x')) + w_n·KL(T_nat(x) ‖ S(x)); x' maximises CE(S(x'), y) from x + 0.001·N(0,1).

    The weights follow the relative losses l = L/L(first step), means over the batch:
    w_n ← w_n − r·(w_n − l_n/(l_a+l_n)), w_a = 1 − w_n, from ½ each; the loss of a step uses the weights it has updated.

    B-MTARD also softens the output of the more certain teacher and sharpens that of the other: with H_a and H_n their
    mean entropies at their temperatures, τ_a ← τ_a − r_τ·sign(H_a − H_n) and τ_n ← τ_n − r_τ·sign(H_n − H_a), within
    [1,10], from 1. The student has no temperature, and the loss of a step uses the temperatures from before it.

    Both rates are multiplied by the step's share of the largest learning rate: the authors multiply them by 0.1
    whenever they do so with the learning rate. Their code averages over the classes as well, which makes its loss K
    times smaller.

    Args:
        weight_rate: r, in [0,1].
        temperature_rate: r_τ ≥ 0; 0 is MTARD, 0.001 is B-MTARD as published.
        joint_forward: x and x' in one forward pass of the outer loss; as published, in two.

    Reference: Zhao et al. 2022, Enhanced accuracy and robustness via multi-teacher adversarial distillation; B-MTARD:
        Zhao et al. 2024, Mitigating accuracy-robustness trade-off via balanced multi-teacher adversarial distillation.
    """

    roles = ("robust", "natural")
    start = "gaussian"
    reference = "Zhao et al. 2022"
    whole_batch = True
    first: Tensor
    natural_weight: Tensor
    temperature: Tensor
    _entropies: Tensor

    def __init__(
        self, *, weight_rate: float = 0.025, temperature_rate: float = 0.0, joint_forward: bool = False
    ) -> None:
        super().__init__()
        self.weight_rate = in_range("weight_rate", weight_rate, 0, 1)
        self.temperature_rate = in_range("temperature_rate", temperature_rate, 0)
        self.joint_forward = joint_forward
        # The robust teacher is first, the natural one second.
        self.register_buffer("first", torch.full((2,), torch.nan))
        self.register_buffer("natural_weight", torch.tensor(0.5))
        self.register_buffer("temperature", torch.ones(2))

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute w_a·KL(T_rob(x')/τ_a ‖ S(x')) + w_n·KL(T_nat(x)/τ_n ‖ S(x)), [B]."""
        with torch.no_grad():
            robust = teacher_of(teacher, "robust")(x_adv).float() / self.temperature[0]
            natural = teacher_of(teacher, "natural")(batch.x).float() / self.temperature[1]
            self._entropies = torch.stack([entropy(robust).mean(), entropy(natural).mean()])
        clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
        terms = {"kl_robust": kl(adversarial, robust), "kl_natural": kl(clean, natural)}
        return Outcome(loss=self.balanced(batch, terms), logits=adversarial, terms=terms, clean_logits=clean)

    def balanced(self, batch: Batch, terms: dict[str, Tensor]) -> Tensor:
        """Weigh the two terms against one another: w_a·kl_robust + w_n·kl_natural, [B]."""
        weight = self._updated_natural_weight(batch, terms)
        return (1 - weight) * terms["kl_robust"] + weight * terms["kl_natural"]

    def update(self, batch: Batch, outcome: Outcome) -> None:
        """Update the weights and, for B-MTARD, the temperatures."""
        self.natural_weight.copy_(self._updated_natural_weight(batch, outcome.terms))
        self.first.copy_(torch.where(self.first.isnan(), _means(outcome.terms), self.first))
        surplus = torch.sign(self._entropies - self._entropies.flip(0))
        temperature = self.temperature - self.temperature_rate * batch.rate_factor * surplus
        self.temperature.copy_(temperature.clamp(_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE))

    def _updated_natural_weight(self, batch: Batch, terms: dict[str, Tensor]) -> Tensor:
        means = _means(terms)
        # The first losses of a student that is a copy of its teacher are 0.
        relative = means / torch.where(self.first.isnan(), means, self.first).clamp_min(_SMALLEST_LOSS)
        total = relative.sum()
        goal = torch.where(total > 0, relative[1] / total, self.natural_weight)
        return self.natural_weight - self.weight_rate * batch.rate_factor * (self.natural_weight - goal)


def _means(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([terms["kl_robust"].detach().mean(), terms["kl_natural"].detach().mean()])


def entropy(logits: Tensor) -> Tensor:
    """Compute the entropy of the softmax, per sample: −Σ_k p_k log p_k.

    Args:
        logits: [B,K].

    Returns:
        [B], float32, in nats.

    Example:
        >>> entropy(torch.zeros(1, 2))   # log 2
        tensor([0.6931])
    """
    log_p = logits.float().log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)
