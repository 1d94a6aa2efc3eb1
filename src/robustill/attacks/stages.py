"""The attacks that each version of AutoAttack runs, with their budgets and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from robustill.core.errors import ConfigError
from robustill.core.validation import check_choice, check_integer, describe
from robustill.threat import Norm

Version = Literal["standard", "plus", "rand"]
AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "apgd-ce-t", "fab", "fab-t", "square"]
_VERSIONS: dict[str, tuple[AttackName, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
_LOSSES = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "dlr-targeted", "apgd-ce-t": "ce-targeted"}
# The targeted DLR loss divides by a difference that needs four logits, the untargeted one three.
_MIN_CLASSES = {"dlr-targeted": 4, "dlr": 3}


@dataclass(frozen=True)
class AutoAttackStage:
    """One attack of AutoAttack.

    Args:
        name: as the user names it.
        loss: of APGD, a key of apgd.LOSSES; "" for the other attacks.
        variants: number of searches an image: targets if `targeted`, else restarts.
        targeted: whether each search has its own target class.
        steps: gradient steps, or queries of Square.
        repeats: number of gradients averaged in a step.
        shrinking: whether APGD for l1 starts in larger balls.
        num_classes: K.
    """

    name: AttackName
    loss: str
    variants: int
    targeted: bool
    steps: int
    repeats: int
    shrinking: bool
    num_classes: int

    @property
    def passes_per_image(self) -> int:
        """Passes, forward or backward, of an image that withstands the attack."""
        if self.name == "square":
            return self.steps + 1
        if self.name == "fab":
            return self.variants * self.steps * (2 + self.num_classes)
        if self.name == "fab-t":
            return self.variants * self.steps * 3
        starts = 3 if self.shrinking else 1
        return self.variants * (self.steps + starts) * 2 * self.repeats


def resolve_stages(
    version: Version | Sequence[str],
    norm: Norm,
    num_classes: int,
    *,
    steps: int = 100,
    queries: int = 5000,
    restarts: int | None = None,
    targets: int | None = None,
    repeats: int | None = None,
) -> tuple[AutoAttackStage, ...]:
    """Return the stages of a version, with the budgets of the reference where none are given.

    With fewer than 10 classes there are K − 1 targets; with fewer than four, `apgd-t` uses the targeted cross-entropy;
    with two, `apgd-dlr` is left out.

    Args:
        version: its name, or a list of attacks.
        norm: of the threat; for l1 there are 5 restarts of apgd-ce and 5 targets of apgd-t in "standard".
        num_classes: K.
        steps: gradient steps of a search.
        queries: of Square.
        restarts: of untargeted attacks; None: 1 in "standard" and "rand", 5 in "plus" and lists.
        targets: of targeted attacks; None: 9.
        repeats: gradients averaged in a step of APGD; None: 20 in "rand", else 1.

    Raises:
        ConfigError: an unknown version or attack, a list that is or becomes empty, or a budget below 1.
    """
    names = _attack_names(version)
    check_integer("steps", steps, at_least=1)
    check_integer("queries", queries, at_least=1)
    for what, value in (("restarts", restarts), ("targets", targets), ("repeats", repeats)):
        if value is not None:
            check_integer(what, value, at_least=1)
    l1_standard = norm == "l1" and version == "standard"
    if restarts is None:
        restarts = 1 if version == "rand" or (version == "standard" and norm != "l1") else 5
    if repeats is None:
        repeats = 20 if version == "rand" else 1
    stages = []
    for name in names:
        loss = _LOSSES.get(name, "")
        if num_classes < _MIN_CLASSES.get(loss, 2):
            if name == "apgd-dlr":
                continue
            loss = "ce-targeted"
        targeted = name in ("apgd-t", "apgd-ce-t", "fab-t")
        default_targets = 5 if l1_standard and name == "apgd-t" else 9
        if name == "square":
            variants = 1
        elif targeted:
            variants = min(targets or default_targets, num_classes - 1)
        else:
            variants = restarts
        stages.append(
            AutoAttackStage(
                name=name,
                loss=loss,
                variants=variants,
                targeted=targeted,
                steps=queries if name == "square" else steps,
                repeats=repeats if loss else 1,
                shrinking=l1_standard and bool(loss),
                num_classes=num_classes,
            )
        )
    if not stages:
        raise ConfigError(
            f"version is {list(names)} alone, whose loss is not defined for {num_classes} classes: add apgd-ce"
        )
    return tuple(stages)


def _attack_names(version: Version | Sequence[str]) -> tuple[AttackName, ...]:
    if isinstance(version, str):
        check_choice("version", version, _VERSIONS)
        return _VERSIONS[version]
    if not isinstance(version, Sequence):
        raise ConfigError(
            f"version is {describe(version)}, expected one of {', '.join(_VERSIONS)}, or a list of attacks"
        )
    for name in version:
        check_choice("attack", name, get_args(AttackName))
    if not version:
        raise ConfigError("version is an empty list of attacks: expected at least one")
    return tuple(version)  # type: ignore[arg-type]
