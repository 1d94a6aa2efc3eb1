"""IGDM: another method, plus a term that matches how the teacher's output changes around the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import LossFn
from robustill.core.errors import ConfigError
from robustill.losses import kl
from robustill.methods.base import Batch, Method, Network, Outcome, in_range


class IGDM(Method):
    """base + λ·(epoch/epochs)·KL(T(x+βδ) − T(x−γδ) ‖ S(x+βδ) − S(x−γδ)), δ = x' − x, epochs counted from 1.

    The differences of logits are treated as logits. Both images may leave [0,1], as in the authors' code. x' is the
    base's, and with β = 1 the S(x+δ) is the S(x') that the base has computed. The paper has β = γ = 1, and so do the
    authors' commands. Their later scripts for AdaAD and IGDM call the attack with its radius and step size swapped
    (radius 2/255, step 8/255); the one for CIFAR-100 takes λ = 20.

    Args:
        weight: λ ≥ 0; in the paper 1 for CIFAR-10 and 10 for CIFAR-100.
        beta: β ≥ 0.
        gamma: γ ≥ 0.
        base: the method that the term is added to, with at most one teacher.
        base_options: options of the base; null keeps the published ones.

    Reference: Lee et al. 2025, Indirect gradient matching for adversarial robust distillation.
    """

    roles = ("robust",)
    reference = "Lee et al. 2025"

    def __init__(
        self,
        *,
        weight: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        base: str = "adaad",
        base_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.weight = in_range("weight", weight, 0)
        self.beta = in_range("beta", beta, 0)
        self.gamma = in_range("gamma", gamma, 0)
        self.base = base_method("igdm", base, base_options)
        self.start = self.base.start

    def set_up(self, network: Callable[..., nn.Module]) -> None:
        """Build the networks of the base."""
        self.base.set_up(network)

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn | None:
        """Return the base's objective."""
        return self.base.inner(batch, student, teacher)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute base + λ·(epoch/epochs)·KL(T(x+βδ) − T(x−γδ) ‖ S(x+βδ) − S(x−γδ)), [B]."""
        outcome = self.base.outer(batch, x_adv, student, teacher)
        ahead, logits = x_adv, outcome.logits
        if self.beta != 1:
            ahead = batch.x + self.beta * (x_adv - batch.x)
            logits = student(ahead)
        behind = batch.x - self.gamma * (x_adv - batch.x)
        matching = gradient_matching(ahead, behind, logits, student, teacher)
        loss = outcome.loss + self.weight * (batch.epoch + 1) / batch.epochs * matching
        return replace(outcome, loss=loss, terms={**outcome.terms, "igdm": matching})

    def update(self, batch: Batch, outcome: Outcome) -> None:
        """Update the state of the base."""
        self.base.update(batch, outcome)


def gradient_matching(ahead: Tensor, behind: Tensor, logits: Tensor, student: Network, teacher: nn.Module) -> Tensor:
    """Compute KL(T(ahead) − T(behind) ‖ S(ahead) − S(behind)), per sample.

    Args:
        ahead: images on the side of x', such as x' itself.
        behind: images on the other side of x, such as 2x − x'.
        logits: S(ahead), [B,K].
        student: evaluated at `behind`.
        teacher: evaluated at both.

    Returns:
        [B], float32, in nats.
    """
    with torch.no_grad():
        target = teacher(ahead).float() - teacher(behind)
    return kl(logits.float() - student(behind), target)


def base_method(name: str, base: str, options: Mapping[str, Any] | None, *, among: tuple[str, ...] = ()) -> Method:
    """Build the method that another method extends.

    Args:
        name: the name of the method that extends it.
        base: the name of the base.
        options: options of the base.
        among: the names of the allowed bases; empty allows every method that takes at most a robust teacher.

    Raises:
        ConfigError: the base is unknown or not allowed.
    """
    # Imported here because the registry imports this file.
    from robustill.methods import build_method

    if among and base not in among:
        raise ConfigError(f"method {name} has base {base!r}: expected {', '.join(among[:-1])} or {among[-1]}")
    method = build_method(base, **dict(options or {}))
    if not among and not set(method.roles) <= {"robust"}:
        raise ConfigError(
            f"method {name} has base {base!r}, which takes teachers {', '.join(method.roles)}: expected a base "
            "with none but a robust one"
        )
    return method
