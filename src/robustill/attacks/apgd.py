"""Auto-PGD: projected gradient ascent with momentum that halves its own step, for l∞ and l2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from robustill.attacks.pool import Reached, Rows, column
from robustill.attacks.search import Search
from robustill.core.randomness import gaussian, uniform
from robustill.losses import ce, dlr, margin
from robustill.threat import Threat

TargetLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits [B,K], labels [B], targets [B] to one value a sample; untargeted losses ignore the targets."""

Draws = Callable[[Tensor, Tensor], Sequence[torch.Generator]]
"""Images [R] and variants [R] to one generator a search."""

Targets = Callable[[Tensor, Tensor], Tensor]
"""Images [R] and variants [R] to the class that each search aims at, [R]."""

_MOMENTUM = 0.75
# The step is halved when the loss rose in at most this share of the steps since the last check.
_RISING = 0.75


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio: (z_t − z_y) / (z_(1) − (z_(3) + z_(4)) / 2), sorted downwards.

    Args:
        logits: z, [B,K], K ≥ 4.
        y: labels, int64 [B].
        target: t, int64 [B].

    Returns:
        [B], float32.

    Example:
        >>> dlr_targeted(torch.tensor([[4.0, 2.0, 1.0, 1.0]]), torch.tensor([0]), torch.tensor([1]))   # (2 - 4) / 3
        tensor([-0.6667])

    Reference: Croce and Hein 2020, eq. 7.
    """
    logits = logits.float()
    largest = logits.topk(4, dim=1).values
    difference = logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])
    return difference.squeeze(1) / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + 1e-12)


LOSSES: dict[str, TargetLoss] = {
    "ce": lambda logits, y, target: ce(logits, y),
    "dlr": lambda logits, y, target: dlr(logits, y),
    "ce-targeted": lambda logits, y, target: -ce(logits, target),
    "dlr-targeted": dlr_targeted,
}


@dataclass
class APGDRows(Rows):
    """Ascents under way; R searches.

    Args:
        x: clean images.
        y: labels.
        target: the class aimed at; the label where there is none.
        x_adv: where the last step led.
        before: the point before it; written to.
        low: the smallest pixels allowed by l∞ and the box.
        high: the largest.
        grad: gradient at x_adv.
        best: the point of the largest loss so far.
        best_grad: its gradient.
        best_loss: its loss.
        loss: of the last step.
        rises: steps since the last check that raised the loss.
        checked_loss: best_loss at the last check.
        halved: whether the last check halved the step.
        step_size: in units of [0,1].
    """

    x: Tensor
    y: Tensor
    target: Tensor
    x_adv: Tensor
    before: Tensor
    low: Tensor
    high: Tensor
    grad: Tensor
    best: Tensor
    best_grad: Tensor
    best_loss: Tensor
    loss: Tensor
    rises: Tensor
    checked_loss: Tensor
    halved: Tensor
    step_size: Tensor


class APGD:
    """Auto-PGD, for l∞ and l2.

    A step: z = project(x_i + s·ascent(∇)), x_{i+1} = project(x_i + 0.75·(z − x_i) + 0.25·(x_i − x_{i−1})). At
    checkpoints, 22 % of the steps and then ever fewer apart, the step size s is halved and the ascent goes back to its
    best point, where the loss rose too seldom, or did not improve since a check that left s as it was.

    Args:
        search: passes through the model.
        loss: a key of LOSSES.
        steps: gradient steps; a search makes one pass more, at its start.
        draws: the generators of the random starts.
        targets: the classes aimed at; None for untargeted losses.

    Reference: Croce and Hein 2020.
    """

    def __init__(self, search: Search, loss: str, *, steps: int, draws: Draws, targets: Targets | None = None) -> None:
        assert search.threat.norm in ("linf", "l2")
        self.search = search
        self.threat = search.threat
        self.loss = LOSSES[loss]
        self.draws = draws
        self.targets = targets
        self.length = steps + 1
        self.windows = _checkpoints(steps)

    def start(self, image: Tensor, variant: Tensor, x: Tensor, y: Tensor) -> APGDRows:
        """See `pool.Attack`."""
        self.windows = self.windows.to(x.device)
        target = y if self.targets is None else self.targets(image, variant)
        x_adv = _on_the_sphere(x, self.threat, self.draws(image, variant))
        # Other norms are no box: theirs is that of the images.
        radius = self.threat.eps if self.threat.norm == "linf" else 1.0
        return new_rows(image, x, y, target, x_adv, step_size=2 * self.threat.eps, radius=radius)

    def advance(self, rows: APGDRows) -> Reached:
        """See `pool.Attack`; the first call evaluates the start."""
        self._move(rows)
        reached, loss = evaluate(self.search, self.loss, rows)
        # The first window counts a rise from zero, as the authors' code does.
        rows.rises += (loss > rows.loss) & (rows.age > 0)
        rows.loss = torch.where(rows.age > 0, loss, torch.zeros_like(loss))
        keep_best(rows, loss)
        self._check(rows)
        return reached

    def _move(self, rows: APGDRows) -> None:
        ball = self.threat
        ascent = ball.ascent(rows.grad).mul_(column(rows.step_size))
        moved = _project(ascent.add_(rows.x_adv), rows, ball)
        momentum = column(torch.where(rows.age > 1, _MOMENTUM, 1.0))
        moved.sub_(rows.x_adv).mul_(momentum).add_(rows.x_adv)
        # The point before is not needed again, and gives its memory.
        moved.add_(torch.sub(rows.x_adv, rows.before, out=rows.before).mul_(1 - momentum))
        moved = _project(moved, rows, ball)
        fresh = column(rows.age == 0)
        rows.before, rows.x_adv = rows.x_adv, torch.where(fresh, rows.x_adv, moved) if fresh.any() else moved

    def _check(self, rows: APGDRows) -> None:
        window = self.windows[rows.age]
        due = window > 0
        if not due.any():
            return
        oscillates = rows.rises <= window * _RISING
        stalls = ~rows.halved & (rows.checked_loss >= rows.best_loss)
        halve = due & (oscillates | stalls)
        rows.step_size = torch.where(halve, rows.step_size / 2, rows.step_size)
        go_back(rows, halve)
        rows.halved = torch.where(due, halve, rows.halved)
        rows.checked_loss = torch.where(due, rows.best_loss, rows.checked_loss)
        rows.rises = torch.where(due, 0, rows.rises)


def new_rows(
    image: Tensor, x: Tensor, y: Tensor, target: Tensor, x_adv: Tensor, *, step_size: float, radius: float
) -> APGDRows:
    """Ascents that stand at their start; `radius` is that of l∞."""
    zeros = torch.zeros(len(x), device=x.device)
    return APGDRows(
        image=image,
        age=torch.zeros_like(image),
        x=x,
        y=y,
        target=target,
        x_adv=x_adv,
        before=x_adv.clone(),
        low=(x - radius).clamp_(min=0),
        high=(x + radius).clamp_(max=1),
        grad=torch.zeros_like(x),
        best=x_adv.clone(),
        best_grad=torch.zeros_like(x),
        best_loss=torch.full_like(zeros, -torch.inf),
        loss=zeros,
        rises=torch.zeros_like(image),
        checked_loss=zeros,
        halved=torch.ones_like(image, dtype=torch.bool),
        step_size=torch.full_like(zeros, step_size),
    )


def evaluate(search: Search, loss: TargetLoss, rows: APGDRows) -> tuple[Reached, Tensor]:
    """The gradient at x_adv, into `rows`, and what was reached there."""
    logits, losses, rows.grad = search.gradient(rows.x_adv, lambda logits: loss(logits, rows.y, rows.target))
    margins = margin(logits, rows.y)
    return Reached(rows.x_adv, margins, search.near(margins, logits)), losses


def keep_best(rows: APGDRows, loss: Tensor) -> None:
    """Remember the points whose loss is the largest so far."""
    better = loss > rows.best_loss
    rows.best_loss = torch.where(better, loss, rows.best_loss)
    # Only the rows concerned are copied: that is several times faster than a `where` over all.
    index = better.nonzero().squeeze(1)
    rows.best.index_copy_(0, index, rows.x_adv[index])
    rows.best_grad.index_copy_(0, index, rows.grad[index])


def go_back(rows: APGDRows, which: Tensor) -> None:
    """Return to the best point; the momentum still comes from the point before."""
    index = which.nonzero().squeeze(1)
    if len(index):
        # A new tensor: the points reached last are still to be looked at.
        rows.x_adv = rows.x_adv.index_copy(0, index, rows.best[index])
        rows.grad = rows.grad.index_copy(0, index, rows.best_grad[index])


def _checkpoints(steps: int) -> Tensor:
    """For each age of a search, the steps since the last check where a check is due, else 0; [steps + 1]."""
    windows = torch.zeros(steps + 1, dtype=torch.int64)
    window, shortest, shrink = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    age = window
    while age <= steps:
        windows[age] = window
        window = max(window - shrink, shortest)
        age += window
    return windows


def _on_the_sphere(x: Tensor, threat: Threat, generators: Sequence[torch.Generator]) -> Tensor:
    if threat.norm == "linf":
        direction = 2 * uniform(x, generators) - 1
        direction = direction / direction.abs().amax(dim=(1, 2, 3), keepdim=True)
    else:
        direction = F.normalize(gaussian(x, generators).flatten(1), dim=1).view(x.shape)
    return (x + threat.eps * direction).clamp(0, 1).contiguous(memory_format=torch.channels_last)


def _project(x_adv: Tensor, rows: APGDRows, threat: Threat) -> Tensor:
    if threat.norm == "linf":
        return x_adv.clamp_(rows.low, rows.high)
    # Radially and then by clamping, as the authors do: not the nearest feasible point, but cheap and feasible.
    delta = x_adv.sub_(rows.x)
    length = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
    return delta.mul_(threat.eps / length.clamp_min(threat.eps)).add_(rows.x).clamp_(0, 1)
