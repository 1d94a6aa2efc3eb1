"""Suites: which attacks an evaluation runs, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from torch import Tensor

from robustill.attacks.stages import AttackName, Version, stages_of
from robustill.core.errors import ConfigError, did_you_mean
from robustill.losses import ce, margin
from robustill.threat import Threat


@dataclass(frozen=True, kw_only=True)
class PGDStage:
    """One attack of a suite: PGD with restarts on a loss of the logits.

    Args:
        name: as it stands in records and reports.
        loss: logits [B,K] and labels [B] to [B]; larger is worse for the defender.
        steps: of PGD, with a step size of a quarter of eps.
        restarts: independent uniform starts; any of them that succeeds counts.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int
    restarts: int

    def described(self, threat: Threat) -> dict[str, Any]:
        """As it stands in the conditions of an evaluation."""
        return {
            "name": self.name,
            "loss": self.loss.__name__,
            "steps": self.steps,
            "restarts": self.restarts,
            "step_size": threat.eps / 4,
        }


@dataclass(frozen=True, kw_only=True)
class Suite:
    """AutoAttack, if there is a version of it, then PGD.

    Args:
        stages: of PGD; the first one attacks all images to its end, so that calibration is measured at a high loss,
            and the others those that are still robust.
        autoattack: a version of `robustill.autoattack`, or a list of its attacks; None is PGD alone.
        budgets: of AutoAttack, where they are not the reference's.
        num_images: how many at most, where no number is asked for.
        quick: for use during development: fewer attacks, and every number is labelled as such.
    """

    stages: tuple[PGDStage, ...]
    autoattack: Version | tuple[AttackName, ...] | None = None
    budgets: Mapping[str, int] = field(default_factory=dict)
    num_images: int | None = None
    quick: bool = False

    def described(self, threat: Threat, num_classes: int) -> list[dict[str, Any]]:
        """Every stage in the order they run, as it stands in the conditions of an evaluation.

        Of AutoAttack's, `restarts` counts the searches an image (targets, of the targeted ones), and the steps of
        Square are its queries.
        """
        pgd = [stage.described(threat) for stage in self.stages]
        if self.autoattack is None:
            return pgd
        found = stages_of(self.autoattack, threat.norm, num_classes, **self.budgets)
        return [
            {
                "name": each.name,
                "loss": each.loss,
                "steps": each.steps,
                "restarts": each.variants,
                "targeted": each.targeted,
                "gradients": each.repeats,
            }
            for each in found
        ] + pgd

    def units(self, threat: Threat, num_classes: int) -> int:
        """Passes, forward or backward, that an image costs which withstands everything."""
        pgd = sum(stage.restarts * (2 * stage.steps + 1) for stage in self.stages)
        if self.autoattack is None:
            return pgd
        return pgd + sum(each.units for each in stages_of(self.autoattack, threat.norm, num_classes, **self.budgets))

    def __str__(self) -> str:
        version = (
            f"AutoAttack {self.autoattack}" if isinstance(self.autoattack, str) else ", ".join(self.autoattack or ())
        )
        budgets = ", ".join(f"{key} {value}" for key, value in self.budgets.items())
        pgd = ", ".join(f"{each.name} ({each.restarts}×{each.steps} steps)" for each in self.stages)
        return ", ".join(part for part in (f"{version} ({budgets})" if budgets else version, pgd) if part)


# After AutoAttack, whose images lie barely beyond the boundary: calibration under attack wants a high loss.
_HIGH_LOSS = PGDStage(name="pgd-ce", loss=ce, steps=20, restarts=1)
SUITES: dict[str, Suite] = {
    "standard": Suite(autoattack="standard", stages=(_HIGH_LOSS,)),
    "plus": Suite(autoattack="plus", stages=(_HIGH_LOSS,)),
    "rand": Suite(autoattack="rand", stages=(_HIGH_LOSS,)),
    "quick": Suite(
        autoattack=("apgd-ce", "apgd-t"),
        budgets={"steps": 50, "restarts": 1, "targets": 3},
        stages=(_HIGH_LOSS,),
        num_images=256,
        quick=True,
    ),
    "pgd": Suite(
        stages=(
            PGDStage(name="pgd-ce", loss=ce, steps=20, restarts=5),
            PGDStage(name="pgd-margin", loss=margin, steps=20, restarts=5),
        )
    ),
    "pgd-20": Suite(stages=(_HIGH_LOSS,)),
}


def find_suite(name: str) -> Suite:
    """A suite by its name, or AutoAttack with a list of attacks such as "apgd-ce,square".

    Raises:
        ConfigError: neither.
    """
    if name in SUITES:
        return SUITES[name]
    attacks = get_args(AttackName)
    listed = tuple(part.strip() for part in name.split(","))
    if not all(part in attacks for part in listed):
        raise ConfigError(
            f"suite {name!r} is unknown: {did_you_mean(name, SUITES)} (or a list of {', '.join(attacks)})"
        )
    if len(set(listed)) < len(listed):
        raise ConfigError(f"suite {name!r} names an attack twice: expected each once")
    return Suite(autoattack=listed, stages=(_HIGH_LOSS,))  # type: ignore[arg-type]
