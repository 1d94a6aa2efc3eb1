"""FAB and its step to a hyperplane, compared with the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyautoattack.fab_projections import projection_l1, projection_l2, projection_linf
from pyautoattack.fab_pt import FABAttack_PT
from scipy.optimize import linprog

from robustill.attacks.fab import FAB, _length, step_to_hyperplane
from robustill.attacks.search import Search
from robustill.core.randomness import gaussian, generator, uniform
from robustill.threat import Threat

STEPS = 12
THREATS = [Threat(norm="linf", eps=0.1), Threat(norm="l2", eps=0.7), Threat(norm="l1", eps=2.0)]


def generators(image, variant):
    return [generator(0, "fab", int(i), int(v)) for i, v in zip(image, variant, strict=True)]


@pytest.mark.parametrize("walk", ["nearest", "nearest from a random start", "targeted"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_points_from_one_start_match_the_authors(trained, threat, walk, monkeypatch):
    right = trained.model(trained.x).argmax(1) == trained.y
    x, y = trained.x[right], trained.y[right]
    image = torch.arange(len(x))
    random = walk == "nearest from a random start"
    second = trained.model(x).detach().sort(dim=1).indices[:, -2]
    targets = (lambda image, variant: second[image]) if walk == "targeted" else None
    attack = FAB(Search(trained.model, threat), steps=STEPS, generators=generators, targets=targets)
    rows = attack.start(image, image * 0 + random, x, y)
    shortest = torch.full((len(x),), torch.inf)
    for _ in range(STEPS):
        reached = attack.advance(rows)
        length = threat.distance(reached.points, x)
        wrong, inside = trained.model(reached.points).argmax(1) != y, length <= threat.eps
        shortest = torch.where(wrong, length.minimum(shortest), shortest)
        assert torch.equal(reached.margins == -torch.inf, ~inside), "points beyond the threat are no successes"
        assert torch.equal(reached.margins > 0, inside & wrong)
        assert (reached.candidates >= (inside & wrong)).all()
        assert not (reached.candidates & ~inside).any()
        rows.age += 1

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    theirs = FABAttack_PT(trained.model, norm=norm, n_iter=STEPS, eps=threat.eps, device="cpu")
    theirs.target_class = 2
    flat, normal = (draw(x, generators(image, image * 0 + 1)) for draw in (uniform, gaussian))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "rand", lambda *_: flat)
        patched.setattr(torch, "randn", lambda *_: normal)
        found = theirs.attack_single_run(x, y, use_rand_start=random, is_targeted=walk == "targeted")
    trained.model.zero_grad()
    assert shortest.isfinite().all()
    # A point that lies on the boundary itself may fall to either side.
    assert torch.isclose(shortest, threat.distance(found, x), rtol=1e-3, atol=1e-5).float().mean() >= 0.9


def test_only_later_restarts_start_at_random():
    x, image = torch.full((3, 3, 4, 4), 0.5), torch.arange(3)
    attack = FAB(Search(lambda z: z.flatten(1), THREATS[0]), steps=1, generators=generators)
    rows = attack.start(image, torch.tensor([0, 1, 2]), x, image)
    lengths = THREATS[0].distance(rows.x_adv, x)
    torch.testing.assert_close(lengths, torch.tensor([0.0, 0.05, 0.05]))
    assert not rows.age.any()


@pytest.mark.parametrize(("threat", "nearest"), [*zip(THREATS, (1, 2, 3), strict=True)], ids=str)
def test_the_nearest_boundary_is_measured_by_the_dual_norm(threat, nearest):
    # The value of class k rises by ‖w_k‖ of the dual norm a unit: spread weights serve l∞, one large weight serves l1.
    weight = torch.zeros(4, 16)
    weight[1], weight[2, :4], weight[3, 0] = 0.3, 0.65, 1.25
    attack = FAB(
        Search(lambda z: z.flatten(1) @ weight.T + torch.tensor([99.0, 0, 0, 0]), threat),
        steps=1,
        generators=generators,
    )
    zero = torch.tensor([0])
    gap, normal = attack._boundary(attack.start(zero, zero, torch.zeros(1, 1, 4, 4), zero))
    assert gap.tolist() == [-99.0]
    assert torch.equal(normal.flatten(), weight[nearest])


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_points_without_a_gradient_do_not_move(threat, targeted):
    zero, x = torch.tensor([0]), torch.full((1, 3, 4, 4), 0.5)
    search = Search(lambda z: torch.tensor([[1.0, 0.0]]) + 0 * z.sum(), threat)
    attack = FAB(
        search, steps=1, generators=generators, targets=(lambda image, variant: image + 1) if targeted else None
    )
    assert torch.equal(attack.advance(attack.start(zero, zero, x, zero)).points, x)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_a_linear_boundary_is_overshot_by_five_percent(threat):
    weight = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    zero, x = torch.tensor([0]), torch.full((1, 3, 4, 5), 0.5)

    def model(z):
        value = (weight * (z - 0.5)).sum((1, 2, 3)) - 0.1
        return torch.stack([0 * value, value], dim=1)

    attack = FAB(Search(model, threat), steps=1, generators=generators, targets=lambda image, variant: image + 1)
    points = attack.advance(attack.start(zero, zero, x, zero)).points
    largest = weight.abs() == weight.abs().max()
    shortest = {
        "linf": weight.sign() / weight.abs().sum(),
        "l2": weight / weight.square().sum(),
        "l1": weight.sign() * largest / weight.abs().max(),
    }[threat.norm]
    torch.testing.assert_close(points - x, 1.05 * 0.1 * shortest[None], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_lengths_are_the_distances_of_the_threat(threat):
    steps = torch.tensor([[0.1, -0.4, 0.2], [-0.3, -0.1, -0.2], [0.3, 0.1, 0.2]])
    expected = threat.distance(steps[:, :, None, None], torch.zeros(3, 3, 1, 1))
    torch.testing.assert_close(_length(steps, threat)[:, 0], expected)


PROJECTIONS = {"linf": projection_linf, "l2": projection_l2, "l1": projection_l1}


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
def test_the_step_to_the_hyperplane_matches_the_authors(norm):
    points, normal, gap = problems()
    theirs = PROJECTIONS[norm](points, normal, (normal * points).sum(1) - gap)
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
def test_no_shorter_step_to_the_hyperplane_exists(norm):
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
def test_steps_stay_inside_the_box(norm):
    points, normal, gap = problems()
    moved = points + step_to_hyperplane(points, normal, gap, norm)
    assert moved.min() >= -1e-6
    assert moved.max() <= 1 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_normal_of_zero_gives_a_step_of_zero(norm):
    step = step_to_hyperplane(torch.full((1, 4), 0.5), torch.zeros(1, 4), torch.tensor([-1.0]), norm)
    assert torch.equal(step.abs(), torch.zeros(1, 4))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_points_end_exactly_on_the_hyperplane(norm):
    points, normal = torch.full((2, 3), 0.5), torch.tensor([1.0, 0.0, 0.0])
    step = step_to_hyperplane(points, normal.expand(2, 3), torch.tensor([0.0, -0.5]), norm)
    assert torch.equal(step, torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]))


def test_l1_breaks_ties_by_the_first_pixels():
    normal = (torch.arange(100) % 3 + 1.0)[None]
    step = step_to_hyperplane(torch.full((1, 100), 0.5), normal, torch.tensor([-4.5]), "l1")
    assert step.nonzero()[:, 1].tolist() == [2, 5, 8]
