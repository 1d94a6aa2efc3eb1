"""The attack on a file as it is shipped, which has answers and no gradient.

Four families of attacks look for adversarial images: those that PGD finds on other networks, first of all on the one
in float32 that the file was made from (transfer); AutoAttack's gradient attacks with the answers of the file in the
forward pass and in the backward pass either the gradient of its twin in torch, straight through each rounding (white
box), or that of the network in float32 (BPDA); and Square, which needs no gradient. The prediction of the file itself,
on the very image in float32 and inside the threat, decides each success. Every family attacks every image, so that each
has a number of its own: where Square or a transfer finds what no gradient does, the gradient is masked.

Reference: Athalye et al. 2018, "Obfuscated gradients give a false sense of security", section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustill.acceleration.folding import folded_copy
from robustill.attacks.autoattack import Report, autoattack
from robustill.attacks.cost import seconds_per_pass
from robustill.attacks.state import AutoAttackState
from robustill.attacks.suites import ROBUST_SHARE, Suite
from robustill.core.contexts import evaluating, frozen
from robustill.core.contract import preserving_random_numbers
from robustill.core.errors import ConfigError, ModelError
from robustill.evaluation.worst_case import Strongest, WorstCase, curve_passes
from robustill.models.onnx_file import OnnxNetwork
from robustill.models.onnx_twin import OnnxTwin, build_twin
from robustill.runs.records import WRONG_ON_CLEAN
from robustill.threat import Threat

ALONE = "broken_alone"
"""The column of the rows that says which family breaks an image, bool [N,S]."""
_TWIN = "the file's twin, straight through each rounding"


class StraightThrough(nn.Module):
    """The logits of a file with the gradient of another network.

    Args:
        file: images [B,C,H,W] to logits [B,K].
        source: another network of the same images and classes, such as that in float32 which the file was made from.
    """

    def __init__(self, file: nn.Module, source: nn.Module) -> None:
        super().__init__()
        self.file, self.source = file, source
        self.training = file.training

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of the file, exactly."""
        logits: Tensor = self.file(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return logits
        replaced: Tensor = _Replace.apply(self.source(x), logits)  # type: ignore[no-untyped-call]
        return replaced


class _Replace(torch.autograd.Function):
    """The second values in the forward pass, the gradient of the first ones in the backward pass."""

    @staticmethod
    def forward(ctx: Any, estimate: Tensor, exact: Tensor) -> Tensor:
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def attacked_network(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    suite: Suite,
    name: str,
    surrogate: nn.Module | Mapping[str, nn.Module] | None,
    **settings: Any,
) -> nn.Module:
    """Return what the attacks of a suite see: the network itself, or a file with the gradient of its twin or another.

    Args:
        model: the network.
        image_shape: C, H and W.
        suite: the suite.
        name: its name.
        surrogate: other networks.
        settings: precision and masking.

    Raises:
        ConfigError: the suite needs a gradient and the network is a file without one; or the suite is for files and
            the settings are not.
    """
    if not suite.deployed:
        if isinstance(model, OnnxNetwork):
            raise ConfigError(
                f"{model.label} has no gradient, which suite {name} needs: take --suite deployed, with --surrogate "
                "run:DIR@best for the network that it was exported from"
            )
        if isinstance(surrogate, Mapping):
            raise ConfigError(f"suite {name} takes one surrogate as a network: several are for the suite deployed")
        return model
    if settings.get("precision", "exact") != "exact" or settings.get("masking"):
        raise ConfigError(
            "suite deployed attacks a file as it is, and compares attacks with a gradient and without one itself: "
            "leave --precision fast and --masking out"
        )
    if not isinstance(model, OnnxNetwork) and _has_gradient(model, image_shape):
        raise ConfigError(
            "suite deployed is for a file without a gradient, such as NAME.onnx, and this network has one: take "
            "--suite standard"
        )
    source: nn.Module | None = build_twin(model, image_shape) if isinstance(model, OnnxNetwork) else None
    if source is None:
        source = next(iter(surrogates_by_name(surrogate).values()), None)
    return model if source is None else StraightThrough(model, source)


def _has_gradient(model: nn.Module, image_shape: tuple[int, int, int]) -> bool:
    """Return whether a gradient reaches the images; not that of a network that fails on them, which is said later."""
    tensor = next(model.parameters(), torch.zeros(1))
    leaf = torch.full((2, *image_shape), 0.5, device=tensor.device, requires_grad=True)
    with evaluating(model), frozen(model), preserving_random_numbers(leaf.device), torch.enable_grad():
        try:
            return bool(model(leaf).requires_grad)
        except Exception:  # A user's network may raise anything.
            return False


def surrogates_by_name(surrogate: nn.Module | Mapping[str, nn.Module] | None) -> dict[str, nn.Module]:
    """Return the other networks by their names; the gradient of the first one is taken."""
    if isinstance(surrogate, Mapping):
        return dict(surrogate)
    return {} if surrogate is None else {"surrogate": surrogate}


class DeployedWorstCase(WorstCase):
    """The suite `deployed` against one file, which must be in eval mode.

    Args:
        model: as `attacked_network` returns it: a file, with the gradient of its twin if there is one, else with that
            of the first of the other networks, if there are any.
        threat: the images that the adversary may choose.
        suite: the suite.
        eps_grid: further radii at which robust accuracy is measured, ascending; none without a gradient.
        seed: seed of all random numbers.
        batch_size: images at a time.
        surrogates: other networks by name, in eval mode.
    """

    def __init__(
        self,
        model: nn.Module,
        threat: Threat,
        suite: Suite,
        eps_grid: Sequence[float],
        seed: int,
        batch_size: int,
        surrogates: Mapping[str, nn.Module],
    ) -> None:
        super().__init__(model, threat, suite, eps_grid, seed, batch_size)
        self.surrogates = dict(surrogates)
        self._is_folded = False
        assert isinstance(suite.autoattack, tuple)
        self.gradient_attacks = tuple(each for each in suite.autoattack if each != "square")
        count = len(surrogates)
        self.transfers = ["transfer", *(f"transfer-{number}" for number in range(2, count + 1))][:count]
        self.file = model.file if isinstance(model, StraightThrough) else model
        self.has_twin = isinstance(model, StraightThrough) and isinstance(model.source, OnnxTwin)
        self.gradients = [*(["white-box"] if self.has_twin else []), *(["bpda"] if surrogates else [])]
        self.stages = [*self.transfers, *self.gradients, "square"]

    def describe(self, num_classes: int) -> list[dict[str, Any]]:
        """Return every family of attacks, as recorded in the conditions of an evaluation."""
        described = {each["name"]: each for each in self.suite.describe(self.threat, num_classes)}
        pgd = [described[each.name] for each in self.suite.stages]
        families: list[dict[str, Any]] = []
        for name, source in zip(self.transfers, self.surrogates, strict=True):
            families.append({"name": name, "attacks": [each["name"] for each in pgd], "source": source, **_budget(pgd)})
        own = [described[name] for name in self.gradient_attacks]
        for name in self.gradients:
            source = _TWIN if name == "white-box" else next(iter(self.surrogates))
            families.append({"name": name, "attacks": list(self.gradient_attacks), "source": source, **_budget(own)})
        return [*families, {**described["square"], "attacks": ["square"]}]

    @torch.no_grad()
    def attack(
        self,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        *,
        state: AutoAttackState | None = None,
        save: Callable[[AutoAttackState], None] | None = None,
        report: Report | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Attack images with every family; as `WorstCase.attack`, with the column `ALONE`.

        An interrupted call resumes Square, which takes most of the time; the others are repeated.
        """
        self._fold_surrogates(x)
        chunks = torch.split(torch.arange(len(x)), self.batch_size)
        clean = torch.cat([self.model(x[chunk]).float() for chunk in chunks])
        if not bool(clean.isfinite().all()):
            raise ModelError("the file gives NaN or infinite logits on clean images: it is damaged")
        strongest = Strongest.of_clean(x, y, clean)
        correct = strongest.broken_by != WRONG_ON_CLEAN
        alone = torch.zeros(len(x), len(self.stages), dtype=torch.bool, device=x.device)
        self._report, self._expected = report, self.passes + len(x) * self.passes_per_image(clean.shape[1])
        for number, source in enumerate(self.surrogates.values()):
            alone[:, number] = self._transfer(strongest, number, source, x, y, ids, correct)
        for name in self.gradients:
            attacked = self.model
            if name == "bpda" and self.has_twin:
                attacked = StraightThrough(self.file, next(iter(self.surrogates.values())))
            number = self.stages.index(name)
            alone[:, number] = self._autoattack_alone(attacked, strongest, number, self.gradient_attacks, x, y, ids)
        number = self.stages.index("square")
        alone[:, number] = self._autoattack_alone(self.file, strongest, number, ("square",), x, y, ids, state, save)
        curve = [self._eps_curve(x[chunk], y[chunk], ids[chunk], correct[chunk]) for chunk in chunks]
        rows = self._columns(strongest, clean, x, y) | {"robust_at_eps": torch.cat(curve), ALONE: alone}
        return rows, strongest.x_adv

    def passes_per_image(self, num_classes: int) -> int:
        """Return the passes, forward or backward, of an image that withstands all attacks."""
        return curve_passes(len(self.eps_grid)) + passes_per_image(
            self.suite, self.threat, num_classes, surrogates=len(self.surrogates), gradients=len(self.gradients)
        )

    def expected_passes(self, num_classes: int) -> float:
        """Return the passes of an image on average, as if every family left the images alone that it can break."""
        return ROBUST_SHARE * self.passes_per_image(num_classes)

    def seconds_per_pass(self, x: Tensor, y: Tensor) -> float:
        """Return the seconds of a pass of one image, measured in less than a second; forward without a gradient."""
        return seconds_per_pass(self.model, x, y, self.threat, gradient=bool(self.gradients))

    def _fold_surrogates(self, x: Tensor) -> None:
        """Replace the other networks, once, by copies that are faster to differentiate; the file decides success."""
        if self._is_folded or not self.surrogates:
            return
        self._is_folded = True
        self.surrogates = {name: folded_copy(each, x[:2]) or each for name, each in self.surrogates.items()}
        if not self.has_twin:
            self.model = StraightThrough(self.file, next(iter(self.surrogates.values())))

    def _chunks(self, flags: Tensor) -> list[Tensor]:
        """Return the positions of the flagged images in batches, none of which is empty."""
        return [rows for rows in torch.split(flags.nonzero().flatten(), self.batch_size) if len(rows)]

    def _transfer(
        self, strongest: Strongest, number: int, source: nn.Module, x: Tensor, y: Tensor, ids: Tensor, correct: Tensor
    ) -> Tensor:
        """Attack the images through another network; return which of them the file misclassifies then, bool [N]."""
        broken = torch.zeros_like(correct)
        for rows in self._chunks(correct):
            for stage in self.suite.stages:
                for restart in range(stage.restarts):
                    own_ids = ids[rows.cpu()]
                    x_adv, logits, allowed = self._pgd(stage, restart, x[rows], y[rows], own_ids, self.threat, source)
                    strongest.update(rows, x_adv, logits, allowed, y[rows], stage=number)
                    broken[rows] |= allowed & (logits.argmax(dim=1) != y[rows])
        return broken

    def _autoattack_alone(
        self,
        attacked: nn.Module,
        strongest: Strongest,
        number: int,
        attacks: Sequence[str],
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        state: AutoAttackState | None = None,
        save: Callable[[AutoAttackState], None] | None = None,
    ) -> Tensor:
        """Run some of AutoAttack's attacks on all images; return which of them they break, bool [N]."""
        before = self.passes

        def on_progress(done: int, expected: int, attack: str) -> None:
            self.passes = before + done
            if self._report is not None:
                self._report(self.passes, max(self._expected, self.passes), attack)

        budgets: dict[str, Any] = dict(self.suite.budgets)
        result = autoattack(
            attacked,
            x,
            y,
            self.threat,
            version=attacks,
            seed=self.seed,
            batch_size=self.batch_size,
            index=ids,
            state=state,
            save=save,
            progress=on_progress,
            check=False,
            **budgets,
        )
        self.passes = before + sum(result.passes)
        broken = (result.broken_by >= 0).to(x.device)
        for rows in self._chunks(broken):
            x_adv = result.x_adv.to(x.device)[rows]
            allowed = self.threat.contains(x_adv, x[rows])
            strongest.update(rows, x_adv, self.file(x_adv).float(), allowed, y[rows], stage=number)
        return broken


def passes_per_image(suite: Suite, threat: Threat, num_classes: int, *, surrogates: int, gradients: int) -> int:
    """Return the passes of an image that withstands all attacks of the suite `deployed`.

    Args:
        suite: the suite.
        threat: the images that the adversary may choose.
        num_classes: K.
        surrogates: number of other networks.
        gradients: number of networks whose gradient is taken.
    """
    pgd = sum(stage.passes_per_image for stage in suite.stages)
    square = suite.budgets["queries"] + 1
    return surrogates * pgd + gradients * (suite.passes_per_image(threat, num_classes) - pgd - square) + square


def as_shipped(
    worst_case: DeployedWorstCase, broken: np.ndarray[Any, Any], correct: np.ndarray[Any, Any], num_classes: int
) -> tuple[dict[str, Any], list[str]]:
    """Return what each family of attacks finds on its own and what was not tried, and the warnings that follow.

    Args:
        worst_case: the attacks that ran.
        broken: the column `ALONE`, bool [N,S].
        correct: whether the file is right on the clean image, bool [N].
        num_classes: K.
    """
    robust = {name: float((correct & ~broken[:, n]).mean()) for n, name in enumerate(worst_case.stages)}
    attacks = {}
    for each in worst_case.describe(num_classes):
        budget = f"{each['steps']} queries"
        if "source" in each:
            what = "gradient" if each["name"] in worst_case.gradients else "images"
            budget = f"{each['steps']} steps, {each['restarts']} searches, {what} of {each['source']}"
        attacks[each["name"]] = f"{' and '.join(each['attacks'])}, {budget}"
    facts = {"robust_accuracy_alone": robust, "attacks": attacks, "not_tried": _not_tried(worst_case)}
    warnings = []
    if not worst_case.gradients:
        warnings.append(
            "Attacked by Square alone, which flatters: give --surrogate run:DIR@best, the network in float32 that the "
            "file was made from, for transfer and a straight-through gradient."
        )
        return facts, warnings
    with_gradient = broken[:, [worst_case.stages.index(name) for name in worst_case.gradients]].any(axis=1)
    for number, name in enumerate(worst_case.stages):
        only = int((broken[:, number] & ~with_gradient).sum())
        if only >= max(3, math.ceil(0.05 * int(correct.sum()))):
            warnings.append(
                f"{name} breaks {only} of {int(correct.sum())} images that no straight-through gradient does: the file "
                "masks its gradient, or the surrogate is not what it was made from. The robust accuracy is an upper "
                "bound that a better attack would lower."
            )
    return facts, warnings


def _not_tried(worst_case: DeployedWorstCase) -> list[str]:
    left_out = ["FAB"]
    if not worst_case.has_twin:
        left_out.append("a gradient through the file's own operators, some of which have no twin here")
    if not worst_case.surrogates:
        left_out += ["transfer from the network in float32", "BPDA with its gradient"]
    elif len(worst_case.surrogates) == 1:
        left_out.append("transfer from a second network (--surrogate A,B)")
    return left_out


def _budget(attacks: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the searches of an image, and the steps of the longest."""
    return {"restarts": sum(each["restarts"] for each in attacks), "steps": max(each["steps"] for each in attacks)}
