"""Images on which patches are tried: what Square needs of a model."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

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
