"""Auto-PGD for l1: sparse steps whose sparsity and size adapt to the best perturbation so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from robustill.attacks.apgd import (
    LOSSES,
    APGDRows,
    SearchGenerators,
    Targets,
    evaluate,
    new_rows,
    return_to_best,
    update_best,
)
from robustill.attacks.pool import StepResult, column
from robustill.attacks.search import Search
from robustill.core.randomness import gaussian

# A step changes this share of the pixels at first, and later two thirds as many as the best perturbation does.
_FIRST_DENSITY = 0.2
_SPARSER = 1.5
# The step shrinks by this factor, down to a tenth of eps, if the perturbation no longer gets sparser.
_SHRINK = 1.5
_SMALLEST_STEP = 0.1
_GETS_SPARSER = 0.95


@dataclass
class SparseRows(APGDRows):
    """The state of R sparse ascents.

    Args:
        density: share of the pixels that a step changes, [R].
        support: number of pixels that the best perturbation changed at the last check, [R].
    """

    density: Tensor
    support: Tensor


class SparseAPGD:
    """Auto-PGD for l1.

    A step changes the pixels of the largest gradients by s / their number each, in the direction of the sign, and is
    projected exactly. At each check the number of pixels that the best perturbation changes sets that of the next
    steps; if it fell by 5 %, s is reset to eps and the ascent returns to its best point, else s shrinks. With
    `shrinking` the ascent starts in balls of 3·eps and 2·eps (30 % of the steps each), whose points are no successes.

    Args:
        search: makes the passes through the model.
        loss: a key of apgd.LOSSES.
        steps: gradient steps over all balls.
        generators: for the random starts.
        targets: the target classes; None for untargeted losses.
        shrinking: start in larger balls.

    Reference: Croce and Hein 2021, "Mind the box".
    """

    def __init__(
        self,
        search: Search,
        loss: str,
        *,
        steps: int,
        generators: SearchGenerators,
        targets: Targets | None = None,
        shrinking: bool = False,
    ) -> None:
        assert search.threat.norm == "l1"
        self.search = search
        self.threat = search.threat
        self.loss = LOSSES[loss]
        self.generators = generators
        self.targets = targets
        early = math.ceil(0.3 * steps)
        # Radii in units of eps, and the steps in each ball; every ball evaluates its start as well.
        self.balls = [(3, early), (2, early), (1, steps - 2 * early)] if shrinking else [(1, steps)]
        self.length = sum(count + 1 for _, count in self.balls)
        ages = [(radius, age, count) for radius, count in self.balls for age in range(count + 1)]
        self.radius = torch.tensor([radius for radius, _, _ in ages])
        self.age_in_ball = torch.tensor([age for _, age, _ in ages])
        self.check_due = torch.tensor([age > 0 and age % max(int(0.04 * count), 1) == 0 for _, age, count in ages])

    def start(self, image: Tensor, variant: Tensor, x: Tensor, y: Tensor) -> SparseRows:
        """See `pool.Attack`."""
        self.radius, self.age_in_ball = self.radius.to(x.device), self.age_in_ball.to(x.device)
        self.check_due = self.check_due.to(x.device)
        target = y if self.targets is None else self.targets(image, variant)
        radius = torch.full_like(image, self.balls[0][0])
        x_adv = _random_start(x, self.generators(image, variant))
        base = new_rows(image, x, y, target, self._project(x_adv, x, radius), step_size=0.0, radius=1.0)
        all_pixels = torch.full_like(base.loss, x[0].numel())
        return SparseRows(
            **{each.name: getattr(base, each.name) for each in fields(base)},
            density=torch.full_like(base.loss, _FIRST_DENSITY),
            support=all_pixels,
        )

    def advance(self, rows: SparseRows) -> StepResult:
        """See `pool.Attack`; the first call in each ball evaluates its start."""
        age = self.age_in_ball[rows.age]
        radius = self.radius[rows.age]
        self._enter_ball(rows, age == 0, radius)
        self._move(rows, age, radius)
        step, loss = evaluate(self.search, self.loss, rows)
        update_best(rows, loss)
        self._check_sparsity(rows, self.check_due[rows.age], radius)
        inside = radius == 1
        margins = torch.where(inside, step.margins, -torch.inf)
        return replace(step, margins=margins, candidates=step.candidates & inside)

    def _enter_ball(self, rows: SparseRows, entering: Tensor, radius: Tensor) -> None:
        if not entering.any():
            return
        later = entering & (rows.age > 0)
        if later.any():
            start = self._project(rows.best, rows.x, radius)
            rows.x_adv = torch.where(column(later), start, rows.x_adv)
        rows.best_loss = torch.where(entering, -torch.inf, rows.best_loss)
        rows.step_size = torch.where(entering, radius * self.threat.eps, rows.step_size)
        rows.previous = torch.where(column(entering), rows.x_adv, rows.previous)
        if len(self.balls) > 1:
            support = _support(rows.x_adv, rows.x)
            rows.support = torch.where(entering, support, rows.support)
            rows.density = torch.where(entering, support / rows.x[0].numel() / _SPARSER, rows.density)

    def _move(self, rows: SparseRows, age: Tensor, radius: Tensor) -> None:
        num_pixels = rows.x[0].numel()
        size = rows.grad.abs().flatten(1)
        rank = ((1 - rows.density) * num_pixels).clamp(max=num_pixels - 1).long()
        threshold = size.sort(dim=1).values.gather(1, rank[:, None])
        direction = rows.grad.sign() * (rows.grad.abs() >= column(threshold.squeeze(1)))
        length = direction.abs().sum(dim=(1, 2, 3)) + 1e-10
        moved = self._project(rows.x_adv + column(rows.step_size / length) * direction, rows.x, radius)
        rows.previous = rows.x_adv
        rows.x_adv = torch.where(column(age > 0), moved, rows.x_adv)

    def _check_sparsity(self, rows: SparseRows, due: Tensor, radius: Tensor) -> None:
        if not due.any():
            return
        support = _support(rows.best, rows.x)
        sparser = due & (support / rows.support < _GETS_SPARSER)
        largest = radius * self.threat.eps
        shrunk = torch.maximum(rows.step_size / _SHRINK, largest * _SMALLEST_STEP)
        rows.step_size = torch.where(due, torch.where(sparser, largest, shrunk), rows.step_size)
        rows.density = torch.where(due, support / rows.x[0].numel() / _SPARSER, rows.density)
        rows.support = torch.where(due, support, rows.support)
        return_to_best(rows, sparser)

    def _project(self, x_adv: Tensor, x: Tensor, radius: Tensor) -> Tensor:
        projected = x_adv
        for times, _ in self.balls:
            inside = radius == times
            if inside.any():
                ball = replace(self.threat, eps=times * self.threat.eps)
                projected = torch.where(column(inside), ball.project(x_adv, x), projected)
        return projected


def _support(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return how many pixels differ, [R]."""
    return (x_adv != x).sum(dim=(1, 2, 3)).float()


def _random_start(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    return (x + gaussian(x, generators)).contiguous(memory_format=torch.channels_last)
