"""Gradient masking: does a model look robust only because its gradient misleads the attacks that follow it?

Attacks of increasing strength are run on a few images. If the gradient of a model can be followed, more steps, a larger
radius and the use of the gradient each break more images than fewer steps, a smaller radius and no gradient. Where they
do not, the robust accuracy that gradient attacks report cannot be believed.

Reference: Athalye et al. 2018, "Obfuscated gradients give a false sense of security"; Carlini et al. 2019, "On
evaluating adversarial robustness".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustill.attacks.autoattack import autoattack
from robustill.attacks.pgd import run_pgd
from robustill.core.contexts import evaluating, frozen
from robustill.core.randomness import derive_seed, generator, uniform
from robustill.losses import ce, margin
from robustill.threat import Threat

NO_SIGN, MASKED, TOO_FEW = "no sign of it", "the gradient is masked", "too few images to tell"
MASKING_PASSES = 1300
"""About how many passes, forward or backward, the check makes of a correctly classified image."""

_STEPS = (1, 5, 20, 100)
_NUM_RESTARTS = 5
_NUM_NOISES = 50
_NUM_QUERIES = 500
# Fewest correctly classified images for a verdict.
_MIN_IMAGES = 10
# Fraction of the threat's radius at which next to no image should be broken.
_TINY = 0.01


def masking_ladder(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, surrogate: nn.Module | None = None
) -> dict[str, Any]:
    """Run attacks of increasing strength on a few images and say whether the gradient is masked.

    Costs about `MASKING_PASSES` passes for each correctly classified image.

    Args:
        model: images [B,C,H,W] in [0,1] to logits [B,K].
        x: clean images, [B,C,H,W].
        y: labels, [B].
        threat: the images that the adversary may choose.
        seed: seed of all random numbers.
        surrogate: another network with the same classes, such as a teacher, whose adversarial images are tried too.

    Returns:
        A JSON-able dict: `verdict`, `reasons`, `images` (the number of correctly classified ones, which all shares
        refer to), and the measurements: margin_after_steps and accuracy_after_steps (PGD on the margin),
        accuracy_at_eps, the shares broken_by noise, ce_once, ce_restarts, margin, white_box, square and transfer, and
        the flags zero_gradient, saturated, random and ascent (increase of the margin divided by what the gradient
        predicts, 1 on a linear model).

    Reference: as above.
    """
    with evaluating(model), frozen(model), torch.no_grad():
        correct = model(x).argmax(dim=1) == y
        x, y = x[correct], y[correct]
        ladder = _Ladder(model, x, y, threat, seed)
        if len(x) < _MIN_IMAGES:
            return {"verdict": TOO_FEW, "reasons": [], "images": len(x)}
        ladder.check_gradients()
        if threat.eps > 0:
            ladder.check_attacks(surrogate)
    verdict = MASKED if ladder.reasons else NO_SIGN
    return {"verdict": verdict, "reasons": ladder.reasons, "images": len(x), **ladder.measurements}


def masking_warnings(result: dict[str, Any]) -> list[str]:
    """Return a line to show with the robust accuracy, in a list; empty if there is no reason for it.

    Args:
        result: as `masking_ladder` returns it.
    """
    if not result["reasons"]:
        return []
    return [
        f"Gradient masking on {result['images']} images: {'; '.join(result['reasons'])}. "
        "The robust accuracy is an upper bound that an attack made for this model would lower."
    ]


@dataclass
class _Ladder:
    """The checks on correctly classified images; each adds its measurements, and a reason where it fails."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    seed: int
    reasons: list[str] = field(default_factory=list)
    measurements: dict[str, Any] = field(default_factory=dict)

    def check_gradients(self) -> None:
        """Check that gradients exist, that logits repeat, and that the margin increases as its gradient predicts."""
        logits, repeated = self.model(self.x).float(), self.model(self.x).float()
        scale = float(logits.abs().max().clamp_min(1e-30))
        random = float((logits - repeated).abs().max()) > 1e-4 * scale
        margin_gradient, ce_gradient = self._gradient(margin), self._gradient(ce)
        is_zero = margin_gradient.flatten(1).abs().amax(dim=1) == 0
        is_saturated = (ce_gradient.flatten(1).abs().amax(dim=1) == 0) & ~is_zero
        zero, saturated = _share(is_zero), _share(is_saturated)
        ascent = self._ascent(logits, margin_gradient)
        self.measurements["flags"] = {
            "zero_gradient": zero,
            "saturated": saturated,
            "random": random,
            "ascent": ascent,
        }
        self._add_reason_if(zero > 0.05, f"the gradient is zero on {zero:.0%} of the images")
        self._add_reason_if(
            saturated > 0.5,
            f"the softmax is saturated on {saturated:.0%} of the images: cross-entropy has no gradient there",
        )
        self._add_reason_if(random, "two passes over the same images give other logits")
        if ascent is not None:
            percentage = round(100 * ascent)
            self._add_reason_if(
                ascent < 0.2, f"a small step along the gradient gains {percentage}% of what it promises"
            )

    def _ascent(self, logits: Tensor, gradient: Tensor) -> float | None:
        """Return the median increase of the margin by a small step, divided by the increase that the gradient predicts.

        None if the gradient predicts no increase on any image.
        """
        small = Threat(norm=self.threat.norm, eps=self.threat.eps / 10)
        x_adv = small.project(self.x + small.eps * small.ascent(gradient), self.x)
        predicted = ((x_adv - self.x) * gradient).flatten(1).sum(dim=1)
        increase = margin(self.model(x_adv), self.y) - margin(logits, self.y)
        ratios = (increase / predicted)[(predicted > 0) & increase.isfinite()]
        return float(ratios.median()) if len(ratios) else None

    def check_attacks(self, surrogate: nn.Module | None) -> None:
        """Compare attacks of increasing strength, and attacks that need no gradient."""
        white_box = self._check_steps()
        ce_once, ce_restarts = self._broken_by_restarts()
        margin_20 = self._broken(self._pgd(self.threat, margin, 20, "steps"))
        white_box = white_box | ce_restarts
        noise, square = self._broken_by_noise(), self._broken_by_square()
        broken = {
            "noise": noise,
            "ce_once": ce_once,
            "ce_restarts": ce_restarts,
            "margin": margin_20,
            "white_box": white_box,
            "square": square,
        }
        self._check_gradient_free("random noise", noise & ~white_box)
        self._check_gradient_free("Square, which sees no gradient,", square & ~white_box)
        if surrogate is not None:
            broken["transfer"] = self._broken_by_transfer(surrogate)
            self._check_gradient_free("transfer from the surrogate", broken["transfer"] & ~white_box)
        shares = {name: _share(flags) for name, flags in broken.items()}
        self.measurements["broken_by"] = shares
        self._add_reason_if(
            int(ce_restarts.sum() - ce_once.sum()) >= self._significant_count(0.2),
            f"{_NUM_RESTARTS} restarts break {shares['ce_restarts']:.0%} where one breaks {shares['ce_once']:.0%}",
        )
        gap = int(margin_20.sum() - ce_restarts.sum())
        # On photographs the cross-entropy breaks 70 to 100 % of what the margin breaks without any masking.
        self._add_reason_if(
            gap >= self._significant_count(0.1) and gap > int(ce_restarts.sum()),
            f"PGD on the margin breaks {shares['margin']:.0%}, on the cross-entropy {shares['ce_restarts']:.0%}",
        )
        self._check_radii()

    def _check_steps(self) -> Tensor:
        """Measure margin and accuracy against steps; return which images any of the runs breaks."""
        margins, broken_by_any = [margin(self.model(self.x), self.y)], torch.zeros_like(self.y, dtype=torch.bool)
        accuracies = []
        for steps in _STEPS:
            x_adv = self._pgd(self.threat, margin, steps, "steps")
            margins.append(margin(self.model(x_adv), self.y))
            broken = self._broken(x_adv)
            accuracies.append(1 - _share(broken))
            broken_by_any |= broken
        means = [float(each.mean()) for each in margins]
        self.measurements["margin_after_steps"] = dict(zip(map(str, (0, *_STEPS)), means, strict=True))
        self.measurements["accuracy_after_steps"] = dict(zip(map(str, _STEPS), accuracies, strict=True))
        increase = max(means) - means[0]
        self._add_reason_if(
            means[-1] < max(means[1:-1]) - 0.1 * increase,
            f"the loss after {_STEPS[-1]} steps is lower than after fewer",
        )
        self._add_reason_if(
            accuracies[-1] - min(accuracies) >= self._significant_count(0.05) / len(self.x),
            f"{_STEPS[-1]} steps break fewer images than fewer steps do",
        )
        return broken_by_any

    def _broken_by_restarts(self) -> tuple[Tensor, Tensor]:
        """Return which images the first run of PGD on the cross-entropy breaks, and which any restart breaks."""
        runs = [self._broken(self._pgd(self.threat, ce, 20, f"restart {number}")) for number in range(_NUM_RESTARTS)]
        return runs[0], torch.stack(runs).any(dim=0)

    def _broken_by_noise(self) -> Tensor:
        """Return which images any of many random directions breaks, each taken to the boundary of the threat."""
        broken = torch.zeros_like(self.y, dtype=torch.bool)
        draws = generator(self.seed, "masking", "noise", device=self.x.device)
        for _ in range(_NUM_NOISES):
            direction = uniform(self.x, draws) - 0.5
            if self.threat.norm == "linf":
                direction = direction.sign()
            else:
                length = Threat(norm=self.threat.norm, eps=0.0).distance(direction, torch.zeros_like(direction))
                direction = direction / length[:, None, None, None]
            broken |= self._broken(self.threat.project(self.x + self.threat.eps * direction, self.x))
        return broken

    def _broken_by_square(self) -> Tensor:
        seed = derive_seed(self.seed, "masking", "square")
        result = autoattack(
            self.model,
            self.x,
            self.y,
            self.threat,
            version=("square",),
            queries=_NUM_QUERIES,
            seed=seed,
            progress=False,
            check=False,
        )
        return (~result.robust).to(self.x.device)

    def _broken_by_transfer(self, surrogate: nn.Module) -> Tensor:
        with evaluating(surrogate), frozen(surrogate):
            x_adv = self._pgd(self.threat, margin, 20, "transfer", surrogate)
        return self._broken(x_adv)

    def _check_radii(self) -> None:
        """Measure accuracy against the radius, from a tiny one to one at which any image can become plain grey."""
        widest = 0.5 * self.threat.widest(self.x[0].shape)
        radii = [self.threat.eps * factor for factor in (_TINY, 0.25, 0.5, 1.0, 2.0, 4.0)]
        radii = [*(eps for eps in radii if eps < widest), widest]
        broken_so_far = torch.zeros_like(self.y, dtype=torch.bool)
        accuracies, curve = [], []
        for eps in radii:
            threat = Threat(norm=self.threat.norm, eps=eps)
            broken = self._broken(self._pgd(threat, margin, 20, "radius"), threat)
            broken_so_far = broken_so_far | broken
            accuracies.append(1 - _share(broken))
            curve.append(1 - _share(broken_so_far))
        self.measurements["accuracy_at_eps"] = [
            {"eps": eps, "accuracy": accuracy} for eps, accuracy in zip(radii, curve, strict=True)
        ]
        smallest_rise = self._significant_count(0.1) / len(self.x)
        rises = [i for i in range(1, len(radii)) if accuracies[i] - accuracies[i - 1] >= smallest_rise]
        if rises:
            self.reasons.append(f"robust accuracy rises at eps {radii[rises[0]]:.3g}")
        chance = float(torch.bincount(self.y).max()) / len(self.y)
        self._add_reason_if(
            curve[-1] >= chance + self._significant_count(0.05) / len(self.x),
            f"at eps {widest:.3g}, where any image can become grey, {curve[-1]:.0%} still count as robust",
        )
        broken_at_tiny = 1 - curve[0]
        self._add_reason_if(
            radii[0] < self.threat.eps and broken_at_tiny >= self._significant_count(0.1) / len(self.x),
            f"at eps {radii[0]:.2g}, a hundredth of the radius, {broken_at_tiny:.0%} are broken already",
        )

    def _pgd(
        self,
        threat: Threat,
        loss: Callable[[Tensor, Tensor], Tensor],
        steps: int,
        purpose: str,
        network: nn.Module | None = None,
    ) -> Tensor:
        """Return adversarial images against the network, or against the model if it is None."""
        attacked = network or self.model
        draws = [generator(self.seed, "masking", purpose, i, device=self.x.device) for i in range(len(self.x))]
        step_size = threat.eps if steps == 1 else threat.eps / 4
        return run_pgd(
            lambda z: loss(attacked(z), self.y),
            self.x,
            threat,
            steps=steps,
            step_size=step_size,
            generator=draws,
        )

    def _broken(self, x_adv: Tensor, threat: Threat | None = None) -> Tensor:
        """Return which images are misclassified and inside the threat, bool [B]."""
        logits = self.model(x_adv)
        # A NaN is never robust.
        wrong = (logits.argmax(dim=1) != self.y) | ~logits.isfinite().all(dim=1)
        broken: Tensor = wrong & (threat or self.threat).contains(x_adv, self.x)
        return broken

    def _gradient(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the gradient of the loss with respect to the images, [B,C,H,W]."""
        with torch.enable_grad():
            leaf = self.x.clone().requires_grad_(True)
            grad: Tensor
            (grad,) = torch.autograd.grad(loss(self.model(leaf), self.y).sum(), leaf, materialize_grads=True)
        return grad

    def _check_gradient_free(self, attack: str, only: Tensor) -> None:
        """Add a reason if an attack without gradients breaks images, `only`, that no gradient attack breaks."""
        count = int(only.sum())
        self._add_reason_if(
            count >= self._significant_count(0.05),
            f"{attack} breaks {count} of {len(only)} images that no gradient attack breaks",
        )

    def _significant_count(self, share: float) -> int:
        """Return how many images make up this share, but at least 3: fewer may be chance."""
        return max(3, math.ceil(share * len(self.x)))

    def _add_reason_if(self, condition: bool, reason: str) -> None:
        if condition:
            self.reasons.append(reason)


def _share(flags: Tensor) -> float:
    return float(flags.float().mean())
