"""Images on which patches are tried: what Square needs of a model."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, fx

from robustill.acceleration.window_plan import Located, RememberedMap, Squares
from robustill.acceleration.windowed import Read, WindowedNetwork
from robustill.attacks.search import Search


class Canvas(Protocol):
    """The best images so far, [R,C,H,W], and the logits of a patch put on them."""

    @property
    def images(self) -> Tensor:
        """As they are."""
        ...

    def logits(self) -> Tensor:
        """Of the images as they are, [R,K]."""
        ...

    def try_patch(self, top: int, left: int, patch: Tensor) -> Tensor:
        """Logits [R,K] of the images with a patch [R,C,h,w] at one place."""
        ...

    def accept(self, which: Tensor) -> None:
        """Keep the patch tried last on some images, bool [R]."""
        ...

    def keep(self, which: Tensor) -> None:
        """Drop all other images, bool [R]."""
        ...


class PlainCanvas:
    """Evaluates each patched image as a whole.

    Args:
        search: passes through the model.
        images: to begin with, [R,C,H,W]; written to.
    """

    tried: Tensor

    def __init__(self, search: Search, images: Tensor) -> None:
        self.search = search
        self.images = images

    def logits(self) -> Tensor:
        """See `Canvas`."""
        return self.search.logits(self.images)

    def try_patch(self, top: int, left: int, patch: Tensor) -> Tensor:
        """See `Canvas`."""
        if patch.shape == self.images.shape:
            self.tried = patch
        else:
            self.tried = self.images.clone()
            self.tried[:, :, top : top + patch.shape[2], left : left + patch.shape[3]] = patch
        return self.search.logits(self.tried)

    def accept(self, which: Tensor) -> None:
        """See `Canvas`."""
        self.images[which] = self.tried[which]

    def keep(self, which: Tensor) -> None:
        """See `Canvas`."""
        self.images = self.images[which].contiguous(memory_format=torch.channels_last)


# Above this share of the whole network's multiplications, windows no longer pay for their bookkeeping. The second is
# for few images, where windows of several patches ahead fill a batch that whole images would leave nearly empty.
_WORTH_IT = 0.66
_WORTH_IT_AHEAD = 0.85


class WindowedCanvas:
    """As `PlainCanvas`, and recomputes only windows once the patches are small: several a pass, at places of their own.

    Patches are square.

    Args:
        search: passes through the model; on the light copy that `network` reads.
        network: the light copy, layer by layer.
        images: to begin with, [R,C,H,W].
    """

    side: int

    def __init__(self, search: Search, network: WindowedNetwork, images: Tensor) -> None:
        self.plain = PlainCanvas(search, images)
        self.search = search
        self.network = network
        self.maps: dict[fx.Node, RememberedMap] | None = None
        self.tried: tuple[Tensor, tuple[Tensor, Tensor], Located, dict[fx.Node, Any]] | None = None
        self.together: tuple[int, int, dict[fx.Node, Any]] | None = None

    @property
    def images(self) -> Tensor:
        """See `canvas.Canvas`."""
        return self.plain.images

    def logits(self) -> Tensor:
        """See `canvas.Canvas`."""
        return self.plain.logits()

    def try_patch(self, top: int, left: int, patch: Tensor) -> Tensor:
        """See `canvas.Canvas`."""
        if not self.pays(patch.shape[2]):
            self.maps = self.together = None
            return self.plain.try_patch(top, left, patch)
        patch = patch.contiguous(memory_format=torch.channels_last)
        with self.search.counted(len(patch)):
            values = self._patched(patch, lambda held, reading, change: held.read_together(reading, top, left, change))
        self.together = top, left, values
        logits: Tensor = values[self.network.output]
        return logits.float()

    def accept(self, which: Tensor) -> None:
        """See `canvas.Canvas`."""
        if self.together is None:
            self.plain.accept(which)
            return
        assert self.maps is not None
        top, left, values = self.together
        patch, rows = values[self.network.input], which.nonzero().squeeze(1)
        side = patch.shape[2]
        self.images[:, :, top : top + side, left : left + side][rows] = patch[rows]
        changes = self.network.plan(side).changes
        for node, held in self.maps.items():
            held.write_together(changes[node], rows, top, left, values[node])

    def keep(self, which: Tensor) -> None:
        """See `canvas.Canvas`."""
        self.plain.keep(which)
        if self.maps is not None:
            for held in self.maps.values():
                held.keep(which)

    def pays(self, side: int, *, ahead: bool = False) -> bool:
        """Whether windows cost less than whole images for patches of that side, tried several ahead or one by one."""
        return self.network.share(side) < (_WORTH_IT_AHEAD if ahead else _WORTH_IT)

    def try_patches(self, rows: Tensor, place: tuple[Tensor, Tensor], patch: Tensor) -> Tensor:
        """Logits [R,K] of images, given by index [R], each with a patch [R,C,h,w] at a place of its own."""
        plan = self.network.plan(patch.shape[2])
        # Some of these logits are thrown away; only those of use are counted, by the caller.
        with self.search.counted(0):
            where = plan.locate(rows, place)
            values = self._patched(patch, lambda held, reading, change: held.read(plan, reading, where, change))
        self.tried = rows, place, where, values
        logits: Tensor = values[self.network.output]
        return logits.float()

    def accept_patches(self, which: Tensor) -> None:
        """Keep some of the patches tried last, given by index, each on another image."""
        assert self.maps is not None
        assert self.tried is not None
        rows, place, where, values = self.tried
        patch = values[self.network.input][which]
        rows, place = rows[which], (place[0][which], place[1][which])
        Squares(self.images, rows, place, patch.shape[2]).write(self.images, patch)
        plan, located = self.network.plan(patch.shape[2]), where.in_maps[which]
        for node, held in self.maps.items():
            held.write(plan, plan.changes[node], located, values[node][which])

    def _patched(self, patch: Tensor, read: Read) -> dict[fx.Node, Any]:
        with torch.no_grad():
            if self.maps is None or self.side != patch.shape[2]:
                self.side = patch.shape[2]
                self.maps = self.network.remember(self.images, self.side)
            return self.network.patched(self.maps, patch, read)
