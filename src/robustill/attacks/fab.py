"""FAB: walks along the decision boundary towards the clean image, and so looks for the nearest success."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustill.attacks.apgd import Draws, Targets
from robustill.attacks.pool import Reached, Rows, column
from robustill.attacks.search import Search
from robustill.core.randomness import gaussian, uniform
from robustill.losses import margin
from robustill.threat import Norm, Threat

_ROUNDS = 40


def step_to_hyperplane(points: Tensor, normal: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """The shortest step d with ⟨normal, d⟩ = −gap and 0 ≤ points + d ≤ 1; the longest towards it where none reaches it.

    With a = |normal| and room the distance to the bound on the way, a step of size t reaches Σ a·min(t·g, room), where
    g = 1 for l∞ and g = a for l2: concave and piecewise linear in t, so Newton's method from below ends at the exact
    root after a few rounds. l1 moves the pixels of the largest a to their bounds, one after the other.

    Args:
        points: in [0,1], [R,D].
        normal: [R,D].
        gap: value of the affine function at the points, [R].
        norm: in which the step is shortest.

    Returns:
        d, [R,D].

    Example:
        >>> step_to_hyperplane(torch.tensor([[0.5, 0.9]]), torch.tensor([[1.0, 1.0]]), torch.tensor([-0.5]), "linf")
        tensor([[0.4000, 0.1000]])

    Reference: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack".
    """
    # Where the gap is positive the value has to fall, so pixels of positive weight go down.
    direction = normal.sign().mul_(torch.where(gap >= 0, -1.0, 1.0)[:, None])
    room = torch.addcmul(points.new_full((), 0.5), points - 0.5, direction, value=-1)
    weight, distance = normal.abs(), gap.abs()[:, None]
    size = _greedy(weight, room, distance) if norm == "l1" else _newton(weight, room, distance, norm)
    # A pixel without weight has no direction, and stays.
    return size.mul_(direction)


def _newton(weight: Tensor, room: Tensor, distance: Tensor, norm: Norm) -> Tensor:
    gain = weight.square() if norm == "l2" else weight
    t = distance / gain.sum(dim=1, keepdim=True).clamp_min(1e-30)
    for _ in range(_ROUNDS):
        wanted = weight * t if norm == "l2" else t
        moved = torch.minimum(room, wanted)
        missing = distance - (weight * moved).sum(dim=1, keepdim=True)
        unsettled = missing > 1e-6 * distance
        if not unsettled.any():
            break
        # Once every pixel is at its bound, no step reaches further.
        free = (room - wanted).sign_().clamp_(min=0)
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


# At most this share of a step starts from the clean image.
_TOWARDS_CLEAN = 0.1
_OVERSHOOT = 1.05
# An adversarial point is drawn back to this share of its perturbation.
_BACKWARD = 0.9


@dataclass
class FABRows(Rows):
    """Walks under way; R searches.

    Args:
        x: clean images.
        y: labels.
        target: the class whose boundary is followed; −1 for the nearest of all.
        x_adv: where the walk stands.
        gap: logit of the target over that of the label there, where the last step has already computed it; else NaN.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    x_adv: Tensor
    gap: Tensor


class FAB:
    """Fast adaptive boundary attack, for l∞, l2 and l1.

    A step linearises the boundary, steps from the walk's point and from the clean image to it, mixes both, and draws
    points that are adversarial back towards the clean image. A search ends when an adversarial point inside the threat
    is found: nearer ones are of no use to it.

    Args:
        search: passes through the model.
        steps: linearisations.
        draws: the generators of the random starts; the first restart begins at the clean image.
        targets: the classes aimed at; None follows the nearest boundary, at the price of K gradients a step.

    Reference: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack".
    """

    def __init__(self, search: Search, *, steps: int, draws: Draws, targets: Targets | None = None) -> None:
        self.search = search
        self.threat = search.threat
        self.length = steps
        self.draws = draws
        self.targets = targets

    def start(self, image: Tensor, variant: Tensor, x: Tensor, y: Tensor) -> FABRows:
        """See `pool.Attack`."""
        unknown = torch.full(y.shape, torch.nan, device=x.device)
        if self.targets is not None:
            target, x_adv = self.targets(image, variant), x
        else:
            target, x_adv = torch.full_like(y, -1), self._restarted(image, variant, x)
        return FABRows(image=image, age=torch.zeros_like(image), x=x, y=y, target=target, x_adv=x_adv, gap=unknown)

    def advance(self, rows: FABRows) -> Reached:
        """See `pool.Attack`."""
        gap, normal = self._boundary(rows)
        points = _mix(rows, gap, normal, self.threat)
        logits = self.search.logits(points)
        margins = margin(logits, rows.y)
        inside = _length(_flat(points) - _flat(rows.x), self.threat)[:, 0] <= self.threat.eps
        adversarial = margins > 0
        rows.x_adv = torch.lerp(rows.x, points, column(torch.where(adversarial, _BACKWARD, 1.0)))
        if self.targets is not None:
            rows.gap = torch.where(adversarial, torch.nan, _gap(logits, rows))
        candidates = self.search.near(margins, logits) & inside
        return Reached(points, torch.where(inside, margins, -torch.inf), candidates)

    def _boundary(self, rows: FABRows) -> tuple[Tensor, Tensor]:
        """Value [R] and gradient [R,C,H,W] of the affine function whose zeros are the linearised boundary."""
        if self.targets is None:
            return self._nearest_boundary(rows)
        _, gap, normal = self.search.gradient(rows.x_adv, lambda logits: _gap(logits, rows))
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

    def _restarted(self, image: Tensor, variant: Tensor, x: Tensor) -> Tensor:
        if not (variant > 0).any():
            return x
        generators = self.draws(image, variant)
        noise = 2 * uniform(x, generators) - 1 if self.threat.norm == "linf" else gaussian(x, generators)
        length = self.threat.distance(noise, torch.zeros_like(noise))
        started = (x + column(0.5 * self.threat.eps / length) * noise).clamp(0, 1)
        return torch.where(column(variant > 0), started, x)


def _gap(logits: Tensor, rows: FABRows) -> Tensor:
    return (logits.gather(1, rows.target[:, None]) - logits.gather(1, rows.y[:, None])).squeeze(1)


def _mix(rows: FABRows, gap: Tensor, normal: Tensor, threat: Threat) -> Tensor:
    """The next point: a step from the walk's point and one from the clean image, each a little too long."""
    x_adv, x, weight = _flat(rows.x_adv), _flat(rows.x), _flat(normal)
    clean_gap = gap + (weight * (x - x_adv)).sum(dim=1)
    from_point = step_to_hyperplane(x_adv, weight, gap, threat.norm)
    from_clean = step_to_hyperplane(x, weight, clean_gap, threat.norm)
    length = _length(from_point, threat).clamp_min(1e-8)
    clean_length = _length(from_clean, threat)
    share = (length / (length + clean_length)).clamp(max=_TOWARDS_CLEAN)
    walked = from_point.mul_(_OVERSHOOT).add_(x_adv)
    restarted = from_clean.mul_(_OVERSHOOT).add_(x)
    return _images(torch.lerp(walked, restarted, share).clamp_(0, 1), rows.x)


def _length(steps: Tensor, threat: Threat) -> Tensor:
    """[R,D] -> [R,1]; the largest entry by `amax`, which is several times faster than the norm."""
    if threat.norm == "linf":
        return torch.maximum(steps.amax(dim=1, keepdim=True), -steps.amin(dim=1, keepdim=True))
    length: Tensor = torch.linalg.vector_norm(steps, ord=2 if threat.norm == "l2" else 1, dim=1, keepdim=True)
    return length


def _flat(images: Tensor) -> Tensor:
    """[R,C,H,W] -> [R,D], channels last: a view where the images already lie that way."""
    return images.permute(0, 2, 3, 1).reshape(len(images), -1)


def _images(flat: Tensor, like: Tensor) -> Tensor:
    _, channels, height, width = like.shape
    return flat.view(-1, height, width, channels).permute(0, 3, 1, 2)
