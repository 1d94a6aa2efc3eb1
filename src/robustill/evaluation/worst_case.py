"""The strongest adversarial image that a suite finds for each of some images, and the rows it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustill.attacks import pgd
from robustill.attacks.autoattack import AutoAttackResult, Precision, autoattack
from robustill.attacks.state import AutoAttackState
from robustill.attacks.suites import PGDStage, Suite
from robustill.core.errors import ModelError
from robustill.core.randomness import generator
from robustill.losses import ce, margin
from robustill.runs.records import ROBUST, WRONG_ON_CLEAN
from robustill.threat import Threat

_CURVE_STEPS = 20
Report = Callable[[int, int, str], None]
"""Passes done, passes expected in all, the attack that runs."""


class WorstCase:
    """A suite against a model in eval mode; what an image draws depends on (seed, attack, radius, its id) alone.

    Args:
        model: images to logits.
        threat: the images allowed.
        suite: the attacks.
        eps_grid: radii at which robust accuracy is measured too.
        seed: of all draws.
        batch_size: images at a time.
        precision: of AutoAttack.
    """

    def __init__(
        self,
        model: nn.Module,
        threat: Threat,
        suite: Suite,
        eps_grid: Sequence[float],
        seed: int,
        batch_size: int,
        precision: Precision = "exact",
    ) -> None:
        self.model, self.threat, self.suite, self.eps_grid = model, threat, suite, eps_grid
        self.seed, self.batch_size, self.precision = seed, batch_size, precision
        self.passes = 0
        """Images that went through the model so far, forward or backward."""

    def part(
        self,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        *,
        state: AutoAttackState | None = None,
        save: Callable[[AutoAttackState], None] | None = None,
        report: Report | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The rows of some images, and the strongest image found for each.

        Args:
            x: [B,C,H,W] in [0,1].
            y: labels, [B].
            ids: of the images in the data set, [B], on the CPU.
            state: of AutoAttack, as `save` was given it.
            save: called with AutoAttack's state after each batch of images.
            report: called now and then.
        """
        found = None
        rest = len(x) * self._units_after()
        if self.suite.autoattack is not None:
            started = self.passes

            def told(done: int, expected: int, attack: str) -> None:
                self.passes = started + done
                if report is not None:
                    report(self.passes, started + expected + rest, attack)

            found = autoattack(
                self.model,
                x,
                y,
                self.threat,
                version=self.suite.autoattack,
                seed=self.seed,
                batch_size=self.batch_size,
                precision=self.precision,
                index=ids,
                state=state,
                save=save,
                progress=told,
                **self.suite.budgets,
            )
            self.passes = started + sum(found.passes)
        rows, images = [], []
        for chunk in torch.split(torch.arange(len(x)), self.batch_size):
            before = None if found is None else _Before(found, chunk)
            # The layout that is faster; picking rows of a batch loses it.
            laid_out = x[chunk].contiguous(memory_format=torch.channels_last)
            row, x_adv = self._batch(laid_out, y[chunk], ids[chunk], before)
            rows.append(row)
            images.append(x_adv)
            rest -= len(chunk) * self._units_after()
            if report is not None:
                report(self.passes, self.passes + rest, "")
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}, torch.cat(images)

    def _units_after(self) -> int:
        radii = sum(eps != self.threat.eps for eps in self.eps_grid)
        return sum(stage.restarts * (2 * stage.steps + 1) for stage in self.suite.stages) + radii * (
            2 * _CURVE_STEPS + 1
        )

    @torch.no_grad()
    def _batch(self, x: Tensor, y: Tensor, ids: Tensor, before: _Before | None) -> tuple[dict[str, Tensor], Tensor]:
        clean = self.model(x).float()
        correct = clean.argmax(dim=1) == y
        broken_by = torch.where(correct, ROBUST, WRONG_ON_CLEAN).to(torch.int8)
        x_adv, adversarial, highest = x.clone(), clean.clone(), ce(clean, y)
        offset = 0
        if before is not None:
            broken_by, offset = before.broken_by.to(x.device), before.stages
            correct = broken_by != WRONG_ON_CLEAN
            broken = (broken_by >= 0).nonzero().flatten()
            if len(broken):
                x_adv[broken] = before.x_adv.to(x.device)[broken]
                adversarial[broken] = self.model(x_adv[broken]).float()
                highest[broken] = ce(adversarial[broken], y[broken])
        runs = [
            (number, restart) for number, stage in enumerate(self.suite.stages) for restart in range(stage.restarts)
        ]
        for number, restart in runs:
            active = torch.arange(len(x), device=x.device) if number == 0 else (broken_by == ROBUST).nonzero().flatten()
            if len(active) == 0:
                break
            found, logits, allowed = self._attack(
                self.suite.stages[number], restart, x[active], y[active], ids[active.cpu()], self.threat
            )
            broke = allowed & (logits.argmax(dim=1) != y[active]) & (broken_by[active] == ROBUST)
            broken_by[active[broke]] = offset + number
            # An image that broke gives way only to another that is wrong too, so that its row stays an adversarial one.
            loss = ce(logits, y[active])
            still = (broken_by[active] < 0) | (logits.argmax(dim=1) != y[active])
            stronger = broke | (allowed & still & (loss > highest[active]))
            take = active[stronger]
            x_adv[take], adversarial[take], highest[take] = found[stronger], logits[stronger], loss[stronger]
        robust = broken_by == ROBUST
        curve = [self._robust_at(eps, x, y, ids, correct, robust) for eps in self.eps_grid]
        for position in range(1, len(curve)):
            curve[position] &= curve[position - 1]
        row = {
            "clean_probabilities": clean.softmax(dim=1),
            "adversarial_probabilities": adversarial.softmax(dim=1),
            "robust": robust,
            "broken_by": broken_by,
            "margin": -margin(adversarial, y),
            "distance": self.threat.distance(x_adv, x),
            "robust_at_eps": torch.stack(curve, dim=1) if curve else robust.new_zeros((len(x), 0)),
        }
        return row, x_adv

    def _attack(
        self, stage: PGDStage, restart: int, x: Tensor, y: Tensor, ids: Tensor, threat: Threat
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One run: the images found, their logits, and whether each is inside the threat."""
        draws = [generator(self.seed, stage.name, restart, str(threat), int(i), device=x.device) for i in ids]
        found = pgd(
            lambda z: stage.loss(self.model(z), y),
            x,
            threat,
            steps=stage.steps,
            step_size=threat.eps / 4,
            generator=draws,
        )
        logits = self.model(found).float()
        self.passes += len(x) * (2 * stage.steps + 1)
        if not torch.isfinite(logits).all():
            # As a success it would be nobody's, as a failure it would make a broken network look robust.
            raise ModelError(f"the model gives NaN or infinite logits on images of the attack {stage.name}")
        return found, logits, threat.contains(found, x)

    def _robust_at(self, eps: float, x: Tensor, y: Tensor, ids: Tensor, correct: Tensor, robust: Tensor) -> Tensor:
        """Which images one PGD run of this radius leaves right; beyond the threat's radius only robust ones can be."""
        if eps == self.threat.eps:
            return robust.clone()
        left = (robust if eps > self.threat.eps else correct).clone()
        active = left.nonzero().flatten()
        if len(active):
            stage = PGDStage(name="curve", loss=ce, steps=_CURVE_STEPS, restarts=1)
            threat = Threat(norm=self.threat.norm, eps=eps)
            _, logits, allowed = self._attack(stage, 0, x[active], y[active], ids[active.cpu()], threat)
            left[active] = ~allowed | (logits.argmax(dim=1) == y[active])
        # What withstands the whole suite at a larger radius withstands this one.
        return left | robust if eps < self.threat.eps else left


class _Before:
    """What AutoAttack found for some of its images."""

    def __init__(self, found: AutoAttackResult, chunk: Tensor) -> None:
        self.broken_by, self.x_adv, self.stages = found.broken_by[chunk], found.x_adv[chunk], len(found.stages)
