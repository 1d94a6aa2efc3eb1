"""Windows of remembered feature maps, for many patches of one size at places of their own, gathered in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from robustill.attacks.reach import Interval, Reach

# So far outside that no sum with an offset inside gets back in.
_OUTSIDE = -(1 << 40)


@dataclass
class Reading:
    """Where a node finds what it reads of one input: in the map remembered, or in the part just computed anew.

    Args:
        in_map: by the patch's first row, the offset of each row read, [places, h]; the same for columns.
        in_change: offsets in the part just computed; far below zero where the row or column lies outside it.
        size: pixels of that part.
        spans: the same as slices, for patches at one place.
    """

    in_map: tuple[Tensor, Tensor]
    in_change: tuple[Tensor, Tensor]
    size: int
    spans: tuple[list[Span], list[Span]]


@dataclass
class Change:
    """Which part of its map a patch changes in a node, by the patch's first row, and by its first column.

    Args:
        offsets: of each row, [places, h]; the same for columns.
        spans: the same as slices, for patches at one place.
    """

    offsets: tuple[Tensor, Tensor]
    spans: tuple[list[slice], list[slice]]


class Span(NamedTuple):
    """Rows, or columns, that a node reads of one input.

    Args:
        area: of the remembered map.
        into: where in the area the part computed anew goes; None if it does not meet the area.
        taken: which rows of that part.
    """

    area: slice
    into: slice | None
    taken: slice | None


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
        self.sizes, self.margins, self.device = sizes, margins, device
        self.changed = [_changed(kinds, sources, sizes, axis, side) for axis in (0, 1)]
        self.readings: dict[fx.Node, dict[fx.Node, Reading | None]] = {}
        for node, kind in kinds.items():
            self.readings[node] = {source: self._reading(node, kind, source) for source in sources[node]}
        self.changes = {node: self._change(node) for node in margins}

    def height(self, node: fx.Node) -> int:
        """Rows of a feature map that a patch can change."""
        return self.changed[0][node][0].length

    def width(self, node: fx.Node) -> int:
        """Columns of a feature map that a patch can change."""
        return self.changed[1][node][0].length

    def _reading(self, node: fx.Node, kind: Reach | str, source: fx.Node) -> Reading | None:
        """None where exactly the changed part is read."""
        wanted = [self._wanted(axis, node, kind, source) for axis in (0, 1)]
        if all(wanted[axis] == self.changed[axis][source] for axis in (0, 1)):
            return None
        in_map = self._offsets(source, wanted)
        widths = (self.width(source), 1)
        in_change, spans = [], []
        for axis, step in enumerate(widths):
            pairs = list(zip(wanted[axis], self.changed[axis][source], strict=True))
            spans.append([_span(read, there, self.margins[source]) for read, there in pairs])
            rows = [[_inside(row, there, step) for row in range(*_ends(read))] for read, there in pairs]
            in_change.append(torch.tensor(rows, device=self.device))
        size = self.height(source) * self.width(source)
        return Reading(in_map, (in_change[0], in_change[1]), size, (spans[0], spans[1]))

    def _wanted(self, axis: int, node: fx.Node, kind: Reach | str, source: fx.Node) -> list[Interval]:
        changed = self.changed[axis]
        if isinstance(kind, Reach):
            return [kind.needed(axis, each) for each in changed[node]]
        if node in changed:
            return changed[node]
        return [Interval(0, self.sizes[source][axis])] * len(changed[source])

    def _change(self, node: fx.Node) -> Change:
        changed = [self.changed[axis][node] for axis in (0, 1)]
        rows, columns = ([each.within(-self.margins[node]) for each in intervals] for intervals in changed)
        return Change(self._offsets(node, changed), (rows, columns))

    def _offsets(self, node: fx.Node, intervals: Sequence[Sequence[Interval]]) -> tuple[Tensor, Tensor]:
        margin = self.margins[node]
        padded_width = self.sizes[node][1] + 2 * margin
        rows = [[(row + margin) * padded_width for row in range(*_ends(each))] for each in intervals[0]]
        columns = [[column + margin for column in range(*_ends(each))] for each in intervals[1]]
        return torch.tensor(rows, device=self.device), torch.tensor(columns, device=self.device)


class RememberedMap:
    """One feature map of every image, its pixels in a row, with room behind them for parts computed anew.

    Args:
        values: [M,C,H,W].
        margin: zeros put around it.
    """

    def __init__(self, values: Tensor, margin: int) -> None:
        padded = F.pad(values, (margin,) * 4)
        self.size = (padded.shape[2], padded.shape[3])
        self.plane = padded.shape[2] * padded.shape[3]
        self.images = len(padded)
        self.flat = pixels(padded.contiguous(memory_format=torch.channels_last))

    def read(self, reading: Reading, images: Tensor, place: tuple[Tensor, Tensor], change: Tensor) -> Tensor:
        """What a node reads around each patch, [R,C,h,w]; `change` is the part computed anew."""
        behind = self.images * self.plane
        end = behind + len(images) * reading.size
        if end > len(self.flat):
            room = self.flat.new_empty(end - behind, self.flat.shape[1])
            self.flat = torch.cat([self.flat[:behind], room])
        self.flat[behind:end] = pixels(change)
        old = self._grid(reading.in_map, images * self.plane, place)
        first = torch.arange(behind, end, reading.size, device=images.device)
        new = self._grid(reading.in_change, first, place)
        index = torch.where(new < 0, old, new)
        rows, height, width = index.shape
        return self.flat.index_select(0, index.view(-1)).view(rows, height, width, -1).permute(0, 3, 1, 2)

    def read_together(self, reading: Reading, top: int, left: int, change: Tensor) -> Tensor:
        """As `read`, for one patch on every image, all at one place: copies whole rows, which costs less."""
        rows, columns = reading.spans[0][top], reading.spans[1][left]
        whole = self._maps()[:, rows.area, columns.area].clone()
        if rows.into is not None and columns.into is not None:
            whole[:, rows.into, columns.into] = change.permute(0, 2, 3, 1)[:, rows.taken, columns.taken]
        return whole.permute(0, 3, 1, 2)

    def write(self, where: Change, images: Tensor, place: tuple[Tensor, Tensor], change: Tensor) -> None:
        """Put the parts computed anew in their place."""
        index = self._grid(where.offsets, images * self.plane, place)
        self.flat.index_copy_(0, index.view(-1), pixels(change))

    def write_together(self, where: Change, images: Tensor, top: int, left: int, change: Tensor) -> None:
        """As `write`, of some images by index, from a change [M,C,h,w] of all at one place."""
        window = self._maps()[:, where.spans[0][top], where.spans[1][left]]
        window[images] = change.permute(0, 2, 3, 1)[images]

    def keep(self, which: Tensor) -> None:
        """Drop all other images, bool [M]."""
        planes = self.flat[: self.images * self.plane].view(self.images, -1)[which]
        self.images = len(planes)
        self.flat = planes.view(self.images * self.plane, -1)

    def _maps(self) -> Tensor:
        return self.flat[: self.images * self.plane].view(self.images, *self.size, -1)

    @staticmethod
    def _grid(offsets: tuple[Tensor, Tensor], first: Tensor, place: tuple[Tensor, Tensor]) -> Tensor:
        rows = offsets[0][place[0]].add_(first[:, None])
        return rows[:, :, None] + offsets[1][place[1]][:, None]


def pixels(images: Tensor) -> Tensor:
    """[M,C,H,W] -> [M·H·W,C]: a view where the images are channels-last."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def window_index(images: Tensor, rows: Tensor, place: tuple[Tensor, Tensor], side: int) -> Tensor:
    """Where in `pixels(images)` the square windows of some images lie, [R·side·side]."""
    height, width = images.shape[2:]
    steps = torch.arange(side, device=rows.device)
    first = rows * (height * width) + place[0] * width + place[1]
    return (first[:, None, None] + steps[:, None] * width + steps).view(-1)


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


def _span(read: Interval, there: Interval, margin: int) -> Span:
    # What is read may leave out a part of what changed, where a stride jumps over it.
    common = there.common(read)
    area = read.within(-margin)
    return Span(area, common.within(read.start), common.within(there.start)) if common else Span(area, None, None)


def _inside(row: int, interval: Interval, step: int) -> int:
    return (row - interval.start) * step if interval.start <= row < interval.end else _OUTSIDE


def _ends(interval: Interval) -> tuple[int, int]:
    return interval.start, interval.end
