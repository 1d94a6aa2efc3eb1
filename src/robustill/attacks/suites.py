"""Named suites of attacks that an evaluation runs one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from torch import Tensor

from robustill.attacks.stages import AttackName, Version, resolve_stages
from robustill.core.errors import ConfigError, did_you_mean
from robustill.core.validation import check_type
from robustill.losses import ce, margin
from robustill.threat import Threat

ROBUST_SHARE = 0.5
"""The share of the images that is assumed to withstand all attacks, wherever a time is estimated."""


@dataclass(frozen=True, kw_only=True)
class PGDStage:
    """PGD with restarts on a loss of the logits, as one attack of a suite.

    Args:
        name: as it appears in records and reports.
        loss: logits [B,K] and labels [B] to [B]; larger is worse for the defender.
        steps: of PGD, with a step size of a quarter of eps.
        restarts: number of independent uniform starts; a success from any of them counts.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int
    restarts: int

    def describe(self, threat: Threat) -> dict[str, Any]:
        """Return the settings as recorded in the conditions of an evaluation."""
        return {
            "name": self.name,
            "loss": self.loss.__name__,
            "steps": self.steps,
            "restarts": self.restarts,
            "step_size": threat.eps / 4,
        }

    @property
    def passes_per_image(self) -> int:
        """Passes, forward or backward, of an image that withstands the attack."""
        return self.restarts * (2 * self.steps + 1)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Attacks to run one after the other: AutoAttack, unless `autoattack` is None, then PGD.

    Args:
        stages: of PGD; the first attacks all images without stopping early, so that the image that is kept of each has
            a high loss, the others attack the images that are still robust.
        autoattack: a version of `robustill.autoattack`, or a list of its attacks; None for PGD alone.
        budgets: of AutoAttack, where they differ from the reference.
        num_images: the default number of images; None for all.
        quick: whether it has fewer attacks, for use during development; its numbers are labelled as such.
        deployed: whether it attacks a file without a gradient: PGD finds images on other networks, which the file then
            classifies, the gradient attacks of AutoAttack take a straight-through gradient, and Square needs none.
    """

    stages: tuple[PGDStage, ...]
    autoattack: Version | tuple[AttackName, ...] | None = None
    budgets: Mapping[str, int] = field(default_factory=dict)
    num_images: int | None = None
    quick: bool = False
    deployed: bool = False

    def describe(self, threat: Threat, num_classes: int) -> list[dict[str, Any]]:
        """Return every stage in order, as recorded in the conditions of an evaluation.

        For the stages of AutoAttack, `restarts` is the number of searches an image (targets, for targeted attacks), and
        the steps of Square are its queries.
        """
        pgd = [stage.describe(threat) for stage in self.stages]
        if self.autoattack is None:
            return pgd
        stages = resolve_stages(self.autoattack, threat.norm, num_classes, **self.budgets)
        return [
            {
                "name": each.name,
                "loss": each.loss,
                "steps": each.steps,
                "restarts": each.variants,
                "targeted": each.targeted,
                "gradients": each.repeats,
            }
            for each in stages
        ] + pgd

    def passes_per_image(self, threat: Threat, num_classes: int) -> int:
        """Return the passes, forward or backward, of an image that withstands all attacks."""
        pgd = sum(stage.passes_per_image for stage in self.stages)
        if self.autoattack is None:
            return pgd
        stages = resolve_stages(self.autoattack, threat.norm, num_classes, **self.budgets)
        return pgd + sum(stage.passes_per_image for stage in stages)

    def expected_passes(self, threat: Threat, num_classes: int) -> float:
        """Return the passes of an image on average, if `ROBUST_SHARE` of the images withstand all attacks.

        The first PGD stage attacks all images; all other attacks leave out those that are broken, and spend little on
        those that they break.
        """
        first = self.stages[0].passes_per_image
        return first + ROBUST_SHARE * (self.passes_per_image(threat, num_classes) - first)

    def __str__(self) -> str:
        if isinstance(self.autoattack, str):
            version = f"AutoAttack {self.autoattack}"
        else:
            version = ", ".join(self.autoattack or ())
        budgets = ", ".join(f"{key} {value}" for key, value in self.budgets.items())
        pgd = ", ".join(f"{each.name} ({each.restarts}×{each.steps} steps)" for each in self.stages)
        if budgets:
            version = f"{version} ({budgets})"
        if self.deployed:
            return f"for a file: images of {pgd} on other networks; with a straight-through gradient, {version}"
        return ", ".join(part for part in (version, pgd) if part)


# It follows AutoAttack, whose images lie just beyond the boundary, so that those that are kept have a high loss.
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
    "deployed": Suite(
        deployed=True,
        autoattack=("apgd-ce", "apgd-t", "square"),
        budgets={"queries": 2000, "restarts": 1},
        stages=(
            PGDStage(name="pgd-ce", loss=ce, steps=20, restarts=5),
            PGDStage(name="pgd-margin", loss=margin, steps=20, restarts=5),
        ),
    ),
}


def find_suite(name: str) -> Suite:
    """Return a suite by its name, or AutoAttack with a list of attacks such as "apgd-ce,square".

    Raises:
        ConfigError: the name is neither, or the list names an attack twice.
    """
    if isinstance(name, str) and name in SUITES:
        return SUITES[name]
    attack_names = get_args(AttackName)
    check_type("suite", name, str, f"one of {', '.join(SUITES)}, or attacks such as 'apgd-ce,square'")
    attacks = tuple(part.strip() for part in name.split(","))
    if not all(attack in attack_names for attack in attacks):
        raise ConfigError(
            f"suite {name!r} is unknown: {did_you_mean(name, SUITES)} (or a list of {', '.join(attack_names)})"
        )
    if len(set(attacks)) < len(attacks):
        raise ConfigError(f"suite {name!r} names an attack twice: name each once")
    return Suite(autoattack=attacks, stages=(_HIGH_LOSS,))  # type: ignore[arg-type]
