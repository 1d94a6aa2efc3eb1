"""Square: random search with patches that needs only logits, and so is not misled by masked gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from robustill.acceleration.receptive_field import Interval
from robustill.acceleration.window_plan import SquareWindows
from robustill.attacks.canvas import Canvas, WindowedCanvas
from robustill.attacks.pool import SearchResult
from robustill.attacks.search import Search
from robustill.losses import margin

# Share of the image that a patch covers at first, and the queries after which it is halved.
_FIRST_SHARE = 0.8
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# With a WindowedCanvas, several patches of an image are tried in one pass: at most so many, at most so many windows in
# a batch, and so many that about this share of the images accept one, because those after an accepted one are
# discarded.
# If the images alone fill more than a quarter of the batch, patches are tried one by one.
_MAX_AHEAD = 16
_MAX_WINDOWS = 128
_ACCEPTING_SHARE = 0.5
# The l1 ball is projected onto with a slightly smaller radius, so that rounding does not lead out of it.
_L1_RADIUS_FACTOR = 1 - 1e-6
# Numbers drawn for the tiles of the start; they are reused if there are more tiles.
_MAX_TILES = 100


@dataclass
class SharedDraws:
    """The random numbers that all images share: the positions of a query's patches depend on no image.

    Args:
        positions: rows above and columns left of the two patches, as shares of those possible, [queries, 4].
        colours: sign of each channel (l∞), [queries, C].
        transposed: whether the bump is transposed (l2, l1), bool [queries].
        transposed_tiles: the same for the tiles of the start, bool [tiles].
    """

    positions: Tensor
    colours: Tensor
    transposed: Tensor
    transposed_tiles: Tensor

    @classmethod
    def draw(cls, queries: int, channels: int, generator: torch.Generator) -> SharedDraws:
        """Draw the numbers for so many queries on images of so many channels."""
        return cls(
            positions=torch.rand(queries, 4, generator=generator),
            colours=torch.rand(queries, channels, generator=generator).sub_(0.5).sign_(),
            transposed=torch.rand(queries, generator=generator) > 0.5,
            transposed_tiles=torch.rand(_MAX_TILES, generator=generator) > 0.5,
        )


class Square:
    """Square attack, for l∞, l2 and l1.

    It starts from vertical stripes (l∞) or tiles of bumps (l2, l1), then tries one patch a query, and accepts it if
    the margin of the label over the best other class falls. Patches shrink with the number of queries.

    Args:
        search: makes the passes through the model.
        queries: number of patches.
        draws: the random numbers that all images share.
        signs: from images [M] and a count to random signs of each image, float [M, count].
        canvas: from the first images to a Canvas.

    Reference: Andriushchenko et al. 2020; for l1 Croce and Hein 2021.
    """

    colours: Tensor

    def __init__(
        self,
        search: Search,
        *,
        queries: int,
        draws: SharedDraws,
        signs: Callable[[Tensor, int], Tensor],
        canvas: Callable[[Tensor], Canvas],
    ) -> None:
        self.search = search
        self.threat = search.threat
        self.queries = queries
        self.draws = draws
        self.signs = signs
        self.canvas = canvas
        self.positions: list[list[float]] = draws.positions.tolist()

    def run(self, x: Tensor, y: Tensor, image: Tensor) -> SearchResult:
        """Search around every image.

        Args:
            x: clean images, [M,C,H,W].
            y: labels, [M].
            image: their indices, which `signs` is given, [M].
        """
        result = SearchResult.initial(x)
        state, logits = self._start(x, y, image)
        self._confirm(state, self.search.is_candidate(state.best, logits), result)
        query = 0
        while query < self.queries and len(state.index):
            side = self._side(query, x)
            last = query + 1
            few_images = 4 * len(state.index) <= _MAX_WINDOWS
            if few_images and isinstance(state.canvas, WindowedCanvas) and state.canvas.is_cheaper(side, ahead=True):
                while last < self.queries and self._side(last, x) == side:
                    last += 1
                self._query_ahead(state, query, last, result)
            else:
                self._query(state, query, result)
            query = last
        result.margin[state.index] = torch.maximum(result.margin[state.index], state.best.clamp(max=0))
        return result

    def _side(self, query: int, x: Tensor) -> int:
        return patch_side(query, x.shape[2], x.shape[3], odd=self.threat.norm != "linf")

    def _query(self, state: _SquareState, query: int, result: SearchResult) -> None:
        """Make one query to every image."""
        top, left, patch = self._propose(state, query)
        logits = state.canvas.try_patch(top, left, patch)
        margins = margin(logits, state.y)
        better = (margins > state.best) | (margins >= 0)
        if better.any():
            state.canvas.accept(better)
            state.best = torch.where(better, margins, state.best)
            # Only accepted points are confirmed by the model.
            self._confirm(state, self.search.is_candidate(margins, logits) & better, result)

    def _query_ahead(self, state: _SquareState, first: int, last: int, result: SearchResult) -> None:
        """Make the queries first to last − 1, all with patches of one size, to every image.

        Most patches are rejected, so the next few of an image are tried in one pass. Those after the first accepted
        one are discarded and tried again: every image gets the same patches in the same order as one by one.
        """
        canvas = state.canvas
        assert isinstance(canvas, WindowedCanvas)
        height, width = state.x.shape[2:]
        side = self._side(first, state.x)
        tops = [int(share[0] * (height - side)) for share in self.positions[first:last]]
        lefts = [int(share[1] * (width - side)) for share in self.positions[first:last]]
        positions = torch.tensor([tops, lefts], device=state.x.device)
        query = torch.full_like(state.index, first)
        while True:
            rows = (query < last).nonzero().squeeze(1)
            if not len(rows):
                return
            ahead = torch.arange(state.num_ahead(len(rows)), device=rows.device)
            queries = query[rows, None] + ahead
            valid = queries < last
            images, queries = rows.repeat_interleave(len(ahead)), queries.clamp_(max=last - 1).view(-1)
            position = positions[0][queries - first], positions[1][queries - first]
            patches = self._patches(state, images, queries, position, side)
            logits = canvas.try_patches(images, position, patches)
            margins = margin(logits, state.y[images])
            better = ((margins > state.best[images]) | (margins >= 0)).view_as(valid) & valid
            num_rejected = torch.where(better, ahead, len(ahead)).amin(dim=1)
            accepted = num_rejected < len(ahead)
            num_queries = torch.minimum(num_rejected + accepted, valid.sum(dim=1))
            query[rows] += num_queries
            total_queries, total_accepted = torch.stack([num_queries.sum(), accepted.sum()]).tolist()
            self.search.passes += total_queries
            state.acceptance += (total_accepted / total_queries - state.acceptance) / 8
            if total_accepted:
                last_queries = torch.arange(len(rows), device=rows.device) * len(ahead) + num_queries - 1
                index = last_queries[accepted]
                canvas.accept_patches(index)
                state.best[images[index]] = margins[index]
                candidates = torch.zeros_like(state.best, dtype=torch.bool)
                candidates[images[index]] = self.search.is_candidate(margins[index], logits[index])
                query = query[self._confirm(state, candidates, result)]

    def _patches(
        self, state: _SquareState, images: Tensor, queries: Tensor, position: tuple[Tensor, Tensor], side: int
    ) -> Tensor:
        """Return the patches of l∞ queries to some images, [R,C,side,side]."""
        windows = SquareWindows(state.x, images, position, side)
        moved = windows.read(state.canvas.images) + self.colours[queries]
        return moved.clamp_(windows.read(state.low), windows.read(state.high))

    def _start(self, x: Tensor, y: Tensor, image: Tensor) -> tuple[_SquareState, Tensor]:
        """Return the images at their start, and their logits."""
        channels, _, width = x.shape[1:]
        self.colours = (2 * self.threat.eps * self.draws.colours)[:, :, None, None].to(x.device)
        if self.threat.norm == "linf":
            stripes = self.signs(image, channels * width).view(-1, channels, 1, width).to(x)
            start, signs = (x + self.threat.eps * stripes).clamp(0, 1), x.new_zeros(len(x), 0, channels)
        else:
            tiles = _tiles(x.shape[2], width)
            drawn = self.signs(image, (len(tiles) + self.queries) * channels).view(len(x), -1, channels).to(x)
            start, signs = self._place_tiles(x, tiles, drawn), drawn[:, len(tiles) :]
        canvas = self.canvas(start.contiguous(memory_format=torch.channels_last))
        logits = canvas.logits()
        index = torch.arange(len(x), device=x.device)
        low, high = (x - self.threat.eps).clamp(min=0), (x + self.threat.eps).clamp(max=1)
        return _SquareState(index, x, y, low, high, signs, canvas, margin(logits, y)), logits

    def _place_tiles(self, x: Tensor, tiles: list[tuple[int, int, int]], signs: Tensor) -> Tensor:
        """Return the images with a bump on each tile, scaled into the threat."""
        delta = torch.zeros_like(x)
        for number, (top, left, size) in enumerate(tiles):
            bump = self._bump(size, bool(self.draws.transposed_tiles[number % _MAX_TILES])).to(x)
            delta[:, :, top : top + size, left : left + size] += bump * signs[:, number, :, None, None]
        return self._scale(delta, x)

    def _scale(self, delta: Tensor, x: Tensor) -> Tensor:
        """Return the feasible image in the direction of delta: on the l2 sphere and clamped, or projected for l1."""
        if self.threat.norm == "l1":
            return replace(self.threat, eps=self.threat.eps * _L1_RADIUS_FACTOR).project(x + delta, x)
        length = _norm(delta, "l2", (1, 2, 3))
        return (x + delta * (self.threat.eps / (length + 1e-12))).clamp(0, 1)

    def _propose(self, state: _SquareState, query: int) -> tuple[int, int, Tensor]:
        """Return the position of a query's patch, and the new pixels of the images there, [R,C,h,w]."""
        height, width = state.x.shape[2:]
        side = self._side(query, state.x)
        shares = self.positions[query]
        top, left = int(shares[0] * (height - side)), int(shares[1] * (width - side))
        if self.threat.norm == "linf":
            window = _window((top, left), side)
            moved = state.canvas.images[window] + self.colours[query]
            return top, left, moved.clamp_(state.low[window], state.high[window])
        other = int(shares[2] * (height - side)), int(shares[3] * (width - side))
        return 0, 0, self._move_mass(state, query, side, (top, left), other)

    def _move_mass(
        self, state: _SquareState, query: int, side: int, position: tuple[int, int], other: tuple[int, int]
    ) -> Tensor:
        """Put a bump at `position`, with the norm still free and that of the window at `other`, which is cleared."""
        norm, channels = self.threat.norm, state.x.shape[1]
        delta = state.canvas.images - state.x
        here, there = _window(position, side), _window(other, side)
        bump = self._bump(side, bool(self.draws.transposed[query])).to(delta)
        old = delta[here]
        new = bump * state.signs[:, query, :, None, None] + old / (1e-12 + _norm(old, norm, (2, 3)))
        power = 2 if norm == "l2" else 1
        used = _power_sum(delta, power, (1, 2, 3))
        windows = _power_sum(old, power, (2, 3)) + _power_sum(delta[there], power, (2, 3))
        rows = Interval(position[0], side).intersection(Interval(other[0], side))
        columns = Interval(position[1], side).intersection(Interval(other[1], side))
        if rows and columns:
            windows -= _power_sum(delta[:, :, rows.relative_to(0), columns.relative_to(0)], power, (2, 3))
        windows.clamp_min_(0)
        if norm == "l2":
            free = ((self.threat.eps**2 - used).clamp_min(0) / channels + windows).sqrt()
        else:
            free = ((self.threat.eps - used).clamp_min(0) / channels + windows) * channels
        delta[there] = 0
        delta[here] = new / (1e-12 + _norm(new, norm, (2, 3))) * free
        return self._scale(delta, state.x)

    def _bump(self, side: int, transposed: bool) -> Tensor:
        bump: Tensor = _bump(side, self.threat.norm)
        return bump.t() if transposed else bump

    def _confirm(self, state: _SquareState, candidates: Tensor, result: SearchResult) -> Tensor:
        """Drop the images whose points the model itself misclassifies, and return those that stay, bool [R]."""
        stay = torch.ones_like(candidates)
        rows = candidates.nonzero().squeeze(1)
        if not len(rows):
            return stay
        points = state.canvas.images[rows]
        success, margins = self.search.confirm(points, state.x[rows], state.y[rows])
        if success.any():
            index = state.index[rows[success]]
            result.broken[index] = True
            result.x_adv[index] = points[success]
            result.margin[index] = margins[success]
            stay[rows[success]] = False
            state.select(stay)
        return stay


@dataclass
class _SquareState:
    """The images that are not broken yet; R of them.

    Args:
        index: their indices in the batch.
        x: clean images.
        y: labels.
        low: lower bound of the pixels by l∞ and the box.
        high: upper bound.
        signs: random signs of each image, for its bumps.
        canvas: the best images so far.
        best: their margins.
        acceptance: moving average of the share of patches that are accepted.
    """

    index: Tensor
    x: Tensor
    y: Tensor
    low: Tensor
    high: Tensor
    signs: Tensor
    canvas: Canvas
    best: Tensor
    acceptance: float = 0.05

    def num_ahead(self, images: int) -> int:
        """Return how many patches of each image to try in one pass; only the time depends on it."""
        return max(1, min(_MAX_AHEAD, _MAX_WINDOWS // images, round(_ACCEPTING_SHARE / max(self.acceptance, 1e-9))))

    def select(self, mask: Tensor) -> None:
        """Drop all images but those of a mask."""
        self.canvas.select(mask)
        self.index, self.x, self.y = self.index[mask], self.x[mask], self.y[mask]
        self.low, self.high = (
            bound[mask].contiguous(memory_format=torch.channels_last) for bound in (self.low, self.high)
        )
        self.signs, self.best = self.signs[mask], self.best[mask]


def patch_side(query: int, height: int, width: int, *, odd: bool) -> int:
    """Return the side of the patch at a query: from 89 % of the image's down to one pixel, or three where odd."""
    share = _FIRST_SHARE / 2 ** sum(query > last for last in _HALVINGS)
    side = max(round(math.sqrt(share * height * width)), 3 if odd else 1)
    return min(side + (odd and side % 2 == 0), height, width)


def _window(position: tuple[int, int], side: int) -> tuple[slice, slice, slice, slice]:
    """Return the index of a square window of images [R,C,H,W], given its first row and column."""
    top, left = position
    return slice(None), slice(None), slice(top, top + side), slice(left, left + side)


def _tiles(height: int, width: int) -> list[tuple[int, int, int]]:
    """Return top, left and side of the start's tiles, five in a column, that lie inside the image."""
    side = max(height // 5, 1)
    first = max((height - 5 * side) // 2, 0)
    tops, lefts = (range(first, length - side + 1, side) for length in (height, width))
    return [(top, left, side) for top in tops for left in lefts]


@lru_cache(maxsize=64)
def _bump(side: int, norm: str) -> Tensor:
    """Return two opposite hills, one above the other, of norm 1, [side, side]."""
    hills = torch.cat([_hill(side // 2, side, norm), -_hill(side - side // 2, side, norm)])
    return hills / _norm(hills, norm, (0, 1))


def _hill(height: int, width: int, norm: str) -> Tensor:
    """Return rings around the centre whose height falls outwards as Σ_{n ≥ ring} (n + 1)^−power, of norm 1."""
    rows = (torch.arange(height) - height // 2).abs()[:, None]
    columns = (torch.arange(width) - width // 2).abs()[None]
    rings = torch.arange(max(height // 2, width // 2) + 1)
    tail = (rings + 1.0).pow(-2 if norm == "l2" else -4).flip(0).cumsum(0).flip(0)
    hill = tail[torch.maximum(rows, columns)]
    return hill / _norm(hill, norm, (0, 1))


def _power_sum(values: Tensor, power: int, dims: Sequence[int]) -> Tensor:
    """Return the sum of |v|^power."""
    return (values.square() if power == 2 else values.abs()).sum(dim=list(dims), keepdim=True)


def _norm(values: Tensor, norm: str, dims: Sequence[int]) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(values, ord=2 if norm == "l2" else 1, dim=list(dims), keepdim=True)
    return length
