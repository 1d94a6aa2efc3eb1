"""The worst case over a suite's attacks: the strongest adversarial image of each clean one, and the rows to record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustill.attacks.autoattack import AutoAttackResult, Precision, Report, autoattack
from robustill.attacks.cost import seconds_per_pass
from robustill.attacks.pgd import run_pgd
from robustill.attacks.state import AutoAttackState
from robustill.attacks.suites import ROBUST_SHARE, PGDStage, Suite
from robustill.core.errors import ModelError
from robustill.core.randomness import generator
from robustill.losses import ce, margin, probabilities
from robustill.runs.records import ROBUST, WRONG_ON_CLEAN
from robustill.threat import Threat

CURVE_ATTACK = PGDStage(name="curve", loss=ce, steps=20, restarts=1)
"""The attack of the curve of robust accuracy against eps, at every radius."""


def curve_passes(num_radii: int) -> int:
    """Return the passes of an image that withstands the attacks of a curve with so many radii."""
    return num_radii * CURVE_ATTACK.passes_per_image


class WorstCase:
    """A suite of attacks against one model, which must be in eval mode.

    The random numbers of an image depend on (seed, attack, radius, its id) alone.

    Args:
        model: images to logits.
        threat: the images that the adversary may choose.
        suite: the attacks.
        eps_grid: further radii at which robust accuracy is measured, ascending.
        seed: seed of all random numbers.
        batch_size: images at a time.
        precision: precision of AutoAttack's gradients.
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
        """Passes through the model so far, forward or backward, summed over images."""
        self._report: Report | None = None
        self._expected = 0

    def passes_per_image(self, num_classes: int) -> int:
        """Return the passes, forward or backward, of an image that withstands the suite."""
        return self.suite.passes_per_image(self.threat, num_classes)

    def expected_passes(self, num_classes: int) -> float:
        """Return the passes of an image on average, those of the curve included, see `Suite.expected_passes`."""
        curve = curve_passes(len(self.eps_grid))
        return self.suite.expected_passes(self.threat, num_classes) + ROBUST_SHARE * curve

    def seconds_per_pass(self, x: Tensor, y: Tensor) -> float:
        """Return the seconds of a pass of one image, measured in less than a second on some of the images."""
        return seconds_per_pass(self.model, x, y, self.threat)

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
        """Attack images with the whole suite; return their rows, by column, and the strongest image found for each.

        Args:
            x: [B,C,H,W] in [0,1].
            y: labels, [B].
            ids: the images' ids in the data set, [B], on the CPU.
            state: AutoAttack's state to resume from, as it was passed to `save`.
            save: called with AutoAttack's state after each batch of images.
            report: called now and then with the progress.
        """
        passes_left = len(x) * self._passes_after_autoattack()
        self._report, result = report, None
        if self.suite.autoattack is not None:
            result = self._autoattack(x, y, ids, state, save, report, passes_left)
        rows, images = [], []
        for chunk in torch.split(torch.arange(len(x)), self.batch_size):
            autoattack_part = None if result is None else _AutoAttackPart(result, chunk)
            # channels_last is faster, and indexing the batch loses it.
            x_chunk = x[chunk].contiguous(memory_format=torch.channels_last)
            self._expected = self.passes + passes_left
            row, x_adv = self._attack_batch(x_chunk, y[chunk], ids[chunk], autoattack_part)
            rows.append(row)
            images.append(x_adv)
            passes_left -= len(chunk) * self._passes_after_autoattack()
            if report is not None:
                report(self.passes, self.passes + passes_left, "")
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}, torch.cat(images)

    def _autoattack(
        self,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        state: AutoAttackState | None,
        save: Callable[[AutoAttackState], None] | None,
        report: Report | None,
        passes_after: int,
    ) -> AutoAttackResult:
        passes_before = self.passes

        def on_progress(done: int, expected: int, attack: str) -> None:
            self.passes = passes_before + done
            if report is not None:
                report(self.passes, passes_before + expected + passes_after, attack)

        assert self.suite.autoattack is not None
        result = autoattack(
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
            progress=on_progress,
            check=False,
            **self.suite.budgets,
        )
        self.passes = passes_before + sum(result.passes)
        return result

    def _passes_after_autoattack(self) -> int:
        """Return the passes of an image that withstands every PGD run, those of the curve included."""
        return sum(stage.passes_per_image for stage in self.suite.stages) + curve_passes(len(self.eps_grid))

    @torch.no_grad()
    def _attack_batch(
        self, x: Tensor, y: Tensor, ids: Tensor, autoattack_part: _AutoAttackPart | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Attack one batch; return its rows, by column, and the strongest images."""
        clean = self.model(x).float()
        if not torch.isfinite(clean).all():
            raise ModelError("the model gives NaN or infinite logits on clean images: its weights are damaged")
        strongest = Strongest.of_clean(x, y, clean)
        num_autoattack_stages = 0
        if autoattack_part is not None:
            num_autoattack_stages = autoattack_part.num_stages
            self._take_autoattack(strongest, autoattack_part, y)
        correct = strongest.broken_by != WRONG_ON_CLEAN
        self._run_stages(strongest, x, y, ids, num_autoattack_stages)
        row = self._columns(strongest, clean, x, y) | {"robust_at_eps": self._eps_curve(x, y, ids, correct)}
        return row, strongest.x_adv

    def _columns(self, strongest: Strongest, clean: Tensor, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return what is recorded of each image and of the strongest image found for it, by column."""
        return {
            "clean_probabilities": probabilities(clean),
            "adversarial_probabilities": probabilities(strongest.logits),
            "robust": strongest.broken_by == ROBUST,
            "broken_by": strongest.broken_by,
            "margin": -margin(strongest.logits, y),
            "distance": self.threat.distance(strongest.x_adv, x),
        }

    def _take_autoattack(self, strongest: Strongest, part: _AutoAttackPart, y: Tensor) -> None:
        """Start from the images that AutoAttack found."""
        device = strongest.x_adv.device
        is_wrong, broken_by = strongest.broken_by == WRONG_ON_CLEAN, part.broken_by.to(device)
        # Of a network that draws random numbers: AutoAttack's own clean pass misclassified an image that this one does
        # not. The clean image is inside the threat, so it has broken the row.
        broken_by[(broken_by == WRONG_ON_CLEAN) & ~is_wrong] = 0
        broken_by[is_wrong] = WRONG_ON_CLEAN
        strongest.broken_by = broken_by
        broken = (strongest.broken_by >= 0).nonzero().flatten()
        if len(broken):
            strongest.x_adv[broken] = part.x_adv.to(device)[broken]
            strongest.logits[broken] = self.model(strongest.x_adv[broken]).float()
            strongest.loss[broken] = ce(strongest.logits[broken], y[broken])

    def _run_stages(self, strongest: Strongest, x: Tensor, y: Tensor, ids: Tensor, first_stage: int) -> None:
        """Run every PGD stage: the first one on all images, the others on those that are still robust."""
        runs = [
            (number, restart) for number, stage in enumerate(self.suite.stages) for restart in range(stage.restarts)
        ]
        for number, restart in runs:
            active = torch.arange(len(x), device=x.device)
            if number > 0:
                active = (strongest.broken_by == ROBUST).nonzero().flatten()
            if len(active) == 0:
                break
            stage = self.suite.stages[number]
            x_adv, logits, allowed = self._pgd(stage, restart, x[active], y[active], ids[active.cpu()], self.threat)
            strongest.update(active, x_adv, logits, allowed, y[active], stage=first_stage + number)

    def _eps_curve(self, x: Tensor, y: Tensor, ids: Tensor, correct: Tensor) -> Tensor:
        """Return whether each image withstands one run of PGD at each radius of the grid, bool [B,E].

        The attack is the same at all radii, that of the threat included, so that they can be compared; an image that
        is broken at one radius counts as broken at every larger one.
        """
        withstands, curve = correct, []
        for eps in self.eps_grid:
            active = withstands.nonzero().flatten()
            if len(active):
                threat = Threat(norm=self.threat.norm, eps=eps)
                _, logits, allowed = self._pgd(CURVE_ATTACK, 0, x[active], y[active], ids[active.cpu()], threat)
                withstands = withstands.clone()
                withstands[active] = ~allowed | (logits.argmax(dim=1) == y[active])
            curve.append(withstands)
        return torch.stack(curve, dim=1) if curve else correct.new_zeros((len(x), 0))

    def _pgd(
        self,
        stage: PGDStage,
        restart: int,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        threat: Threat,
        source: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run PGD once on the model, or on another network; return the images found, the model's logits of them, and
        whether each is inside the threat.

        Raises:
            ModelError: NaN or infinite logits. They can count neither as a success nor as a failure: the failure would
                make a broken model look robust.
        """
        generators = [generator(self.seed, stage.name, restart, str(threat), int(i), device=x.device) for i in ids]
        attacked = self.model if source is None else source
        x_adv = run_pgd(
            lambda z: stage.loss(attacked(z), y),
            x,
            threat,
            steps=stage.steps,
            step_size=threat.eps / 4,
            generator=generators,
        )
        logits = self.model(x_adv).float()
        self.passes += len(x) * (2 * stage.steps + 1)
        if self._report is not None:
            self._report(self.passes, self._expected, stage.name)
        if not torch.isfinite(logits).all():
            raise ModelError(f"the model gives NaN or infinite logits on images of the attack {stage.name}")
        return x_adv, logits, threat.contains(x_adv, x)


@dataclass
class Strongest:
    """The strongest image found so far for each image of a batch."""

    x_adv: Tensor
    """[B,C,H,W]"""
    logits: Tensor
    """[B,K], of x_adv"""
    loss: Tensor
    """[B], cross-entropy of x_adv"""
    broken_by: Tensor
    """int8 [B], the stage that broke the image, or ROBUST or WRONG_ON_CLEAN"""

    @classmethod
    def of_clean(cls, x: Tensor, y: Tensor, logits: Tensor) -> Strongest:
        """Start from the clean images."""
        correct = logits.argmax(dim=1) == y
        broken_by = torch.where(correct, ROBUST, WRONG_ON_CLEAN).to(torch.int8)
        return cls(x_adv=x.clone(), logits=logits.clone(), loss=ce(logits, y), broken_by=broken_by)

    def update(self, active: Tensor, x_adv: Tensor, logits: Tensor, allowed: Tensor, y: Tensor, *, stage: int) -> None:
        """Take the images of one attack that break a robust image, or have a higher loss than the strongest so far.

        Args:
            active: int64 [A], positions of the attacked images in the batch.
            x_adv: [A,C,H,W], the images found.
            logits: [A,K].
            allowed: bool [A], whether each is inside the threat.
            y: labels, [A].
            stage: number of the attack.
        """
        wrong = logits.argmax(dim=1) != y
        breaks = allowed & wrong & (self.broken_by[active] == ROBUST)
        self.broken_by[active[breaks]] = stage
        # Only another misclassified image replaces one that broke a row, so that the row stays adversarial.
        loss = ce(logits, y)
        may_replace = (self.broken_by[active] < 0) | wrong
        stronger = breaks | (allowed & may_replace & (loss > self.loss[active]))
        rows = active[stronger]
        self.x_adv[rows], self.logits[rows], self.loss[rows] = x_adv[stronger], logits[stronger], loss[stronger]


class _AutoAttackPart:
    """AutoAttack's result for some of its images."""

    def __init__(self, result: AutoAttackResult, rows: Tensor) -> None:
        self.broken_by, self.x_adv = result.broken_by[rows], result.x_adv[rows]
        self.num_stages = len(result.stages)
