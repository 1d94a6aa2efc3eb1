"""The step to a hyperplane inside the box [0,1], shortest in l∞, l2 or l1."""

from __future__ import annotations

import torch
from torch import Tensor

from robustill.threat import Norm

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
