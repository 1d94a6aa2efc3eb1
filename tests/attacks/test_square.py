from __future__ import annotations

import pytest
import torch
from pyautoattack.square import SquareAttack

from robustill.attacks.canvas import PlainCanvas
from robustill.attacks.search import Search
from robustill.attacks.square import Plan, Square, _bump, patch_side
from robustill.threat import Threat


def authors(norm):
    attack = SquareAttack(None, norm=norm, eps=0.1, resc_schedule=False, device="cpu")
    attack.init_hyperparam(torch.zeros(1, 3, 32, 32))
    return attack


@pytest.mark.parametrize(("norm", "odd"), [("Linf", False), ("L2", True)])
def test_patches_shrink_when_the_authors_shrink_them(norm, odd):
    theirs = authors(norm)
    for query in (0, 10, 11, 50, 51, 200, 201, 501, 1001, 2001, 4001, 6001, 8001):
        side = max(round((theirs.p_selection(query) * 32 * 32) ** 0.5), 3 if odd else 1)
        side = min(side + 1 if odd and side % 2 == 0 else side, 32)
        assert patch_side(query, 32, 32, odd=odd) == side


@pytest.mark.parametrize(("ours", "theirs"), [("l2", "L2"), ("l1", "L1")])
@pytest.mark.parametrize("side", [1, 3, 6, 7, 29])
def test_bumps_are_the_authors(ours, theirs, side, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.zeros(1))
    torch.testing.assert_close(_bump(side, ours), authors(theirs).eta(side))


def robust_model(x):
    """No patch can turn it, so every query is made."""
    brightness = x.sum(dim=(1, 2, 3))
    return torch.stack([brightness + 1000, brightness * 0 + x[:, 0, 3, 5]], dim=1)


@pytest.mark.parametrize(
    "threat", [Threat(norm="linf", eps=0.1), Threat(norm="l2", eps=1), Threat(norm="l1", eps=5)], ids=str
)
def test_every_query_is_feasible_and_none_is_worse_than_the_best(threat):
    x = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(4, dtype=torch.int64)
    seen: list[torch.Tensor] = []

    def recorded(images):
        seen.append(images.clone())
        return robust_model(images)

    search = Search(recorded, threat)
    canvases = []

    def canvas(images):
        canvases.append(PlainCanvas(search, images))
        return canvases[0]

    def signs(image, count):
        own = [torch.Generator().manual_seed(int(i)) for i in image]
        return torch.stack([torch.rand(count, generator=g).sub_(0.5).sign_() for g in own])

    plan = Plan.draw(80, 3, torch.Generator().manual_seed(0))
    found = Square(search, queries=80, plan=plan, signs=signs, canvas=canvas).run(x, y, torch.arange(4))
    assert len(seen) == 81
    assert not found.broken.any()
    margins = []
    for images in seen:
        assert threat.contains(images, x, tolerance=1e-4).all()
        logits = robust_model(images)
        margins.append(logits[:, 1] - logits[:, 0])
    torch.testing.assert_close(found.margin, torch.stack(margins).amax(0))
    logits = robust_model(canvases[0].images)
    torch.testing.assert_close(found.margin, logits[:, 1] - logits[:, 0])
    assert (found.margin > margins[0]).all(), "eighty patches should improve on the stripes"
