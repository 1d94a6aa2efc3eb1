"""Auto-PGD: projected gradient ascent with momentum that halves its own step, for l∞ and l2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from robustill.attacks.pool import Rows, StepResult, column
from robustill.attacks.search import Search
from robustill.core.randomness import gaussian, uniform
from robustill.losses import ce, dlr, margin
from robustill.threat import Threat

TargetLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits [B,K], labels [B] and targets [B] to one value a sample; untargeted losses ignore the targets."""

SearchGenerators = Callable[[Tensor, Tensor], Sequence[torch.Generator]]
"""From images [R] and variants [R] to one generator a search."""

Targets = Callable[[Tensor, Tensor], Tensor]
"""From images [R] and variants [R] to the target class of each search, [R]."""

_MOMENTUM = 0.75
# The step is halved when the loss rose in at most this share of the steps since the last check.
_RISING = 0.75


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Compute the targeted difference of logits ratio (DLR).

    (z_t − z_y) / (z_(1) − (z_(3) + z_(4)) / 2), where z_(1) ≥ z_(2) ≥ … are the sorted logits.

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
    """The state of R ascents.

    Args:
        x: clean images.
        y: labels.
        target: the target class; the label for untargeted losses.
        x_adv: the present point.
        previous: the point before it; written to.
        low: lower bound of the pixels by l∞ and the box.
        high: upper bound.
        grad: gradient at x_adv.
        best: the point of the largest loss so far.
        best_grad: its gradient.
        best_loss: its loss.
        loss: at the last step.
        num_rises: steps since the last check that raised the loss.
        checked_loss: best_loss at the last check.
        halved: whether the last check halved the step.
        step_size: in units of [0,1].
    """

    x: Tensor
    y: Tensor
    target: Tensor
    x_adv: Tensor
    previous: Tensor
    low: Tensor
    high: Tensor
    grad: Tensor
    best: Tensor
    best_grad: Tensor
    best_loss: Tensor
    loss: Tensor
    num_rises: Tensor
    checked_loss: Tensor
    halved: Tensor
    step_size: Tensor


class APGD:
    """Auto-PGD, for l∞ and l2.

    A step: z = project(x_i + s·ascent(∇)), x_{i+1} = project(x_i + 0.75·(z − x_i) + 0.25·(x_i − x_{i−1})). At
    checkpoints, 22 % of the steps and then ever fewer apart, the step size s is halved and the ascent returns to its
    best point if the loss rose too seldom, or if it did not improve since a check that did not change s.

    Args:
        search: makes the passes through the model.
        loss: a key of LOSSES.
        steps: gradient steps; a search evaluates its start as well.
        generators: for the random starts.
        targets: the target classes; None for untargeted losses.

    Reference: Croce and Hein 2020.
    """

    def __init__(
        self, search: Search, loss: str, *, steps: int, generators: SearchGenerators, targets: Targets | None = None
    ) -> None:
        assert search.threat.norm in ("linf", "l2")
        self.search = search
        self.threat = search.threat
        self.loss = LOSSES[loss]
        self.generators = generators
        self.targets = targets
        self.length = steps + 1
        self.windows = _checkpoints(steps)

    def start(self, image: Tensor, variant: Tensor, x: Tensor, y: Tensor) -> APGDRows:
        """See `pool.Attack`."""
        self.windows = self.windows.to(x.device)
        target = y if self.targets is None else self.targets(image, variant)
        x_adv = _random_point_on_sphere(x, self.threat, self.generators(image, variant))
        # The bounds of other norms are those of the images, [0,1].
        radius = self.threat.eps if self.threat.norm == "linf" else 1.0
        return new_rows(image, x, y, target, x_adv, step_size=2 * self.threat.eps, radius=radius)

    def advance(self, rows: APGDRows) -> StepResult:
        """See `pool.Attack`; the first call evaluates the start."""
        self._move(rows)
        step, loss = evaluate(self.search, self.loss, rows)
        # The first step counts as a rise if its loss is above zero, as in the authors' code.
        rows.num_rises += (loss > rows.loss) & (rows.age > 0)
        rows.loss = torch.where(rows.age > 0, loss, torch.zeros_like(loss))
        update_best(rows, loss)
        self._check_step_size(rows)
        return step

    def _move(self, rows: APGDRows) -> None:
        ascent = self.threat.ascent(rows.grad).mul_(column(rows.step_size))
        moved = _project(ascent.add_(rows.x_adv), rows, self.threat)
        momentum = column(torch.where(rows.age > 1, _MOMENTUM, 1.0))
        moved.sub_(rows.x_adv).mul_(momentum).add_(rows.x_adv)
        # The previous point is not needed again, so its memory is reused.
        moved.add_(torch.sub(rows.x_adv, rows.previous, out=rows.previous).mul_(1 - momentum))
        moved = _project(moved, rows, self.threat)
        at_start = column(rows.age == 0)
        if at_start.any():
            moved = torch.where(at_start, rows.x_adv, moved)
        rows.previous, rows.x_adv = rows.x_adv, moved

    def _check_step_size(self, rows: APGDRows) -> None:
        window = self.windows[rows.age]
        due = window > 0
        if not due.any():
            return
        oscillates = rows.num_rises <= window * _RISING
        stalls = ~rows.halved & (rows.checked_loss >= rows.best_loss)
        halve = due & (oscillates | stalls)
        rows.step_size = torch.where(halve, rows.step_size / 2, rows.step_size)
        return_to_best(rows, halve)
        rows.halved = torch.where(due, halve, rows.halved)
        rows.checked_loss = torch.where(due, rows.best_loss, rows.checked_loss)
        rows.num_rises = torch.where(due, 0, rows.num_rises)


def new_rows(
    image: Tensor, x: Tensor, y: Tensor, target: Tensor, x_adv: Tensor, *, step_size: float, radius: float
) -> APGDRows:
    """Return ascents at their start; `radius` bounds each pixel."""
    zeros = torch.zeros(len(x), device=x.device)
    return APGDRows(
        image=image,
        age=torch.zeros_like(image),
        x=x,
        y=y,
        target=target,
        x_adv=x_adv,
        previous=x_adv.clone(),
        low=(x - radius).clamp_(min=0),
        high=(x + radius).clamp_(max=1),
        grad=torch.zeros_like(x),
        best=x_adv.clone(),
        best_grad=torch.zeros_like(x),
        best_loss=torch.full_like(zeros, -torch.inf),
        loss=zeros,
        num_rises=torch.zeros_like(image),
        checked_loss=zeros,
        halved=torch.ones_like(image, dtype=torch.bool),
        step_size=torch.full_like(zeros, step_size),
    )


def evaluate(search: Search, loss: TargetLoss, rows: APGDRows) -> tuple[StepResult, Tensor]:
    """Evaluate x_adv: write its gradient into `rows`, and return the step's result and the loss."""
    logits, losses, rows.grad = search.gradient(rows.x_adv, lambda logits: loss(logits, rows.y, rows.target))
    margins = margin(logits, rows.y)
    return StepResult(rows.x_adv, margins, search.is_candidate(margins, logits)), losses


def update_best(rows: APGDRows, loss: Tensor) -> None:
    """Save the points whose loss is the largest so far."""
    better = loss > rows.best_loss
    rows.best_loss = torch.where(better, loss, rows.best_loss)
    # Copying only these rows is several times faster than a `where` over all.
    index = better.nonzero().squeeze(1)
    rows.best.index_copy_(0, index, rows.x_adv[index])
    rows.best_grad.index_copy_(0, index, rows.grad[index])


def return_to_best(rows: APGDRows, mask: Tensor) -> None:
    """Move the ascents of a mask to their best point; the momentum remains that of the previous point."""
    index = mask.nonzero().squeeze(1)
    if len(index):
        # A new tensor, because the caller has yet to confirm the points of this step.
        rows.x_adv = rows.x_adv.index_copy(0, index, rows.best[index])
        rows.grad = rows.grad.index_copy(0, index, rows.best_grad[index])


def _checkpoints(steps: int) -> Tensor:
    """Return for each age of a search the steps since the last check if a check is due, else 0; [steps + 1]."""
    windows = torch.zeros(steps + 1, dtype=torch.int64)
    window, shortest, shrink = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    age = window
    while age <= steps:
        windows[age] = window
        window = max(window - shrink, shortest)
        age += window
    return windows


def _random_point_on_sphere(x: Tensor, threat: Threat, generators: Sequence[torch.Generator]) -> Tensor:
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
    # A ball of radius 0 holds x alone, whose delta has no length to divide by.
    return delta.mul_(threat.eps / length.clamp_min(max(threat.eps, 1e-30))).add_(rows.x).clamp_(0, 1)
