"""Ensembles of teachers, and the one module that a method takes as its teacher."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from robustill.core.errors import ConfigError, ModelError
from robustill.core.validation import check_choice, check_module, check_type, describe

Mean = Literal["probabilities", "logits"]


class Ensemble(nn.Module):
    """The weighted mean of several networks, as one network.

    "probabilities": log Σ_i w_i·softmax(T_i(x)), the log of the weighted mean probability, which is again a logit.
    "logits": Σ_i w_i·T_i(x).

    Args:
        members: networks [B,C,H,W] -> [B,K] with the same K.
        weights: one per member, not negative; divided by their sum. None gives all members the same weight.
        mean: whether probabilities or logits are averaged.

    Raises:
        ConfigError: no member, a weight that is negative or not finite, a number of weights that differs from the
            number of members, or an unknown mean.
        ModelError: a member is no Module; in `forward`, members give logits of different shapes.

    Example:
        >>> one, two = nn.Linear(1, 2), nn.Linear(1, 2)
        >>> x = torch.ones(1, 1)
        >>> torch.allclose(Ensemble([one, two])(x).exp(), (one(x).softmax(-1) + two(x).softmax(-1)) / 2)
        True
    """

    weights: Tensor

    def __init__(
        self, members: Sequence[nn.Module], weights: Sequence[float] | None = None, mean: Mean = "probabilities"
    ) -> None:
        super().__init__()
        if not isinstance(members, Sequence | nn.ModuleList):
            raise ConfigError(f"members is {describe(members)}, expected a list of networks")
        for number, member in enumerate(members):
            check_module(f"member {number}", member)
        weights = [1.0] * len(members) if weights is None else _as_list(weights)
        valid = all(_is_weight(weight) for weight in weights) and sum(weights) > 0
        if not valid or len(weights) != len(members):
            raise ConfigError(
                f"an ensemble of {len(members)} teachers with weights {list(weights)}: "
                "expected at least one teacher and one weight of at least 0 for each, not all 0"
            )
        check_choice("mean", mean, get_args(Mean))
        self.members = nn.ModuleList(members)
        self.mean = mean
        self.register_buffer("weights", torch.tensor(weights) / sum(weights))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of the ensemble, float32 [B,K]."""
        returned = [member(x) for member in self.members]
        for number, output in enumerate(returned):
            check_type(f"the output of member {number}", output, Tensor, "a tensor of logits [B,K]", ModelError)
        outputs: list[Tensor] = [output.float() for output in returned]
        shapes = [list(output.shape) for output in outputs]
        if any(shape != shapes[0] for shape in shapes):
            raise ModelError(f"the teachers of an ensemble give logits of shapes {shapes}: expected one shape")
        logits, weights = torch.stack(outputs), self.weights[:, None, None]
        if self.mean == "logits":
            return (weights * logits).sum(dim=0)
        return (logits.log_softmax(dim=-1) + weights.log()).logsumexp(dim=0)


def _as_list(weights: Any) -> list[float]:
    if isinstance(weights, str) or not isinstance(weights, Iterable):
        raise ConfigError(f"weights is {describe(weights)}, expected a list of numbers, one for each member")
    return weights.tolist() if isinstance(weights, Tensor) else list(weights)


def _is_weight(value: Any) -> bool:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0


def combine(teachers: Iterable[tuple[str, float, nn.Module]], mean: Mean = "probabilities") -> nn.Module | None:
    """Combine teachers into the one module that a method takes as its teacher.

    Args:
        teachers: role, weight and network of each.
        mean: what an ensemble averages.

    Returns:
        The network of a single teacher, an `Ensemble` of several with one role, a ModuleDict by role where there are
        several roles, or None where there are no teachers.
    """
    by_role: dict[str, list[tuple[float, nn.Module]]] = {}
    for role, weight, network in teachers:
        by_role.setdefault(role, []).append((weight, network))
    combined: dict[str, nn.Module] = {}
    for role, members in by_role.items():
        weights = [weight for weight, _ in members]
        networks = [network for _, network in members]
        combined[role] = networks[0] if len(networks) == 1 else Ensemble(networks, weights, mean)
    if not combined:
        return None
    if len(combined) > 1:
        return nn.ModuleDict(combined)
    (network,) = combined.values()
    return network
