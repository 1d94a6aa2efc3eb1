"""Read and write windows of cached feature maps around many patches of one size, each at its own position, in one copy.

This is the index arithmetic behind `windowed`, and computes nothing by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from robustill.acceleration.receptive_field import Interval, ReceptiveField


class WindowSlices(NamedTuple):
    """Rows, or columns, that a node reads of one input.

    Args:
        window: slice of the cached map.
        changed: slice of the window into which the recomputed part goes.
    """

    window: slice
    changed: slice


@dataclass
class InputWindow:
    """What a node reads of one input around each patch: a window of the cached map with the recomputed part put in.

    Args:
        map_rectangle: number of the window in the plan's `in_maps`.
        window_rectangle: number of the recomputed part in the plan's `in_windows`.
        slices: the same by the patch's first row, and by its first column, for patches that share one position.
    """

    map_rectangle: int
    window_rectangle: int
    slices: tuple[list[WindowSlices], list[WindowSlices]]


@dataclass
class ChangedWindow:
    """The part of a node's feature map that a patch changes.

    Args:
        map_rectangle: its number in the plan's `in_maps`.
        slices: the same by the patch's first row, and by its first column, for patches that share one position.
    """

    map_rectangle: int
    slices: tuple[list[slice], list[slice]]


class RectangleTable:
    """Where rectangles of pixels begin, for each position of the patch; a rectangle has one size at all positions.

    A rectangle lies in one of several grids (images, or windows) of the same height and width, one after the other in
    memory.
    """

    def __init__(self) -> None:
        self.first_rows: list[list[int]] = []
        self.first_columns: list[list[int]] = []
        self.grid_sizes: list[int] = []
        self.widths: list[int] = []
        self.row_slices: list[slice] = []
        self.row_offsets: list[int] = []

    def add(self, rows: Sequence[Interval], columns: Sequence[Interval], grid: tuple[int, int]) -> int:
        """Add a rectangle and return its number.

        Args:
            rows: its rows, by the patch's first row.
            columns: its columns, by the patch's first column.
            grid: height and width of a grid.
        """
        self.first_rows.append([each.start * grid[1] for each in rows])
        self.first_columns.append([each.start for each in columns])
        self.grid_sizes.append(grid[0] * grid[1])
        self.widths.append(columns[0].length)
        self.row_slices.append(slice(len(self.row_offsets), len(self.row_offsets) + rows[0].length))
        self.row_offsets += [row * grid[1] for row in range(rows[0].length)]
        return len(self.grid_sizes) - 1

    def finalize(self, device: torch.device) -> None:
        """Put the table on the device, once all rectangles are added."""
        integers = partial(torch.tensor, dtype=torch.int64, device=device)
        counts = integers([each.stop - each.start for each in self.row_slices])
        # For each row of each rectangle, one after the other.
        rows, columns, self.grid_table = (
            integers(table).repeat_interleave(counts, dim=0)
            for table in (self.first_rows, self.first_columns, self.grid_sizes)
        )
        self.row_table = rows.t() + integers(self.row_offsets)
        self.column_table = columns.t().contiguous()

    def row_starts(self, position: tuple[Tensor, Tensor], grid: Tensor) -> Tensor:
        """Return the index of the first pixel of each row of each rectangle, [R, all rows].

        Args:
            position: first row and first column of each patch, each [R].
            grid: the grid of each patch, [R].
        """
        starts = grid[:, None] * self.grid_table
        starts += self.row_table.index_select(0, position[0])
        starts += self.column_table.index_select(0, position[1])
        return starts

    def select(self, number: int, row_starts: Tensor) -> Tensor:
        """Return the row starts of one rectangle, [R·h]."""
        return row_starts[:, self.row_slices[number]].reshape(-1)


class RowStarts(NamedTuple):
    """Where the windows around some patches begin, see `RectangleTable.row_starts`."""

    in_maps: Tensor
    in_windows: Tensor


class WindowPlan:
    """What patches of one size change in each feature map, and what each node reads, at every position of the patch.

    Args:
        kinds: of the nodes, in their order: "input", a ReceptiveField, "pointwise" or "global".
        sources: inputs of each node that a patch changes only in part.
        sizes: height and width of each feature map.
        margins: width of the zeros around each cached map.
        side: of the patches.
        device: of the maps.
    """

    def __init__(
        self,
        kinds: Mapping[fx.Node, ReceptiveField | str],
        sources: Mapping[fx.Node, Sequence[fx.Node]],
        sizes: Mapping[fx.Node, tuple[int, int]],
        margins: Mapping[fx.Node, int],
        side: int,
        device: torch.device,
    ) -> None:
        self.sizes, self.margins = sizes, margins
        self.changed = [_changed_intervals(kinds, sources, sizes, axis, side) for axis in (0, 1)]
        self.in_maps, self.in_windows = RectangleTable(), RectangleTable()
        self.input_windows: dict[fx.Node, dict[fx.Node, InputWindow | None]] = {}
        for node, kind in kinds.items():
            self.input_windows[node] = {source: self._input_window(node, kind, source) for source in sources[node]}
        # Only maps of which a window is read need to be cached.
        read = {
            source
            for windows in self.input_windows.values()
            for source, window in windows.items()
            if window is not None
        }
        self.changed_windows = {node: self._changed_window(node) for node in margins if node in read}
        self.in_maps.finalize(device)
        self.in_windows.finalize(device)

    def height(self, node: fx.Node) -> int:
        """Return how many rows of a feature map a patch can change."""
        return self.changed[0][node][0].length

    def width(self, node: fx.Node) -> int:
        """Return how many columns of a feature map a patch can change."""
        return self.changed[1][node][0].length

    def locate(self, images: Tensor, position: tuple[Tensor, Tensor]) -> RowStarts:
        """Return the windows around patches on some images, given by index [R], each patch at its own position."""
        order = torch.arange(len(images), device=images.device)
        return RowStarts(self.in_maps.row_starts(position, images), self.in_windows.row_starts(position, order))

    def _input_window(self, node: fx.Node, kind: ReceptiveField | str, source: fx.Node) -> InputWindow | None:
        """Return the window that a node reads of a source, or None where it reads exactly the changed part."""
        read = [self._input_intervals(axis, node, kind, source) for axis in (0, 1)]
        if all(read[axis] == self.changed[axis][source] for axis in (0, 1)):
            return None
        pairs = [list(zip(read[axis], self.changed[axis][source], strict=True)) for axis in (0, 1)]
        first = -self.margins[source]
        slices = [
            [WindowSlices(window.relative_to(first), part.relative_to(window.start)) for window, part in each]
            for each in pairs
        ]
        inner = [[Interval(part.start - window.start, part.length) for window, part in each] for each in pairs]
        window_size = (read[0][0].length, read[1][0].length)
        return InputWindow(
            self._add_to_maps(source, read),
            self.in_windows.add(inner[0], inner[1], window_size),
            (slices[0], slices[1]),
        )

    def _input_intervals(self, axis: int, node: fx.Node, kind: ReceptiveField | str, source: fx.Node) -> list[Interval]:
        changed = self.changed[axis]
        if isinstance(kind, ReceptiveField):
            sizes = self.sizes[source][axis], self.sizes[node][axis]
            return [kind.input_interval(axis, each, *sizes) for each in changed[node]]
        if node in changed:
            return changed[node]
        return [Interval(0, self.sizes[source][axis])] * len(changed[source])

    def _changed_window(self, node: fx.Node) -> ChangedWindow:
        changed = [self.changed[axis][node] for axis in (0, 1)]
        rows, columns = ([each.relative_to(-self.margins[node]) for each in intervals] for intervals in changed)
        return ChangedWindow(self._add_to_maps(node, changed), (rows, columns))

    def _add_to_maps(self, node: fx.Node, intervals: Sequence[Sequence[Interval]]) -> int:
        margin, (height, width) = self.margins[node], self.sizes[node]
        rows, columns = ([Interval(each.start + margin, each.length) for each in axis] for axis in intervals)
        return self.in_maps.add(rows, columns, (height + 2 * margin, width + 2 * margin))


def _changed_intervals(
    kinds: Mapping[fx.Node, ReceptiveField | str],
    sources: Mapping[fx.Node, Sequence[fx.Node]],
    sizes: Mapping[fx.Node, tuple[int, int]],
    axis: int,
    side: int,
) -> dict[fx.Node, list[Interval]]:
    """Return where each feature map can change, by the patch's position; the intervals of a map are equally long."""
    changed: dict[fx.Node, list[Interval]] = {}
    for node, kind in kinds.items():
        if kind == "input":
            changed[node] = [Interval(start, side) for start in range(sizes[node][axis] - side + 1)]
        elif isinstance(kind, ReceptiveField):
            changed[node] = [kind.output_interval(axis, each, sizes[node][axis]) for each in changed[sources[node][0]]]
        elif kind == "pointwise":
            first, *others = sources[node]
            unions = changed[first]
            for other in others:
                unions = [one.union(two) for one, two in zip(unions, changed[other], strict=True)]
            length = max(each.length for each in unions)
            changed[node] = [Interval(min(each.start, sizes[node][axis] - length), length) for each in unions]
    return changed


class CachedFeatureMap:
    """One feature map of every image, padded, channels last.

    Args:
        values: [M,C,H,W].
        margin: width of the zeros put around it.
    """

    def __init__(self, values: Tensor, margin: int) -> None:
        self.maps = F.pad(values, (margin,) * 4).permute(0, 2, 3, 1).contiguous()

    def read(self, plan: WindowPlan, window: InputWindow, starts: RowStarts, part: Tensor) -> Tensor:
        """Return what a node reads around each patch, [R,C,h,w]; `part` is the recomputed part."""
        width, channels = plan.in_maps.widths[window.map_rectangle], self.maps.shape[3]
        map_starts = plan.in_maps.select(window.map_rectangle, starts.in_maps)
        values = _row_views(self.maps, width).index_select(0, map_starts)
        window_starts = plan.in_windows.select(window.window_rectangle, starts.in_windows)
        _write_rows(values.view(-1, channels), window_starts, part)
        return values.view(len(part), -1, width, channels).permute(0, 3, 1, 2)

    def read_at(self, window: InputWindow, top: int, left: int, part: Tensor) -> Tensor:
        """Return the same for one patch on every image, all at one position; slices cost less than an index."""
        rows, columns = window.slices[0][top], window.slices[1][left]
        values = self.maps[:, rows.window, columns.window].clone()
        values[:, rows.changed, columns.changed] = part.permute(0, 2, 3, 1)
        return values.permute(0, 3, 1, 2)

    def write(self, plan: WindowPlan, window: ChangedWindow, row_starts: Tensor, part: Tensor) -> None:
        """Write recomputed parts; `row_starts` is `RowStarts.in_maps` of their patches."""
        _write_rows(self.maps, plan.in_maps.select(window.map_rectangle, row_starts), part)

    def write_at(self, window: ChangedWindow, images: Tensor, top: int, left: int, part: Tensor) -> None:
        """Write the recomputed parts [M,C,h,w] of some images, given by index, all at one position."""
        values = self.maps[:, window.slices[0][top], window.slices[1][left]]
        values[images] = part.permute(0, 2, 3, 1)[images]

    def select(self, mask: Tensor) -> None:
        """Drop all images but those of a mask, bool [M]."""
        self.maps = self.maps[mask]


class SquareWindows:
    """Square windows of one size in channels-last images [M,C,H,W], one in each of some images, at its own position.

    Args:
        images: to take the height and the width from.
        rows: which images, by index [R].
        position: first row and first column of each window, each [R].
        side: of the windows.
    """

    def __init__(self, images: Tensor, rows: Tensor, position: tuple[Tensor, Tensor], side: int) -> None:
        height, width = images.shape[2:]
        first = (rows * height + position[0]) * width + position[1]
        self.side = side
        self.row_starts = (first[:, None] + torch.arange(0, side * width, width, device=rows.device)).view(-1)

    def read(self, images: Tensor) -> Tensor:
        """Return the windows, [R,C,side,side], channels last."""
        pixels = images.permute(0, 2, 3, 1).contiguous()
        windows = _row_views(pixels, self.side).index_select(0, self.row_starts)
        return windows.view(-1, self.side, self.side, images.shape[1]).permute(0, 3, 1, 2)

    def write(self, images: Tensor, windows: Tensor) -> None:
        """Write windows [R,C,side,side] into the images, which have to be channels last."""
        # `view` fails where `reshape` would make a copy, which would be written to in vain.
        pixels = images.permute(0, 2, 3, 1).view(-1, images.shape[1])
        _write_rows(pixels, self.row_starts, windows)


def _row_views(pixels: Tensor, width: int) -> Tensor:
    """Return a view of every run of `width` pixels, [pixels − width + 1, width·C], of a contiguous [..., C].

    Copying the row of a window at once costs a fraction of copying it pixel by pixel.
    """
    channels = pixels.shape[-1]
    return pixels.as_strided((pixels.numel() // channels - width + 1, width * channels), (channels, 1))


def _write_rows(pixels: Tensor, row_starts: Tensor, windows: Tensor) -> None:
    """Write windows [R,C,h,w] into a contiguous [..., C], each of their rows at its start, [R·h]."""
    count, channels, height, width = windows.shape
    rows = windows.permute(0, 2, 3, 1).reshape(count * height, width * channels)
    _row_views(pixels, width).index_copy_(0, row_starts, rows)
