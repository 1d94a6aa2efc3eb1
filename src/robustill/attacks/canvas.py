"""The images that Square patches: evaluated as a whole, or in windows around small patches."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, fx

from robustill.acceleration.window_plan import CachedFeatureMap, RowStarts, SquareWindows
from robustill.acceleration.windowed import ReadWindow, WindowedNetwork
from robustill.attacks.search import Search


class Canvas(Protocol):
    """The best images so far, [R,C,H,W], which a patch may replace in part."""

    @property
    def images(self) -> Tensor:
        """The images without a proposed patch."""
        ...

    def logits(self) -> Tensor:
        """Return the logits of the images, [R,K]."""
        ...

    def try_patch(self, top: int, left: int, patch: Tensor) -> Tensor:
        """Return the logits [R,K] of the images with a patch [R,C,h,w] at one position."""
        ...

    def accept(self, mask: Tensor) -> None:
        """Put the last patch on the images of a mask, bool [R]."""
        ...

    def select(self, mask: Tensor) -> None:
        """Drop all images but those of a mask, bool [R]."""
        ...


class PlainCanvas:
    """A canvas that evaluates each patched image as a whole.

    Args:
        search: makes the passes through the model.
        images: the first images, [R,C,H,W]; written to.
    """

    patched: Tensor

    def __init__(self, search: Search, images: Tensor) -> None:
        self.search = search
        self.images = images

    def logits(self) -> Tensor:
        """See `Canvas`."""
        return self.search.logits(self.images)

    def try_patch(self, top: int, left: int, patch: Tensor) -> Tensor:
        """See `Canvas`."""
        if patch.shape == self.images.shape:
            self.patched = patch
        else:
            self.patched = self.images.clone()
            self.patched[:, :, top : top + patch.shape[2], left : left + patch.shape[3]] = patch
        return self.search.logits(self.patched)

    def accept(self, mask: Tensor) -> None:
        """See `Canvas`."""
        self.images[mask] = self.patched[mask]

    def select(self, mask: Tensor) -> None:
        """See `Canvas`."""
        self.images = self.images[mask].contiguous(memory_format=torch.channels_last)


# Above this share of the whole network's multiplications, windows cost more than they save. The second is for few
# images: windows of several patches of each fill a batch that whole images would leave nearly empty.
_MAX_COST_SHARE = 0.66
_MAX_COST_SHARE_AHEAD = 0.85


class WindowedCanvas:
    """A canvas that recomputes only windows around small patches, of one or several patches an image in a pass.

    Patches are square.

    Args:
        search: makes the passes through the model.
        network: the folded copy of the model, in windows.
        images: the first images, [R,C,H,W].
    """

    side: int

    def __init__(self, search: Search, network: WindowedNetwork, images: Tensor) -> None:
        self.plain = PlainCanvas(search, images)
        self.search = search
        self.network = network
        self.maps: dict[fx.Node, CachedFeatureMap] | None = None
        # The last patches and the values that they change: each at its own position, or all at one.
        self.last_patches: tuple[Tensor, tuple[Tensor, Tensor], RowStarts, dict[fx.Node, Any]] | None = None
        self.last_patch: tuple[int, int, dict[fx.Node, Any]] | None = None

    @property
    def images(self) -> Tensor:
        """See `Canvas`."""
        return self.plain.images

    def logits(self) -> Tensor:
        """See `Canvas`."""
        return self.plain.logits()

    def try_patch(self, top: int, left: int, patch: Tensor) -> Tensor:
        """See `Canvas`."""
        if not self.is_cheaper(patch.shape[2]):
            self.maps = self.last_patch = None
            return self.plain.try_patch(top, left, patch)
        patch = patch.contiguous(memory_format=torch.channels_last)
        with self.search.counting(len(patch)):
            values = self._evaluate(patch, lambda cached, window, part: cached.read_at(window, top, left, part))
        self.last_patch = top, left, values
        logits: Tensor = values[self.network.output]
        return self.search.watch(logits.float())

    def accept(self, mask: Tensor) -> None:
        """See `Canvas`."""
        if self.last_patch is None:
            self.plain.accept(mask)
            return
        assert self.maps is not None
        top, left, values = self.last_patch
        patch, rows = values[self.network.input], mask.nonzero().squeeze(1)
        side = patch.shape[2]
        self.images[:, :, top : top + side, left : left + side][rows] = patch[rows]
        changed_windows = self.network.plan(side).changed_windows
        for node, cached in self.maps.items():
            cached.write_at(changed_windows[node], rows, top, left, values[node])

    def select(self, mask: Tensor) -> None:
        """See `Canvas`."""
        self.plain.select(mask)
        if self.maps is not None:
            for cached in self.maps.values():
                cached.select(mask)

    def is_cheaper(self, side: int, *, ahead: bool = False) -> bool:
        """Return whether windows cost less than whole images for patches of that side, tried ahead or one by one."""
        return self.network.cost_share(side) < (_MAX_COST_SHARE_AHEAD if ahead else _MAX_COST_SHARE)

    def try_patches(self, rows: Tensor, position: tuple[Tensor, Tensor], patch: Tensor) -> Tensor:
        """Return the logits [R,K] of images, given by index [R], each with a patch [R,C,h,w] at its own position."""
        plan = self.network.plan(patch.shape[2])
        # Some of these logits are discarded; the caller counts those that it uses.
        with self.search.counting(0):
            starts = plan.locate(rows, position)
            values = self._evaluate(patch, lambda cached, window, part: cached.read(plan, window, starts, part))
        self.last_patches = rows, position, starts, values
        logits: Tensor = values[self.network.output]
        return self.search.watch(logits.float())

    def accept_patches(self, index: Tensor) -> None:
        """Put some of the last patches, given by index, on their images; each on another image."""
        assert self.maps is not None
        assert self.last_patches is not None
        rows, position, starts, values = self.last_patches
        patch = values[self.network.input][index]
        rows, position = rows[index], (position[0][index], position[1][index])
        SquareWindows(self.images, rows, position, patch.shape[2]).write(self.images, patch)
        plan, map_starts = self.network.plan(patch.shape[2]), starts.in_maps[index]
        for node, cached in self.maps.items():
            cached.write(plan, plan.changed_windows[node], map_starts, values[node][index])

    def _evaluate(self, patch: Tensor, read: ReadWindow) -> dict[fx.Node, Any]:
        with torch.no_grad():
            if self.maps is None or self.side != patch.shape[2]:
                self.side = patch.shape[2]
                self.maps = self.network.cache_maps(self.images, self.side)
            return self.network.evaluate_patch(self.maps, patch, read)
