"""Windows of remembered feature maps, for many patches of one size at places of their own, gathered in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from robustill.acceleration.receptive_field import Interval, Reach


@dataclass
class Reading:
    """What a node reads of one input around each patch: of the map remembered, with the part just computed anew put in.

    Args:
        in_map: which of the plan's `in_maps` is the window read.
        in_window: which of the plan's `in_windows` is the part computed anew.
        spans: the same as slices, for patches at one place.
    """

    in_map: int
    in_window: int
    spans: tuple[list[Span], list[Span]]


@dataclass
class Change:
    """Which part of its map a patch changes in a node.

    Args:
        in_map: which of the plan's `in_maps` it is.
        spans: the same as slices by the patch's first row, and by its first column, for patches at one place.
    """

    in_map: int
    spans: tuple[list[slice], list[slice]]


class Span(NamedTuple):
    """Rows, or columns, that a node reads of one input.

    Args:
        area: of the remembered map.
        into: where in the area the part computed anew goes, all of it.
    """

    area: slice
    into: slice


class Blocks:
    """Rectangles in grids of pixels, each of one size wherever the patch lies; grids lie one behind the other."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.columns: list[list[int]] = []
        self.grids: list[int] = []
        self.widths: list[int] = []
        self.lines: list[slice] = []
        self.steps: list[int] = []

    def add(self, rows: Sequence[Interval], columns: Sequence[Interval], grid: tuple[int, int]) -> int:
        """A rectangle by the patch's first row and first column, in grids of some height and width; its number."""
        self.rows.append([each.start * grid[1] for each in rows])
        self.columns.append([each.start for each in columns])
        self.grids.append(grid[0] * grid[1])
        self.widths.append(columns[0].length)
        self.lines.append(slice(len(self.steps), len(self.steps) + rows[0].length))
        self.steps += [row * grid[1] for row in range(rows[0].length)]
        return len(self.grids) - 1

    def ready(self, device: torch.device) -> None:
        """No rectangle is to come."""
        whole = partial(torch.tensor, dtype=torch.int64, device=device)
        counts = whole([each.stop - each.start for each in self.lines])
        # By the patch's place, and for each row of each rectangle, one behind the other.
        rows, columns, self.grid_table = (
            whole(table).repeat_interleave(counts, dim=0) for table in (self.rows, self.columns, self.grids)
        )
        self.row_table = rows.t() + whole(self.steps)
        self.column_table = columns.t().contiguous()

    def located(self, place: tuple[Tensor, Tensor], grid: Tensor) -> Tensor:
        """The first pixel of each row of each rectangle, [R, all rows]; `grid` tells in which of the grids, [R]."""
        first = grid[:, None] * self.grid_table
        first += self.row_table.index_select(0, place[0])
        first += self.column_table.index_select(0, place[1])
        return first

    def of(self, number: int, located: Tensor) -> Tensor:
        """The first pixel of each row of one rectangle, [R·h]."""
        return located[:, self.lines[number]].reshape(-1)


class Located(NamedTuple):
    """Where patches lie: see `Blocks.located`."""

    in_maps: Tensor
    in_windows: Tensor


class WindowPlan:
    """What patches of one size change in each feature map, and what each node reads, wherever they lie.

    Args:
        kinds: of the nodes, in their order: "input", a Reach, "pointwise" or "whole".
        sources: inputs of each node that a patch changes in a part only.
        sizes: height and width of each feature map.
        margins: zeros around the maps that are remembered.
        side: of the patches.
        device: of the maps.
    """

    def __init__(
        self,
        kinds: Mapping[fx.Node, Reach | str],
        sources: Mapping[fx.Node, Sequence[fx.Node]],
        sizes: Mapping[fx.Node, tuple[int, int]],
        margins: Mapping[fx.Node, int],
        side: int,
        device: torch.device,
    ) -> None:
        self.sizes, self.margins = sizes, margins
        self.changed = [_changed(kinds, sources, sizes, axis, side) for axis in (0, 1)]
        self.in_maps, self.in_windows = Blocks(), Blocks()
        self.readings: dict[fx.Node, dict[fx.Node, Reading | None]] = {}
        for node, kind in kinds.items():
            self.readings[node] = {source: self._reading(node, kind, source) for source in sources[node]}
        # No other map is looked at, so no other need be remembered.
        read = {source for each in self.readings.values() for source, reading in each.items() if reading is not None}
        self.changes = {node: self._change(node) for node in margins if node in read}
        self.in_maps.ready(device)
        self.in_windows.ready(device)

    def height(self, node: fx.Node) -> int:
        """Rows of a feature map that a patch can change."""
        return self.changed[0][node][0].length

    def width(self, node: fx.Node) -> int:
        """Columns of a feature map that a patch can change."""
        return self.changed[1][node][0].length

    def locate(self, images: Tensor, place: tuple[Tensor, Tensor]) -> Located:
        """Where patches on some images, given by index [R], at places of their own are found."""
        order = torch.arange(len(images), device=images.device)
        return Located(self.in_maps.located(place, images), self.in_windows.located(place, order))

    def _reading(self, node: fx.Node, kind: Reach | str, source: fx.Node) -> Reading | None:
        """None where exactly the changed part is read."""
        wanted = [self._wanted(axis, node, kind, source) for axis in (0, 1)]
        if all(wanted[axis] == self.changed[axis][source] for axis in (0, 1)):
            return None
        pairs = [list(zip(wanted[axis], self.changed[axis][source], strict=True)) for axis in (0, 1)]
        beyond = -self.margins[source]
        spans = [[Span(read.within(beyond), there.within(read.start)) for read, there in each] for each in pairs]
        inner = [[Interval(there.start - read.start, there.length) for read, there in each] for each in pairs]
        window = (wanted[0][0].length, wanted[1][0].length)
        return Reading(
            self._in_map(source, wanted), self.in_windows.add(inner[0], inner[1], window), (spans[0], spans[1])
        )

    def _wanted(self, axis: int, node: fx.Node, kind: Reach | str, source: fx.Node) -> list[Interval]:
        changed = self.changed[axis]
        if isinstance(kind, Reach):
            sizes = self.sizes[source][axis], self.sizes[node][axis]
            return [kind.needed(axis, each, *sizes) for each in changed[node]]
        if node in changed:
            return changed[node]
        return [Interval(0, self.sizes[source][axis])] * len(changed[source])

    def _change(self, node: fx.Node) -> Change:
        changed = [self.changed[axis][node] for axis in (0, 1)]
        rows, columns = ([each.within(-self.margins[node]) for each in intervals] for intervals in changed)
        return Change(self._in_map(node, changed), (rows, columns))

    def _in_map(self, node: fx.Node, intervals: Sequence[Sequence[Interval]]) -> int:
        margin, (height, width) = self.margins[node], self.sizes[node]
        rows, columns = ([Interval(each.start + margin, each.length) for each in axis] for axis in intervals)
        return self.in_maps.add(rows, columns, (height + 2 * margin, width + 2 * margin))


class RememberedMap:
    """One feature map of every image, its pixels in a row.

    Args:
        values: [M,C,H,W].
        margin: zeros put around it.
    """

    def __init__(self, values: Tensor, margin: int) -> None:
        self.maps = F.pad(values, (margin,) * 4).permute(0, 2, 3, 1).contiguous()

    def read(self, plan: WindowPlan, reading: Reading, where: Located, change: Tensor) -> Tensor:
        """What a node reads around each patch, [R,C,h,w]; `change` is the part computed anew."""
        width, channels = plan.in_maps.widths[reading.in_map], self.maps.shape[3]
        lines = plan.in_maps.of(reading.in_map, where.in_maps)
        window = _lines(self.maps, width).index_select(0, lines)
        lines = plan.in_windows.of(reading.in_window, where.in_windows)
        _put(window.view(-1, channels), lines, change)
        return window.view(len(change), -1, width, channels).permute(0, 3, 1, 2)

    def read_together(self, reading: Reading, top: int, left: int, change: Tensor) -> Tensor:
        """As `read`, for one patch on every image, all at one place: copies whole rows, which costs less."""
        rows, columns = reading.spans[0][top], reading.spans[1][left]
        whole = self.maps[:, rows.area, columns.area].clone()
        whole[:, rows.into, columns.into] = change.permute(0, 2, 3, 1)
        return whole.permute(0, 3, 1, 2)

    def write(self, plan: WindowPlan, where: Change, located: Tensor, change: Tensor) -> None:
        """Put parts computed anew in their place; `located` is `Located.in_maps` of these alone."""
        _put(self.maps, plan.in_maps.of(where.in_map, located), change)

    def write_together(self, where: Change, images: Tensor, top: int, left: int, change: Tensor) -> None:
        """As `write`, of some images by index, from a change [M,C,h,w] of all at one place."""
        window = self.maps[:, where.spans[0][top], where.spans[1][left]]
        window[images] = change.permute(0, 2, 3, 1)[images]

    def keep(self, which: Tensor) -> None:
        """Drop all other images, bool [M]."""
        self.maps = self.maps[which]


def _lines(grid: Tensor, width: int) -> Tensor:
    """Every run of so many pixels, [pixels − width + 1, width·C], of a contiguous [..., C]: a view.

    To copy a row of a window at once costs a fraction of copying it pixel by pixel.
    """
    channels = grid.shape[-1]
    return grid.as_strided((grid.numel() // channels - width + 1, width * channels), (channels, 1))


def _put(grid: Tensor, lines: Tensor, change: Tensor) -> None:
    """Write windows [R,C,h,w] into a contiguous [..., C], each row where `lines` [R·h] says."""
    count, channels, height, width = change.shape
    rows = change.permute(0, 2, 3, 1).reshape(count * height, width * channels)
    _lines(grid, width).index_copy_(0, lines, rows)


class Squares:
    """Square windows of one size in channels-last images [M,C,H,W], one in each of some images, at places of their own.

    Args:
        images: of that size.
        rows: which images, by index [R].
        place: the first row and the first column of each window, each [R].
        side: of the windows.
    """

    def __init__(self, images: Tensor, rows: Tensor, place: tuple[Tensor, Tensor], side: int) -> None:
        height, width = images.shape[2:]
        first = (rows * height + place[0]) * width + place[1]
        self.side = side
        self.lines = (first[:, None] + torch.arange(0, side * width, width, device=rows.device)).view(-1)

    def read(self, images: Tensor) -> Tensor:
        """[R,C,side,side], channels last."""
        window = _lines(images.permute(0, 2, 3, 1).contiguous(), self.side).index_select(0, self.lines)
        return window.view(-1, self.side, self.side, images.shape[1]).permute(0, 3, 1, 2)

    def write(self, images: Tensor, windows: Tensor) -> None:
        """Put windows [R,C,side,side] in their place."""
        # A view, never a copy, as it is written to.
        pixels = images.permute(0, 2, 3, 1).view(-1, images.shape[1])
        _put(pixels, self.lines, windows)


def _changed(
    kinds: Mapping[fx.Node, Reach | str],
    sources: Mapping[fx.Node, Sequence[fx.Node]],
    sizes: Mapping[fx.Node, tuple[int, int]],
    axis: int,
    side: int,
) -> dict[fx.Node, list[Interval]]:
    """Where each feature map can differ, by the patch's place; in each map the intervals are equally long."""
    changed: dict[fx.Node, list[Interval]] = {}
    for node, kind in kinds.items():
        if kind == "input":
            changed[node] = [Interval(start, side) for start in range(sizes[node][axis] - side + 1)]
        elif isinstance(kind, Reach):
            changed[node] = [kind.changed(axis, each, sizes[node][axis]) for each in changed[sources[node][0]]]
        elif kind == "pointwise":
            first, *others = sources[node]
            unions = changed[first]
            for other in others:
                unions = [one.union(two) for one, two in zip(unions, changed[other], strict=True)]
            length = max(each.length for each in unions)
            changed[node] = [Interval(min(each.start, sizes[node][axis] - length), length) for each in unions]
    return changed
