"""Square: random search with patches, from the logits alone; it sees through masked gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from robustill.acceleration.receptive_field import Interval
from robustill.acceleration.window_plan import Squares
from robustill.attacks.canvas import Canvas, WindowedCanvas
from robustill.attacks.pool import Found
from robustill.attacks.search import Search
from robustill.losses import margin

# Share of the image that a patch covers at first, and the queries after which it is halved.
_FIRST_SHARE = 0.8
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Where windows are recomputed, several patches of one image are tried at once: at most so many, so many windows in a
# batch, and so many that this share of the images accept one, as what comes behind it is thrown away. Where the images
# fill more than a quarter of the batch alone, nothing is tried ahead.
_MOST_AHEAD = 16
_WINDOWS = 128
_ACCEPTING = 0.5
# Projected onto a slightly smaller l1 ball, the rounding of the projection stays inside.
_L1_ROOM = 1 - 1e-6


@dataclass
class Plan:
    """All that Square draws, ahead: where each query's patches lie depends on no image.

    Args:
        places: share of the free rows and columns left of the two patches, [queries, 4].
        colours: sign of each channel, for all images (l∞), [queries, C].
        turned: whether the bump is transposed (l2, l1), bool [queries].
        turned_first: the same for the tiles of the start, bool [tiles].
    """

    places: Tensor
    colours: Tensor
    turned: Tensor
    turned_first: Tensor

    @classmethod
    def draw(cls, queries: int, channels: int, generator: torch.Generator) -> Plan:
        """A plan for so many queries on images of so many channels."""
        return cls(
            places=torch.rand(queries, 4, generator=generator),
            colours=torch.rand(queries, channels, generator=generator).sub_(0.5).sign_(),
            turned=torch.rand(queries, generator=generator) > 0.5,
            turned_first=torch.rand(_MOST_TILES, generator=generator) > 0.5,
        )


_MOST_TILES = 100


class Square:
    """Square attack, for l∞, l2 and l1.

    It starts from vertical stripes (l∞) or tiles of bumps (l2, l1), then tries one patch a query, and keeps it where
    the margin between the label and the best other class falls. Patches shrink with the number of queries.

    Args:
        search: passes through the model.
        queries: patches to try.
        plan: the draws that all images share.
        signs: images [M] and how many to draw to signs of their own, float [M, count].
        canvas: from the first images to a Canvas.

    Reference: Andriushchenko et al. 2020; for l1 Croce and Hein 2021.
    """

    colours: Tensor

    def __init__(
        self,
        search: Search,
        *,
        queries: int,
        plan: Plan,
        signs: Callable[[Tensor, int], Tensor],
        canvas: Callable[[Tensor], Canvas],
    ) -> None:
        self.search = search
        self.threat = search.threat
        self.queries = queries
        self.plan = plan
        self.signs = signs
        self.canvas = canvas
        self.places: list[list[float]] = plan.places.tolist()

    def run(self, x: Tensor, y: Tensor, image: Tensor) -> Found:
        """Search around every image.

        Args:
            x: clean images, [M,C,H,W].
            y: labels, [M].
            image: which they are, for their own draws, [M].
        """
        lowest = torch.full_like(y, -torch.inf, dtype=torch.float32)
        found = Found(torch.zeros_like(y, dtype=torch.bool), x.clone(), lowest)
        walk, logits = self._begin(x, y, image)
        self._confirm(walk, self.search.near(walk.best, logits), found)
        query = 0
        while query < self.queries and len(walk.index):
            side = self._side(query, x)
            last = query + 1
            few = 4 * len(walk.index) <= _WINDOWS
            if few and isinstance(walk.canvas, WindowedCanvas) and walk.canvas.pays(side, ahead=True):
                while last < self.queries and self._side(last, x) == side:
                    last += 1
                self._try_ahead(walk, query, last, found)
            else:
                self._try_one(walk, query, found)
            query = last
        found.margin[walk.index] = torch.maximum(found.margin[walk.index], walk.best.clamp(max=0))
        return found

    def _side(self, query: int, x: Tensor) -> int:
        return patch_side(query, x.shape[2], x.shape[3], odd=self.threat.norm != "linf")

    def _try_one(self, walk: _Walk, query: int, found: Found) -> None:
        """One query to every image."""
        top, left, patch = self._propose(walk, query)
        logits = walk.canvas.try_patch(top, left, patch)
        margins = margin(logits, walk.y)
        better = (margins > walk.best) | (margins >= 0)
        if better.any():
            walk.canvas.accept(better)
            walk.best = torch.where(better, margins, walk.best)
            # A point whose margin rounds to the wrong side was not accepted, and is not worth a query to the model.
            self._confirm(walk, self.search.near(margins, logits) & better, found)

    def _try_ahead(self, walk: _Walk, first: int, last: int, found: Found) -> None:
        """Queries first to last − 1 to every image, all with patches of one size.

        Most patches are refused, so the next few of an image are tried at once. Those behind the first accepted one
        are thrown away and tried again: every image sees the same patches in the same order as one by one.
        """
        canvas = walk.canvas
        assert isinstance(canvas, WindowedCanvas)
        height, width = walk.x.shape[2:]
        side = self._side(first, walk.x)
        tops = [int(place[0] * (height - side)) for place in self.places[first:last]]
        lefts = [int(place[1] * (width - side)) for place in self.places[first:last]]
        places = torch.tensor([tops, lefts], device=walk.x.device)
        query = torch.full_like(walk.index, first)
        while len(rows := (query < last).nonzero().squeeze(1)):
            ahead = torch.arange(walk.ahead(len(rows)), device=rows.device)
            queries = query[rows, None] + ahead
            valid = queries < last
            images, queries = rows.repeat_interleave(len(ahead)), queries.clamp_(max=last - 1).view(-1)
            place = places[0][queries - first], places[1][queries - first]
            logits = canvas.try_patches(images, place, self._patches(walk, images, queries, place, side))
            margins = margin(logits, walk.y[images])
            better = ((margins > walk.best[images]) | (margins >= 0)).view_as(valid) & valid
            tried = torch.where(better, ahead, len(ahead)).amin(dim=1)
            accepted = tried < len(ahead)
            tried = torch.minimum(tried + accepted, valid.sum(dim=1))
            query[rows] += tried
            num_tried, num_accepted = torch.stack([tried.sum(), accepted.sum()]).tolist()
            self.search.passes += num_tried
            walk.acceptance += (num_accepted / num_tried - walk.acceptance) / 8
            if num_accepted:
                which = (torch.arange(len(rows), device=rows.device) * len(ahead) + tried - 1)[accepted]
                canvas.accept_patches(which)
                walk.best[images[which]] = margins[which]
                candidates = torch.zeros_like(walk.best, dtype=torch.bool)
                candidates[images[which]] = self.search.near(margins[which], logits[which])
                query = query[self._confirm(walk, candidates, found)]

    def _patches(self, walk: _Walk, images: Tensor, queries: Tensor, place: tuple[Tensor, Tensor], side: int) -> Tensor:
        """The pixels that l∞ queries put in windows of some images, [R,C,side,side]."""
        windows = Squares(walk.x, images, place, side)
        moved = windows.read(walk.canvas.images) + self.colours[queries]
        return moved.clamp_(windows.read(walk.low), windows.read(walk.high))

    def _begin(self, x: Tensor, y: Tensor, image: Tensor) -> tuple[_Walk, Tensor]:
        """The images at their start, and their logits there."""
        channels, _, width = x.shape[1:]
        self.colours = (2 * self.threat.eps * self.plan.colours)[:, :, None, None].to(x.device)
        if self.threat.norm == "linf":
            stripes = self.signs(image, channels * width).view(-1, channels, 1, width).to(x)
            start, own = (x + self.threat.eps * stripes).clamp(0, 1), x.new_zeros(len(x), 0, channels)
        else:
            tiles = _tiles(x.shape[2], width)
            drawn = self.signs(image, (len(tiles) + self.queries) * channels).view(len(x), -1, channels).to(x)
            start, own = self._tiled(x, tiles, drawn), drawn[:, len(tiles) :]
        canvas = self.canvas(start.contiguous(memory_format=torch.channels_last))
        logits = canvas.logits()
        index = torch.arange(len(x), device=x.device)
        low, high = (x - self.threat.eps).clamp(min=0), (x + self.threat.eps).clamp(max=1)
        return _Walk(index, x, y, low, high, own, canvas, margin(logits, y)), logits

    def _tiled(self, x: Tensor, tiles: list[tuple[int, int, int]], signs: Tensor) -> Tensor:
        delta = torch.zeros_like(x)
        for number, (top, left, size) in enumerate(tiles):
            bump = self._bump(size, bool(self.plan.turned_first[number % _MOST_TILES])).to(x)
            delta[:, :, top : top + size, left : left + size] += bump * signs[:, number, :, None, None]
        return self._scaled(delta, x)

    def _scaled(self, delta: Tensor, x: Tensor) -> Tensor:
        """The feasible image in the direction of delta: on the l2 sphere, then clamped; projected for l1."""
        if self.threat.norm == "l1":
            return replace(self.threat, eps=self.threat.eps * _L1_ROOM).project(x + delta, x)
        length = _size(delta, "l2", (1, 2, 3))
        return (x + delta * (self.threat.eps / (length + 1e-12))).clamp(0, 1)

    def _propose(self, walk: _Walk, query: int) -> tuple[int, int, Tensor]:
        """Where a patch goes, and the images' pixels there, [R,C,h,w]."""
        height, width = walk.x.shape[2:]
        side = self._side(query, walk.x)
        place = self.places[query]
        top, left = int(place[0] * (height - side)), int(place[1] * (width - side))
        if self.threat.norm == "linf":
            window = (slice(None), slice(None), slice(top, top + side), slice(left, left + side))
            moved = walk.canvas.images[window] + self.colours[query]
            return top, left, moved.clamp_(walk.low[window], walk.high[window])
        other = int(place[2] * (height - side)), int(place[3] * (width - side))
        return 0, 0, self._bumped(walk, query, side, (top, left), other)

    def _bumped(self, walk: _Walk, query: int, side: int, place: tuple[int, int], other: tuple[int, int]) -> Tensor:
        """A bump goes to `place`, with the norm that is still free and that of the window `other`, which is emptied."""
        norm, channels = self.threat.norm, walk.x.shape[1]
        delta = walk.canvas.images - walk.x
        here = (slice(None), slice(None), slice(place[0], place[0] + side), slice(place[1], place[1] + side))
        there = (slice(None), slice(None), slice(other[0], other[0] + side), slice(other[1], other[1] + side))
        bump = self._bump(side, bool(self.plan.turned[query])).to(delta)
        old = delta[here]
        new = bump * walk.signs[:, query, :, None, None] + old / (1e-12 + _size(old, norm, (2, 3)))
        power = 2 if norm == "l2" else 1
        used, windows = _mass(delta, power, (1, 2, 3)), _mass(old, power, (2, 3)) + _mass(delta[there], power, (2, 3))
        rows = Interval(place[0], side).common(Interval(other[0], side))
        columns = Interval(place[1], side).common(Interval(other[1], side))
        if rows and columns:
            windows -= _mass(delta[:, :, rows.within(0), columns.within(0)], power, (2, 3))
        windows.clamp_min_(0)
        if norm == "l2":
            free = ((self.threat.eps**2 - used).clamp_min(0) / channels + windows).sqrt()
        else:
            free = ((self.threat.eps - used).clamp_min(0) / channels + windows) * channels
        delta[there] = 0
        delta[here] = new / (1e-12 + _size(new, norm, (2, 3))) * free
        return self._scaled(delta, walk.x)

    def _bump(self, side: int, turned: bool) -> Tensor:
        bump: Tensor = _bump(side, self.threat.norm)
        return bump.t() if turned else bump

    def _confirm(self, walk: _Walk, candidates: Tensor, found: Found) -> Tensor:
        """Put points to the real model, and drop the images that it misclassifies; those that stay, bool [R]."""
        stay = torch.ones_like(candidates)
        rows = candidates.nonzero().squeeze(1)
        if not len(rows):
            return stay
        points = walk.canvas.images[rows]
        success, margins = self.search.confirm(points, walk.x[rows], walk.y[rows])
        if success.any():
            where = walk.index[rows[success]]
            found.broken[where] = True
            found.x_adv[where] = points[success]
            found.margin[where] = margins[success]
            stay[rows[success]] = False
            walk.keep(stay)
        return stay


@dataclass
class _Walk:
    """The images still searched around; R of them."""

    index: Tensor
    x: Tensor
    y: Tensor
    low: Tensor
    high: Tensor
    signs: Tensor
    canvas: Canvas
    best: Tensor
    acceptance: float = 0.05
    """Share of the patches that were accepted of late."""

    def ahead(self, images: int) -> int:
        """Patches of each image to try at once: the results depend on it in nothing but time."""
        return max(1, min(_MOST_AHEAD, _WINDOWS // images, round(_ACCEPTING / max(self.acceptance, 1e-9))))

    def keep(self, which: Tensor) -> None:
        self.canvas.keep(which)
        self.index, self.x, self.y = self.index[which], self.x[which], self.y[which]
        self.low, self.high = (
            bound[which].contiguous(memory_format=torch.channels_last) for bound in (self.low, self.high)
        )
        self.signs, self.best = self.signs[which], self.best[which]


def patch_side(query: int, height: int, width: int, *, odd: bool) -> int:
    """Side of the patch at a query, in pixels: from 89 % of the image's down to one, or down to three where odd."""
    share = _FIRST_SHARE / 2 ** sum(query > last for last in _HALVINGS)
    side = max(round(math.sqrt(share * height * width)), 3 if odd else 1)
    return min(side + (odd and side % 2 == 0), height, width)


def _tiles(height: int, width: int) -> list[tuple[int, int, int]]:
    """Top, left and side of the start's tiles, five in a column, that lie inside the image."""
    side = max(height // 5, 1)
    first = max((height - 5 * side) // 2, 0)
    tops, lefts = (range(first, length - side + 1, side) for length in (height, width))
    return [(top, left, side) for top in tops for left in lefts]


@lru_cache(maxsize=64)
def _bump(side: int, norm: str) -> Tensor:
    """Two opposite hills, one above the other, of norm 1, [side, side]."""
    hills = torch.cat([_hill(side // 2, side, norm), -_hill(side - side // 2, side, norm)])
    return hills / _size(hills, norm, (0, 1))


def _hill(height: int, width: int, norm: str) -> Tensor:
    """Rings around the middle whose height falls outwards: Σ_{n ≥ ring} (n + 1)^−power, of norm 1."""
    rows = (torch.arange(height) - height // 2).abs()[:, None]
    columns = (torch.arange(width) - width // 2).abs()[None]
    rings = torch.arange(max(height // 2, width // 2) + 1)
    tail = (rings + 1.0).pow(-2 if norm == "l2" else -4).flip(0).cumsum(0).flip(0)
    hill = tail[torch.maximum(rows, columns)]
    return hill / _size(hill, norm, (0, 1))


def _mass(values: Tensor, power: int, dims: Sequence[int]) -> Tensor:
    """Sum of |v|^power."""
    return (values.square() if power == 2 else values.abs()).sum(dim=list(dims), keepdim=True)


def _size(values: Tensor, norm: str, dims: Sequence[int]) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(values, ord=2 if norm == "l2" else 1, dim=list(dims), keepdim=True)
    return size
