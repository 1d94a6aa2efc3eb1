"""What every data set is: uint8 images, int64 labels, class names and a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from robustill.core.errors import DataError

Split: TypeAlias = Literal["train", "test"]


class MissingDataError(DataError):
    """The files of a data set are not where they were looked for; a download may bring them."""


class Dataset(Protocol):
    """What training and evaluation need to know of a data set, in memory or on disk."""

    @property
    def name(self) -> str:
        """The name under which the set was loaded."""

    @property
    def split(self) -> Split:
        """Which part of the set this is."""

    @property
    def labels(self) -> Tensor:
        """The label of each image, int64 [N], in memory."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class, in the order of the labels."""

    @property
    def num_classes(self) -> int:
        """K, which a split may not exhaust."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), the same for every image."""

    @property
    def fingerprint(self) -> str:
        """A sha256 that changes when an image or a label does."""

    def __len__(self) -> int: ...

    def read(self, indices: Tensor) -> Tensor:
        """The images with these ids, uint8 [B,C,H,W]."""

    def subset(self, ids: Tensor, labels: Tensor | None = None) -> Dataset:
        """These images alone, renumbered from 0 in the given order; with other labels, [N], in place of their own."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a reader is asked for."""

    name: str
    root: Path
    split: Split
    image_size: int | None = None
    num_classes: int | None = None
    downloadable: bool = False

    def missing(self, *looked_for: Path) -> MissingDataError:
        """The error for files that are not there: where they were looked for and what to do."""
        places = " or ".join(str(place) for place in looked_for)
        mend = "give --data.root, or --data.download true to fetch it" if self.downloadable else "give --data.root"
        return MissingDataError(f"{self.name} ({self.split}) not found: looked for {places}; {mend}")


Reader: TypeAlias = Callable[[Request], Dataset]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageDataset:
    """A data set in memory.

    Args:
        name: of the set.
        split: "train" or "test".
        images: uint8 [N,C,H,W].
        labels: int64 [N], each in [0, K).
        classes: K names.

    Raises:
        DataError: no image, another type or shape, or a label out of range.
    """

    name: str
    split: Split
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                f"{self.name}: images are {self.images.dtype} of shape {tuple(self.images.shape)}, "
                "expected uint8 of shape [N,C,H,W]"
            )
        if 0 in self.images.shape:
            raise DataError(f"{self.name} ({self.split}): no pixels in images of shape {tuple(self.images.shape)}")
        check_labels(self.labels, len(self.images), len(self.classes), f"{self.name} ({self.split})")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, C, H, W = self.images.shape
        return C, H, W

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of shape, pixels and labels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def read(self, indices: Tensor) -> Tensor:
        """The images with these ids, uint8 [B,C,H,W]."""
        return self.images[indices]

    def subset(self, ids: Tensor, labels: Tensor | None = None) -> ImageDataset:
        """These images alone, renumbered from 0 in the given order; with other labels, [N], in place of their own."""
        return ImageDataset(
            name=self.name,
            split=self.split,
            images=self.images[ids],
            labels=(self.labels if labels is None else labels)[ids],
            classes=self.classes,
        )

    def resized(self, image_size: int) -> ImageDataset:
        """The shorter side brought to `image_size` (bilinear, antialiased), then the centre square."""
        _, H, W = self.image_shape
        if image_size == H == W:
            return self
        scale = image_size / min(H, W)
        height, width = max(image_size, round(H * scale)), max(image_size, round(W * scale))
        top, left = (height - image_size) // 2, (width - image_size) // 2
        resized = [
            F.interpolate(chunk.float(), (height, width), mode="bilinear", antialias=True)
            .round_()
            .clamp_(0, 255)
            .byte()[:, :, top : top + image_size, left : left + image_size]
            for chunk in torch.split(self.images, 1024)
        ]
        return ImageDataset(
            name=self.name,
            split=self.split,
            images=torch.cat(resized),
            labels=self.labels,
            classes=self.classes,
        )


def check_labels(labels: Tensor, count: int, num_classes: int, where: str | Path) -> None:
    """Refuse labels that are not int64 [count] with values in [0, num_classes).

    Raises:
        DataError: saying what was found in `where`.
    """
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise DataError(f"{where}: labels are {labels.dtype} of shape {tuple(labels.shape)}, expected int64 [N]")
    if len(labels) != count:
        raise DataError(f"{where}: {len(labels)} labels for {count} images")
    if count == 0:
        raise DataError(f"{where}: no images")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise DataError(f"{where}: found the label {lowest}, expected 0 to {num_classes - 1}")
    if highest >= num_classes:
        raise DataError(f"{where}: found labels up to {highest}, expected {num_classes} classes")
