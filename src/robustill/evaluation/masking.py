"""Is the gradient masked: does a model look robust only because attacks that follow its gradient lose their way?

Attacks of growing strength climb a ladder on a few images. On a model whose gradient can be followed, more steps, a
larger radius and the gradient itself each do better than fewer, a smaller one and none; where they do not, the robust
accuracy that gradient attacks report is not to be believed.

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

from robustill.attacks import pgd
from robustill.attacks.autoattack import autoattack
from robustill.core.contexts import evaluating, frozen
from robustill.core.randomness import derive_seed, generator, uniform
from robustill.losses import ce, margin
from robustill.threat import Threat

NO_SIGN, MASKED, TOO_FEW = "no sign of it", "the gradient is masked", "too few images to tell"
_STEPS = (1, 5, 20, 100)
_RESTARTS = 5
_NOISES = 50
_QUERIES = 500
# Fewest images classified right that say anything.
_FEWEST = 10
# Of the radius of the threat: so small that next to no image should fall.
_TINY = 0.01


def masking_ladder(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, surrogate: nn.Module | None = None
) -> dict[str, Any]:
    """Climb the ladder on some images, and judge.

    Costs about 1,300 passes, forward or backward, for each image that is classified right.

    Args:
        model: images [B,C,H,W] in [0,1] to logits [B,K].
        x: clean images, [B,C,H,W].
        y: labels, [B].
        threat: the images allowed.
        seed: of all draws.
        surrogate: another network of the same classes, such as a teacher, whose adversarial images are tried too.

    Returns:
        JSON-able: `verdict`, `reasons`, `images` (those classified right, which all shares refer to), and what was
        measured: margin_after_steps and accuracy_after_steps (PGD on the margin), accuracy_at_eps, and the shares
        broken_by noise, ce_once, ce_restarts, margin, white_box, square and transfer; flags zero_gradient,
        saturated, random and ascent (growth of the margin over what its gradient promises, 1 on a plane).

    Reference: as above.
    """
    with evaluating(model), frozen(model), torch.no_grad():
        right = model(x).argmax(dim=1) == y
        x, y = x[right], y[right]
        ladder = _Ladder(model, x, y, threat, seed)
        if len(x) < _FEWEST:
            return {"verdict": TOO_FEW, "reasons": [], "images": len(x)}
        ladder.look_at_gradients()
        if threat.eps > 0:
            ladder.climb(surrogate)
    verdict = MASKED if ladder.reasons else NO_SIGN
    return {"verdict": verdict, "reasons": ladder.reasons, "images": len(x), **ladder.page}


def masking_warnings(page: dict[str, Any]) -> list[str]:
    """One line to stand beside the number, if the ladder gave reasons."""
    if not page["reasons"]:
        return []
    return [
        f"Gradient masking on {page['images']} images: {'; '.join(page['reasons'])}. "
        "The robust accuracy is an upper bound that an attack made for this model would lower."
    ]


@dataclass
class _Ladder:
    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    seed: int
    reasons: list[str] = field(default_factory=list)
    page: dict[str, Any] = field(default_factory=dict)

    def look_at_gradients(self) -> None:
        """Are there any, are they the same twice, and does the margin grow as they promise?"""
        first, again = self.model(self.x).float(), self.model(self.x).float()
        scale = float(first.abs().max().clamp_min(1e-30))
        random = float((first - again).abs().max()) > 1e-4 * scale
        steep, confident = self._gradient(margin), self._gradient(ce)
        zero = steep.flatten(1).abs().amax(dim=1) == 0
        saturated = (confident.flatten(1).abs().amax(dim=1) == 0) & ~zero
        small = Threat(norm=self.threat.norm, eps=self.threat.eps / 10)
        there = small.project(self.x + small.eps * small.ascent(steep), self.x)
        promised = ((there - self.x) * steep).flatten(1).sum(dim=1)
        grown = margin(self.model(there), self.y) - margin(first, self.y)
        ratios = (grown / promised)[(promised > 0) & grown.isfinite()]
        ascent = float(ratios.median()) if len(ratios) else None
        self.page["flags"] = {
            "zero_gradient": _share(zero),
            "saturated": _share(saturated),
            "random": random,
            "ascent": ascent,
        }
        self._reason(_share(zero) > 0.05, f"the gradient is zero on {_share(zero):.0%} of the images")
        self._reason(
            _share(saturated) > 0.5,
            f"the softmax is saturated on {_share(saturated):.0%} of the images: cross-entropy has no gradient there",
        )
        self._reason(random, "two passes over the same images give other logits")
        self._reason(
            ascent is not None and ascent < 0.2,
            f"a small step along the gradient gains {round(100 * (ascent or 0))}% of what it promises",
        )

    def climb(self, surrogate: nn.Module | None) -> None:
        """Attacks of growing strength, and those that need no gradient."""
        white = self._steps()
        once, often = self._restarts()
        margin_20 = self._broken(self._pgd(self.threat, margin, 20, "steps"))
        white = white | often
        noise, square = self._noise(), self._square()
        broken = {
            "noise": noise,
            "ce_once": once,
            "ce_restarts": often,
            "margin": margin_20,
            "white_box": white,
            "square": square,
        }
        for name, flags in (("random noise", noise), ("Square, which sees no gradient,", square)):
            self._beaten(name, flags & ~white)
        if surrogate is not None:
            broken["transfer"] = self._transfer(surrogate)
            self._beaten("transfer from the surrogate", broken["transfer"] & ~white)
        self.page["broken_by"] = {name: _share(flags) for name, flags in broken.items()}
        self._reason(
            int(often.sum() - once.sum()) >= self._many(0.2),
            f"{_RESTARTS} restarts break {_share(often):.0%} where one breaks {_share(once):.0%}",
        )
        self._reason(
            int(margin_20.sum() - often.sum()) >= self._many(0.1),
            f"PGD on the margin breaks {_share(margin_20):.0%}, on the cross-entropy {_share(often):.0%}",
        )
        self._radii()

    def _steps(self) -> Tensor:
        """Margin and accuracy against steps; the images that any of the runs breaks."""
        margins, white = [margin(self.model(self.x), self.y)], torch.zeros_like(self.y, dtype=torch.bool)
        accuracies = []
        for steps in _STEPS:
            found = self._pgd(self.threat, margin, steps, "steps")
            margins.append(margin(self.model(found), self.y))
            broken = self._broken(found)
            accuracies.append(1 - _share(broken))
            white |= broken
        means = [float(each.mean()) for each in margins]
        self.page["margin_after_steps"] = dict(zip(map(str, (0, *_STEPS)), means, strict=True))
        self.page["accuracy_after_steps"] = dict(zip(map(str, _STEPS), accuracies, strict=True))
        climbed = max(means) - means[0]
        self._reason(
            means[-1] < max(means[1:-1]) - 0.1 * climbed,
            f"the loss after {_STEPS[-1]} steps is lower than after fewer",
        )
        self._reason(
            accuracies[-1] - min(accuracies) >= self._many(0.05) / len(self.x),
            f"{_STEPS[-1]} steps break fewer images than fewer steps do",
        )
        return white

    def _restarts(self) -> tuple[Tensor, Tensor]:
        runs = [self._broken(self._pgd(self.threat, ce, 20, f"restart {number}")) for number in range(_RESTARTS)]
        return runs[0], torch.stack(runs).any(dim=0)

    def _noise(self) -> Tensor:
        """Images that one of many random directions breaks, each as far as the threat reaches."""
        broken = torch.zeros_like(self.y, dtype=torch.bool)
        draws = generator(self.seed, "masking", "noise", device=self.x.device)
        for _ in range(_NOISES):
            direction = uniform(self.x, draws) - 0.5
            if self.threat.norm == "linf":
                direction = direction.sign()
            else:
                length = Threat(norm=self.threat.norm, eps=0.0).distance(direction, torch.zeros_like(direction))
                direction = direction / length[:, None, None, None]
            broken |= self._broken(self.threat.project(self.x + self.threat.eps * direction, self.x))
        return broken

    def _square(self) -> Tensor:
        seed = derive_seed(self.seed, "masking", "square")
        found = autoattack(self.model, self.x, self.y, self.threat, version=("square",), queries=_QUERIES, seed=seed)
        return (~found.robust).to(self.x.device)

    def _transfer(self, surrogate: nn.Module) -> Tensor:
        with evaluating(surrogate), frozen(surrogate):
            found = self._pgd(self.threat, margin, 20, "transfer", surrogate)
        return self._broken(found)

    def _radii(self) -> None:
        """Accuracy against the radius: from next to nothing to where any image can become plain grey."""
        widest = 0.5 * self.threat.widest(self.x[0].shape)
        radii = [self.threat.eps * factor for factor in (_TINY, 0.25, 0.5, 1.0, 2.0, 4.0)]
        radii = [*(eps for eps in radii if eps < widest), widest]
        broken, raw, curve = torch.zeros_like(self.y, dtype=torch.bool), [], []
        for eps in radii:
            threat = Threat(norm=self.threat.norm, eps=eps)
            here = self._broken(self._pgd(threat, margin, 20, "radius"), threat)
            broken = broken | here
            raw.append(1 - _share(here))
            curve.append(1 - _share(broken))
        self.page["accuracy_at_eps"] = [{"eps": eps, "accuracy": each} for eps, each in zip(radii, curve, strict=True)]
        rises = [i for i in range(1, len(raw)) if raw[i] - raw[i - 1] >= self._many(0.1) / len(self.x)]
        self._reason(bool(rises), f"robust accuracy rises at eps {radii[rises[0]]:.3g}" if rises else "")
        chance = float(torch.bincount(self.y).max()) / len(self.y)
        self._reason(
            curve[-1] >= chance + self._many(0.05) / len(self.x),
            f"at eps {widest:.3g}, where any image can become grey, {curve[-1]:.0%} still count as robust",
        )
        self._reason(
            radii[0] < self.threat.eps and 1 - curve[0] >= self._many(0.1) / len(self.x),
            f"at eps {radii[0]:.2g}, a hundredth of the radius, {1 - curve[0]:.0%} are broken already",
        )

    def _pgd(
        self,
        threat: Threat,
        loss: Callable[[Tensor, Tensor], Tensor],
        steps: int,
        what: str,
        network: nn.Module | None = None,
    ) -> Tensor:
        attacked = network or self.model
        draws = [generator(self.seed, "masking", what, i, device=self.x.device) for i in range(len(self.x))]
        size = threat.eps if steps == 1 else threat.eps / 4
        return pgd(lambda z: loss(attacked(z), self.y), self.x, threat, steps=steps, step_size=size, generator=draws)

    def _broken(self, found: Tensor, threat: Threat | None = None) -> Tensor:
        wrong: Tensor = self.model(found).argmax(dim=1) != self.y
        return wrong & (threat or self.threat).contains(found, self.x)

    def _gradient(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            leaf = self.x.clone().requires_grad_(True)
            grad: Tensor
            (grad,) = torch.autograd.grad(loss(self.model(leaf), self.y).sum(), leaf, materialize_grads=True)
        return grad

    def _beaten(self, what: str, only: Tensor) -> None:
        self._reason(
            int(only.sum()) >= self._many(0.05),
            f"{what} breaks {int(only.sum())} of {len(only)} images that no gradient attack breaks",
        )

    def _many(self, share: float) -> int:
        """So many images that chance does not explain them."""
        return max(3, math.ceil(share * len(self.x)))

    def _reason(self, holds: bool, line: str) -> None:
        if holds:
            self.reasons.append(line)


def _share(flags: Tensor) -> float:
    return float(flags.float().mean())
