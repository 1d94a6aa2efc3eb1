"""FAB's walk against the authors'."""

from __future__ import annotations

import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT

from robustill.attacks.fab import FAB, _length
from robustill.attacks.search import Search
from robustill.core.randomness import gaussian, generator, uniform
from robustill.threat import Threat

STEPS = 12
THREATS = [Threat(norm="linf", eps=0.1), Threat(norm="l2", eps=0.7), Threat(norm="l1", eps=2.0)]


def generators(image, variant):
    return [generator(0, "fab", int(i), int(v)) for i, v in zip(image, variant, strict=True)]


@pytest.mark.parametrize("walk", ["nearest", "nearest from a random start", "targeted"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_from_the_same_start_it_finds_the_authors_points(judged, threat, walk, monkeypatch):
    right = judged.model(judged.x).argmax(1) == judged.y
    x, y = judged.x[right], judged.y[right]
    image = torch.arange(len(x))
    random = walk == "nearest from a random start"
    second = judged.model(x).detach().sort(dim=1).indices[:, -2]
    targets = (lambda image, variant: second[image]) if walk == "targeted" else None
    attack = FAB(Search(judged.model, threat), steps=STEPS, generators=generators, targets=targets)
    rows = attack.start(image, image * 0 + random, x, y)
    shortest = torch.full((len(x),), torch.inf)
    for _ in range(STEPS):
        reached = attack.advance(rows)
        length = threat.distance(reached.points, x)
        wrong, inside = judged.model(reached.points).argmax(1) != y, length <= threat.eps
        shortest = torch.where(wrong, length.minimum(shortest), shortest)
        assert torch.equal(reached.margins == -torch.inf, ~inside), "points beyond the threat are no successes"
        assert torch.equal(reached.margins > 0, inside & wrong)
        assert (reached.candidates >= (inside & wrong)).all()
        assert not (reached.candidates & ~inside).any()
        rows.age += 1

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    theirs = FABAttack_PT(judged.model, norm=norm, n_iter=STEPS, eps=threat.eps, device="cpu")
    theirs.target_class = 2
    flat, normal = (draw(x, generators(image, image * 0 + 1)) for draw in (uniform, gaussian))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "rand", lambda *_: flat)
        patched.setattr(torch, "randn", lambda *_: normal)
        found = theirs.attack_single_run(x, y, use_rand_start=random, is_targeted=walk == "targeted")
    judged.model.zero_grad()
    assert shortest.isfinite().all()
    # A point that lies on the boundary itself may fall to either side.
    assert torch.isclose(shortest, threat.distance(found, x), rtol=1e-3, atol=1e-5).float().mean() >= 0.9


def test_only_later_restarts_begin_at_random():
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
def test_without_a_slope_it_stays_and_is_finite(threat, targeted):
    zero, x = torch.tensor([0]), torch.full((1, 3, 4, 4), 0.5)
    search = Search(lambda z: torch.tensor([[1.0, 0.0]]) + 0 * z.sum(), threat)
    attack = FAB(
        search, steps=1, generators=generators, targets=(lambda image, variant: image + 1) if targeted else None
    )
    assert torch.equal(attack.advance(attack.start(zero, zero, x, zero)).points, x)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_a_linear_boundary_is_met_by_the_shortest_step_and_a_twentieth_more(threat):
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
def test_lengths(threat):
    steps = torch.tensor([[0.1, -0.4, 0.2], [-0.3, -0.1, -0.2], [0.3, 0.1, 0.2]])
    expected = threat.distance(steps[:, :, None, None], torch.zeros(3, 3, 1, 1))
    torch.testing.assert_close(_length(steps, threat)[:, 0], expected)
