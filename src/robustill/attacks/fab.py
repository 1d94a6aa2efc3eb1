"""FAB: minimise the perturbation by steps along the decision boundary towards the clean image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustill.attacks.apgd import SearchGenerators, Targets
from robustill.attacks.pool import Rows, StepResult, column
from robustill.attacks.search import Search
from robustill.core.randomness import gaussian, uniform
from robustill.losses import margin
from robustill.threat import Norm, Threat

_MAX_ITERATIONS = 40


def step_to_hyperplane(points: Tensor, normal: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """Return the shortest step d to the hyperplane ⟨normal, d⟩ = −gap with 0 ≤ points + d ≤ 1.

    Where no step reaches the hyperplane, it is the one that comes nearest.

    With a = |normal| and room the distance of a pixel to its bound, a step of size t covers Σ a·min(t·g, room) of the
    gap, where g = 1 for l∞ and g = a for l2. This is concave and piecewise linear in t, so Newton's method from below
    ends at the exact root after a few iterations. For l1 the pixels of the largest a move to their bounds in turn.

    Args:
        points: in [0,1], [R,D].
        normal: [R,D].
        gap: value of the affine function at the points, [R].
        norm: in which the length of the step is measured.

    Returns:
        d, [R,D].

    Example:
        >>> step_to_hyperplane(torch.tensor([[0.5, 0.9]]), torch.tensor([[1.0, 1.0]]), torch.tensor([-0.5]), "linf")
        tensor([[0.4000, 0.1000]])

    Reference: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack".
    """
    # Where the gap is positive the value has to fall, so pixels of positive weight decrease.
    direction = normal.sign().mul_(torch.where(gap >= 0, -1.0, 1.0)[:, None])
    room = torch.addcmul(points.new_full((), 0.5), points - 0.5, direction, value=-1)
    weight, distance = normal.abs(), gap.abs()[:, None]
    size = _greedy(weight, room, distance) if norm == "l1" else _newton(weight, room, distance, norm)
    # A pixel without weight has the direction 0, and does not move.
    return size.mul_(direction)


def _newton(weight: Tensor, room: Tensor, distance: Tensor, norm: Norm) -> Tensor:
    gain = weight.square() if norm == "l2" else weight
    t = distance / gain.sum(dim=1, keepdim=True).clamp_min(1e-30)
    for _ in range(_MAX_ITERATIONS):
        unbounded = weight * t if norm == "l2" else t
        moved = torch.minimum(room, unbounded)
        missing = distance - (weight * moved).sum(dim=1, keepdim=True)
        unsettled = missing > 1e-6 * distance
        if not unsettled.any():
            break
        # Once every pixel is at its bound, a larger step changes nothing.
        free = (room - unbounded).sign_().clamp_(min=0)
        slope = free.mul_(gain).sum(dim=1, keepdim=True)
        t = torch.where(unsettled & (slope > 0), t + missing / slope, t)
        if not (unsettled & (slope > 0)).any():
            break
    return moved


def _greedy(weight: Tensor, room: Tensor, distance: Tensor) -> Tensor:
    order = weight.argsort(dim=1, descending=True, stable=True)
    sorted_weight, sorted_room = weight.gather(1, order), room.gather(1, order)
    gained = (sorted_weight * sorted_room).cumsum(dim=1)
    gained_before = gained - sorted_weight * sorted_room
    share = (distance - gained_before) / sorted_weight.clamp_min(1e-30)
    return torch.empty_like(room).scatter_(1, order, share.clamp_min(0).minimum(sorted_room))


# Weight of the step from the clean image at most.
_MAX_CLEAN_SHARE = 0.1
_OVERSHOOT = 1.05
# The perturbation of an adversarial point is scaled by this factor.
_BACKWARD_STEP = 0.9


@dataclass
class FABRows(Rows):
    """The state of R searches.

    Args:
        x: clean images.
        y: labels.
        target: the class whose boundary is followed; −1 for the nearest of all.
        x_adv: the present point.
        gap: logit of the target minus that of the label at x_adv if the last step computed it, else NaN.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    x_adv: Tensor
    gap: Tensor


class FAB:
    """Fast adaptive boundary attack, for l∞, l2 and l1.

    A step linearises the decision boundary, moves to it from the present point and from the clean image, averages both,
    and moves points that are adversarial back towards the clean image. A search ends at the first adversarial point
    inside the threat; nearer ones are not needed.

    Args:
        search: makes the passes through the model.
        steps: number of linearisations.
        generators: for the random starts; the first restart starts at the clean image.
        targets: the target classes; None follows the nearest boundary, for which a step takes K gradients.

    Reference: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack".
    """

    def __init__(
        self, search: Search, *, steps: int, generators: SearchGenerators, targets: Targets | None = None
    ) -> None:
        self.search = search
        self.threat = search.threat
        self.length = steps
        self.generators = generators
        self.targets = targets

    def start(self, image: Tensor, variant: Tensor, x: Tensor, y: Tensor) -> FABRows:
        """See `pool.Attack`."""
        no_gap = torch.full(y.shape, torch.nan, device=x.device)
        if self.targets is not None:
            target, x_adv = self.targets(image, variant), x
        else:
            target, x_adv = torch.full_like(y, -1), self._random_start(image, variant, x)
        return FABRows(image=image, age=torch.zeros_like(image), x=x, y=y, target=target, x_adv=x_adv, gap=no_gap)

    def advance(self, rows: FABRows) -> StepResult:
        """See `pool.Attack`."""
        gap, normal = self._boundary(rows)
        points = _average_steps(rows, gap, normal, self.threat)
        logits = self.search.logits(points, watch=False)
        margins = margin(logits, rows.y)
        inside = _length(_flat(points) - _flat(rows.x), self.threat)[:, 0] <= self.threat.eps
        # Outside the threat a model need not be finite, but from a NaN the search does not come back.
        matters = inside | _flat(points).isnan().any(dim=1)
        self.search.watch(logits.masked_fill(~matters[:, None], 0.0))
        adversarial = margins > 0
        rows.x_adv = torch.lerp(rows.x, points, column(torch.where(adversarial, _BACKWARD_STEP, 1.0)))
        if self.targets is not None:
            rows.gap = torch.where(adversarial, torch.nan, _gap(logits, rows))
        candidates = self.search.is_candidate(margins, logits) & inside
        return StepResult(points, torch.where(inside, margins, -torch.inf), candidates)

    def _boundary(self, rows: FABRows) -> tuple[Tensor, Tensor]:
        """Return value [R] and gradient [R,C,H,W] of the affine function that is zero on the linearised boundary."""
        if self.targets is None:
            return self._nearest_boundary(rows)
        _, gap, normal = self.search.gradient(rows.x_adv, lambda logits: _gap(logits, rows), watch=False)
        return torch.where(rows.gap.isnan(), gap, rows.gap), normal

    def _nearest_boundary(self, rows: FABRows) -> tuple[Tensor, Tensor]:
        logits, grads = self.search.jacobian(rows.x_adv)
        own = rows.y[:, None]
        gaps = logits - logits.gather(1, own)
        normals = grads - grads[torch.arange(len(own)), rows.y][:, None]
        order = {"linf": 1, "l2": 2, "l1": torch.inf}[self.threat.norm]
        length = torch.linalg.vector_norm(normals.flatten(2), ord=order, dim=2)
        distance = (gaps.abs() / (length + 1e-12)).scatter(1, own, torch.inf)
        nearest = distance.argmin(dim=1, keepdim=True)
        return gaps.gather(1, nearest).squeeze(1), normals[torch.arange(len(own)), nearest.squeeze(1)]

    def _random_start(self, image: Tensor, variant: Tensor, x: Tensor) -> Tensor:
        if not (variant > 0).any():
            return x
        generators = self.generators(image, variant)
        noise = 2 * uniform(x, generators) - 1 if self.threat.norm == "linf" else gaussian(x, generators)
        length = self.threat.distance(noise, torch.zeros_like(noise))
        moved = (x + column(0.5 * self.threat.eps / length) * noise).clamp(0, 1)
        return torch.where(column(variant > 0), moved, x)


def _gap(logits: Tensor, rows: FABRows) -> Tensor:
    return (logits.gather(1, rows.target[:, None]) - logits.gather(1, rows.y[:, None])).squeeze(1)


def _average_steps(rows: FABRows, gap: Tensor, normal: Tensor, threat: Threat) -> Tensor:
    """Return the next point: the average of a step from x_adv and one from the clean image, both overshooting."""
    x_adv, x, weight = _flat(rows.x_adv), _flat(rows.x), _flat(normal)
    clean_gap = gap + (weight * (x - x_adv)).sum(dim=1)
    from_point = step_to_hyperplane(x_adv, weight, gap, threat.norm)
    from_clean = step_to_hyperplane(x, weight, clean_gap, threat.norm)
    length = _length(from_point, threat).clamp_min(1e-8)
    clean_length = _length(from_clean, threat)
    share = (length / (length + clean_length)).clamp(max=_MAX_CLEAN_SHARE)
    beyond_point = from_point.mul_(_OVERSHOOT).add_(x_adv)
    beyond_clean = from_clean.mul_(_OVERSHOOT).add_(x)
    return _images(torch.lerp(beyond_point, beyond_clean, share).clamp_(0, 1), rows.x)


def _length(steps: Tensor, threat: Threat) -> Tensor:
    """Return the length of each step, [R,D] -> [R,1]; for l∞ by `amax`, several times faster than `vector_norm`."""
    if threat.norm == "linf":
        return torch.maximum(steps.amax(dim=1, keepdim=True), -steps.amin(dim=1, keepdim=True))
    length: Tensor = torch.linalg.vector_norm(steps, ord=2 if threat.norm == "l2" else 1, dim=1, keepdim=True)
    return length


def _flat(images: Tensor) -> Tensor:
    """Flatten [R,C,H,W] to [R,D], channels last: a view if the images are channels last."""
    return images.permute(0, 2, 3, 1).reshape(len(images), -1)


def _images(flat: Tensor, like: Tensor) -> Tensor:
    _, channels, height, width = like.shape
    return flat.view(-1, height, width, channels).permute(0, 3, 1, 2)
