from __future__ import annotations

import numpy as np
import pytest
import torch
from pyautoattack.fab_projections import projection_l1, projection_l2, projection_linf
from scipy.optimize import linprog

from robustill.attacks.fab import step_to_hyperplane

THEIRS = {"linf": projection_linf, "l2": projection_l2, "l1": projection_l1}


def problems(rows=40, pixels=60):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(rows, pixels, generator=generator)
    points[:, :5], points[:, 5:10] = 0, 1
    normal = torch.randn(rows, pixels, generator=generator)
    normal[:, ::7] = 0
    # From gaps that a tiny step closes to those that no step inside the box does.
    gap = torch.randn(rows, generator=generator) * torch.logspace(-3, 2, rows)
    return points, normal, gap


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_step_is_the_authors(norm):
    points, normal, gap = problems()
    theirs = THEIRS[norm](points, normal, (normal * points).sum(1) - gap)
    ours = step_to_hyperplane(points, normal, gap, norm)
    torch.testing.assert_close(ours, theirs, atol=3e-4, rtol=0)
    room = torch.where(normal * gap[:, None] > 0, points, 1 - points)
    within_reach = (normal.abs() * room).sum(1) > gap.abs()
    assert 30 < within_reach.sum() < 40
    torch.testing.assert_close((normal * ours).sum(1)[within_reach], -gap[within_reach], atol=1e-7, rtol=1e-4)
    # Rounding apart, theirs and ours are of one length; the l1 step is not unique.
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    torch.testing.assert_close(
        torch.linalg.vector_norm(ours, order, dim=1), torch.linalg.vector_norm(theirs, order, dim=1), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_no_shorter_step_exists(norm):
    points, normal, gap = problems(rows=12, pixels=15)
    ours = step_to_hyperplane(points, normal, gap, norm).double()
    for x, w, c, step in zip(points.double(), normal.double(), gap.double(), ours, strict=True):
        d = len(x)
        # d = up − down; the length is the sum (l1) or a common bound (linf).
        bounds = [(0, 1 - v) for v in x.tolist()] + [(0, v) for v in x.tolist()] + [(0, None)]
        together = np.hstack([np.eye(d), np.eye(d), -np.ones((d, 1))])
        cost = np.r_[np.zeros(2 * d), 1] if norm == "linf" else np.r_[np.ones(2 * d), 0]
        best = linprog(
            cost,
            A_ub=together if norm == "linf" else None,
            b_ub=np.zeros(d) if norm == "linf" else None,
            A_eq=np.r_[w.numpy(), -w.numpy(), 0][None],
            b_eq=[-float(c)],
            bounds=bounds,
        )
        reached = float((w * step).sum() + c)
        if best.success:
            assert abs(reached) < 1e-4
            length = step.abs().max() if norm == "linf" else step.abs().sum()
            assert float(length) == pytest.approx(best.fun, abs=1e-4)
        else:
            assert reached * float(c) > 0, "out of reach: it goes as far as it can"


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_box_is_never_left(norm):
    points, normal, gap = problems()
    moved = points + step_to_hyperplane(points, normal, gap, norm)
    assert moved.min() >= -1e-6
    assert moved.max() <= 1 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_gradient_of_zero_moves_nothing(norm):
    step = step_to_hyperplane(torch.full((1, 4), 0.5), torch.zeros(1, 4), torch.tensor([-1.0]), norm)
    assert torch.equal(step.abs(), torch.zeros(1, 4))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_point_on_the_plane_stays_and_one_may_end_on_it_exactly(norm):
    points, normal = torch.full((2, 3), 0.5), torch.tensor([1.0, 0.0, 0.0])
    step = step_to_hyperplane(points, normal.expand(2, 3), torch.tensor([0.0, -0.5]), norm)
    assert torch.equal(step, torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]))


def test_of_equal_weights_in_l1_the_first_pixels_move():
    normal = (torch.arange(100) % 3 + 1.0)[None]
    step = step_to_hyperplane(torch.full((1, 100), 0.5), normal, torch.tensor([-4.5]), "l1")
    assert step.nonzero()[:, 1].tolist() == [2, 5, 8]
