from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from pyautoattack import square
from pyautoattack.square import SquareAttack

from robustill.acceleration.folding import folded_copy
from robustill.acceleration.windowed import WindowedNetwork
from robustill.attacks import canvas as canvas_module
from robustill.attacks.canvas import PlainCanvas, WindowedCanvas
from robustill.attacks.search import Search
from robustill.attacks.square import SharedDraws, Square, _bump, _tiles, patch_side
from robustill.models import build
from robustill.threat import Threat


def authors(norm):
    attack = SquareAttack(None, norm=norm, eps=0.1, resc_schedule=False, device="cpu")
    attack.init_hyperparam(torch.zeros(1, 3, 32, 32))
    return attack


@pytest.mark.parametrize(("norm", "odd"), [("Linf", False), ("L2", True)])
def test_patch_sides_match_the_authors(norm, odd):
    theirs = authors(norm)
    for query in (0, 10, 11, 50, 51, 200, 201, 501, 1001, 2001, 4001, 6001, 8001):
        side = max(round((theirs.p_selection(query) * 32 * 32) ** 0.5), 3 if odd else 1)
        side = min(side + 1 if odd and side % 2 == 0 else side, 32)
        assert patch_side(query, 32, 32, odd=odd) == side


@pytest.mark.parametrize(("ours", "theirs"), [("l2", "L2"), ("l1", "L1")])
@pytest.mark.parametrize("side", [1, 3, 6, 7, 29])
def test_bumps_match_the_authors(ours, theirs, side, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.zeros(1))
    torch.testing.assert_close(_bump(side, ours), authors(theirs).eta(side))


@pytest.mark.parametrize(
    ("height", "width", "tops", "lefts"),
    [
        (17, 22, [1, 4, 7, 10, 13], [1, 4, 7, 10, 13, 16, 19]),
        (15, 11, [0, 3, 6, 9, 12], [0, 3, 6]),
        (3, 4, [0, 1, 2], [0, 1, 2, 3]),
    ],
)
def test_tiles_lie_inside_the_image(height, width, tops, lefts):
    side = max(height // 5, 1)
    assert _tiles(height, width) == [(top, left, side) for top in tops for left in lefts]


def robust_model(x):
    """No patch can turn it, so every query is made."""
    brightness = x.sum(dim=(1, 2, 3))
    return torch.stack([brightness + 1000, brightness * 0 + x[:, 0, 3, 5]], dim=1)


@pytest.mark.parametrize(
    "threat", [Threat(norm="linf", eps=0.1), Threat(norm="l2", eps=1), Threat(norm="l1", eps=5)], ids=str
)
def test_queries_are_feasible_and_the_best_never_worsens(threat):
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

    draws = SharedDraws.draw(80, 3, torch.Generator().manual_seed(0))
    result = Square(search, queries=80, draws=draws, signs=signs, canvas=canvas).run(x, y, torch.arange(4))
    assert len(seen) == 81
    assert not result.broken.any()
    margins = []
    for images in seen:
        assert threat.contains(images, x, tolerance=1e-4).all()
        logits = robust_model(images)
        margins.append(logits[:, 1] - logits[:, 0])
    torch.testing.assert_close(result.margin, torch.stack(margins).amax(0))
    logits = robust_model(canvases[0].images)
    torch.testing.assert_close(result.margin, logits[:, 1] - logits[:, 0])
    assert (result.margin > margins[0]).all(), "eighty patches should improve on the stripes"


def bright_where_it_counts(x):
    """A margin that depends on every pixel, and that no small change of the image turns."""
    weight = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(5))
    return torch.stack([torch.full((len(x),), 3.0), (weight * (3 * x).sin()).mean(dim=(1, 2, 3))], dim=1)


@pytest.mark.parametrize(
    "threat", [Threat(norm="linf", eps=0.1), Threat(norm="l2", eps=1.5), Threat(norm="l1", eps=8.0)], ids=str
)
@pytest.mark.parametrize(("height", "width", "tiles"), [(15, 15, 5 * 5), (17, 22, 5 * 7)])
def test_images_from_the_same_draws_match_the_authors(threat, height, width, tiles, monkeypatch):
    queries, (count, channels) = 120, (8, 3)
    x = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))
    y, noise = torch.zeros(count, dtype=torch.int64), torch.Generator().manual_seed(1)
    draws = SharedDraws.draw(queries, channels, noise)
    own = torch.rand(count, (tiles + queries) * channels, generator=noise).sub_(0.5).sign_()
    search = Search(bright_where_it_counts, threat)
    canvases = []

    def canvas(images):
        canvases.append(PlainCanvas(search, images))
        return canvases[0]

    attack = Square(search, queries=queries, draws=draws, signs=lambda image, number: own[:, :number], canvas=canvas)
    result = attack.run(x, y, torch.arange(count))

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    theirs = SquareAttack(
        bright_where_it_counts, norm=norm, eps=threat.eps, n_queries=queries, resc_schedule=False, device="cpu"
    )
    theirs.init_hyperparam(x)
    if threat.norm == "linf":
        places = iter(draws.positions[:, :2].flatten())
        choices = iter([own[:, : channels * width].view(count, channels, 1, width), *draws.colours[:, :, None, None]])
    else:
        places = iter(draws.positions.flatten())
        choices = iter(own.view(count, -1, channels, 1, 1).unbind(dim=1))
    transposed = iter([*draws.transposed_tiles[:tiles], *draws.transposed])
    monkeypatch.setattr(theirs, "random_int", lambda low, high: (next(places) * high).long())
    monkeypatch.setattr(theirs, "random_choice", lambda shape: next(choices))
    # Where their projection puts a pixel back it leaves a rounding error, which fills an empty window of l1 once it is
    # divided by the window's norm.
    monkeypatch.setattr(
        square, "L1_projection", lambda x, delta, eps: Threat(norm="l1", eps=eps).project(x + delta, x) - (x + delta)
    )
    with monkeypatch.context() as patched:
        patched.setattr(torch, "rand", lambda shape: next(transposed).float())
        _, images = theirs.attack_single_run(x, y)
    assert not result.broken.any()
    torch.testing.assert_close(canvases[0].images, images, rtol=0, atol=1e-4)
    logits = bright_where_it_counts(images)
    torch.testing.assert_close(result.margin, logits[:, 1] - logits[:, 0], rtol=0, atol=1e-5)


def wrong_in_the_dark(x):
    """Wrong on dark images, and nearly so on bright ones."""
    value = torch.where(x.mean(dim=(1, 2, 3)) < 0.7, 1.0, -1e-4)
    return torch.stack([torch.full((len(x),), 100.0), 100 + value], dim=1)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0), ("l1", 1.0)])
def test_a_successful_start_needs_no_query(norm, eps):
    x, y = torch.tensor([0.5, 0.9, 0.5])[:, None, None, None].expand(3, 3, 12, 12), torch.zeros(3, dtype=torch.int64)
    search = Search(wrong_in_the_dark, Threat(norm=norm, eps=eps))
    attack = Square(
        search,
        queries=5,
        draws=SharedDraws.draw(5, 3, torch.Generator().manual_seed(0)),
        signs=lambda image, count: torch.ones(len(image), count),
        canvas=lambda images: PlainCanvas(search, images),
    )
    result = attack.run(x, y, torch.arange(3))
    assert result.broken.tolist() == [True, False, True]
    torch.testing.assert_close(result.margin, torch.tensor([1.0, -1e-4, 1.0]), rtol=0, atol=1e-5)
    # Each start, put to the model itself once more, and five queries around the second image.
    assert search.passes == 3 + 3 + 5
    assert search.threat.contains(result.x_adv, x).all()
    assert torch.equal(result.x_adv[1], x[1])
    assert (result.x_adv[::2] != x[::2]).any(dim=(1, 2, 3)).all()


class RecordingSquare(Square):
    """Records which queries are made ahead."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.spans, self.tried = [], defaultdict(set)

    def _query_ahead(self, state, first, last, result):
        self.spans.append((first, last))
        super()._query_ahead(state, first, last, result)

    def _patches(self, state, images, queries, place, side):
        for image, query in zip(state.index[images].tolist(), queries.tolist(), strict=True):
            self.tried[image].add(query)
        return super()._patches(state, images, queries, place, side)


def test_queries_made_ahead_lead_to_the_same_images(monkeypatch):
    # Patches of every size are tried in windows, and ahead of their turn.
    monkeypatch.setattr(canvas_module, "_MAX_COST_SHARE", 2.0)
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    model = build("resnet8", num_classes=10, seed=0).eval().requires_grad_(False)
    folded = folded_copy(model, x)
    y, image, threat = model(x).argmax(1), torch.arange(6), Threat(norm="linf", eps=0.09)
    draws = SharedDraws.draw(220, 3, torch.Generator().manual_seed(0))
    own = torch.rand(6, 96, generator=torch.Generator().manual_seed(1)).sub_(0.5).sign_()
    results = []
    for windowed in (False, True):
        search = Search(model, threat, folded=folded)
        network = WindowedNetwork(folded, x[:1]) if windowed else None

        def canvas(images, search=search, network=network):
            return WindowedCanvas(search, network, images) if network else PlainCanvas(search, images)

        attack = RecordingSquare(search, queries=220, draws=draws, signs=lambda image, count: own[image], canvas=canvas)
        results.append((attack.run(x, y, image), search.passes))
    for first, last in attack.spans:
        assert len({patch_side(query, 32, 32, odd=False) for query in range(first, last)}) == 1
    assert attack.spans[-1][1] == 220
    # Of the images that stay, every query is made once at least.
    wanted = {query for span in attack.spans for query in range(*span)}
    assert all(wanted == attack.tried[int(i)] for i in (~results[1][0].broken).nonzero())
    (plain, passes), (ahead, passes_ahead) = results
    assert 0 < plain.broken.sum() < 6
    assert torch.equal(plain.broken, ahead.broken)
    assert passes == passes_ahead
    torch.testing.assert_close(plain.margin, ahead.margin, rtol=0, atol=1e-5)
    torch.testing.assert_close(plain.x_adv, ahead.x_adv, rtol=0, atol=1e-6)


def test_shared_draws_depend_on_the_generator_alone():
    plans = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        plans.append(SharedDraws.draw(9, 3, torch.Generator().manual_seed(7)))
    for name in ("positions", "colours", "transposed", "transposed_tiles"):
        assert torch.equal(getattr(plans[0], name), getattr(plans[1], name)), name
