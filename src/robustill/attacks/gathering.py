"""Windows of remembered feature maps, for many patches of one size at places of their own, gathered in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    """

    in_map: tuple[Tensor, Tensor]
    in_change: tuple[Tensor, Tensor]
    size: int


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
        in_change = []
        for axis, step in enumerate(widths):
            pairs = zip(wanted[axis], self.changed[axis][source], strict=True)
            rows = [[_inside(row, there, step) for row in range(*_ends(read))] for read, there in pairs]
            in_change.append(torch.tensor(rows, device=self.device))
        return Reading(in_map, (in_change[0], in_change[1]), self.height(source) * self.width(source))

    def _wanted(self, axis: int, node: fx.Node, kind: Reach | str, source: fx.Node) -> list[Interval]:
        changed = self.changed[axis]
        if isinstance(kind, Reach):
            return [kind.needed(axis, each) for each in changed[node]]
        if node in changed:
            return changed[node]
        return [Interval(0, self.sizes[source][axis])] * len(changed[source])

    def _change(self, node: fx.Node) -> tuple[Tensor, Tensor]:
        return self._offsets(node, [self.changed[axis][node] for axis in (0, 1)])

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

    def write(
        self, offsets: tuple[Tensor, Tensor], images: Tensor, place: tuple[Tensor, Tensor], change: Tensor
    ) -> None:
        """Put the parts computed anew in their place."""
        index = self._grid(offsets, images * self.plane, place)
        self.flat.index_copy_(0, index.view(-1), pixels(change))

    def keep(self, which: Tensor) -> None:
        """Drop all other images, bool [M]."""
        planes = self.flat[: self.images * self.plane].view(self.images, -1)[which]
        self.images = len(planes)
        self.flat = planes.view(self.images * self.plane, -1)

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


def _inside(row: int, interval: Interval, step: int) -> int:
    return (row - interval.start) * step if interval.start <= row < interval.end else _OUTSIDE


def _ends(interval: Interval) -> tuple[int, int]:
    return interval.start, interval.end
