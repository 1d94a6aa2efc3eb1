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
    """base + λ·(epoch/epochs)·KL(T(x+δ) − T(x−δ) ‖ S(x+δ) − S(x−δ)), δ = x' − x, epochs counted from 1.

    The differences of logits are treated as logits. x − δ may leave [0,1], as in the authors' code. x' is the base's;
    S(x+δ) is the S(x') that the base has computed. The authors' own AdaAD and IGDM scripts call that attack with its
    radius and step size swapped (radius 2/255, step 8/255). Their later script compares x+βδ and x−γδ, with scales β
    and γ of δ that are 1 by default, and takes λ = 20 on CIFAR-100; here β = γ = 1, as in the paper.

    Args:
        weight: λ ≥ 0; in the paper 1 for CIFAR-10 and 10 for CIFAR-100.
        base: the method that the term is added to, with at most one teacher.
        base_options: options of the base; null keeps the published ones.

    Reference: Lee et al. 2025, Indirect gradient matching for adversarial robust distillation.
    """

    roles = ("robust",)
    reference = "Lee et al. 2025"

    def __init__(
        self, *, weight: float = 1.0, base: str = "adaad", base_options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.weight = in_range("weight", weight, 0)
        self.base = base_method("igdm", base, base_options)
        self.start = self.base.start

    def set_up(self, network: Callable[..., nn.Module]) -> None:
        """Build the networks of the base."""
        self.base.set_up(network)

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn | None:
        """Return the base's objective."""
        return self.base.inner(batch, student, teacher)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute base + λ·(epoch/epochs)·KL(T(x+δ) − T(x−δ) ‖ S(x+δ) − S(x−δ)), [B]."""
        outcome = self.base.outer(batch, x_adv, student, teacher)
        matching = gradient_matching(batch, x_adv, outcome.logits, student, teacher)
        loss = outcome.loss + self.weight * (batch.epoch + 1) / batch.epochs * matching
        return replace(outcome, loss=loss, terms={**outcome.terms, "igdm": matching})

    def update(self, batch: Batch, outcome: Outcome) -> None:
        """Update the state of the base."""
        self.base.update(batch, outcome)


def gradient_matching(batch: Batch, x_adv: Tensor, adversarial: Tensor, student: Network, teacher: nn.Module) -> Tensor:
    """Compute KL(T(x+δ) − T(x−δ) ‖ S(x+δ) − S(x−δ)) with δ = x' − x, per sample.

    Args:
        batch: the batch with the clean images.
        x_adv: x' = x + δ.
        adversarial: S(x'), [B,K].
        student: evaluated at x − δ.
        teacher: evaluated at x' and x − δ.

    Returns:
        [B], float32, in nats.
    """
    opposite = 2 * batch.x - x_adv
    with torch.no_grad():
        target = teacher(x_adv).float() - teacher(opposite)
    return kl(adversarial.float() - student(opposite), target)


def base_method(name: str, base: str, options: Mapping[str, Any] | None, *, among: tuple[str, ...] = ()) -> Method:
    """Build the method that another method extends.

    Args:
        name: the name of the method that extends it.
        base: the name of the base.
        options: options of the base.
        among: the allowed bases; empty allows every method that takes at most a robust teacher.

    Raises:
        ConfigError: the base is unknown or not allowed.
    """
    # Imported here because the registry imports this file.
    from robustill.methods import build_method

    if among and base not in among:
        raise ConfigError(f"method {name} has base {base!r}: expected {' or '.join(among)}")
    method = build_method(base, **dict(options or {}))
    if not set(method.roles) <= {"robust"}:
        raise ConfigError(
            f"method {name} has base {base!r}, which takes teachers {', '.join(method.roles)}: expected one"
        )
    return method
