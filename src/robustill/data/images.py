"""The interface of a data set, and data sets in memory: uint8 images, int64 labels, class names and a fingerprint.

`Dataset` is the interface, `ImageDataset` a data set in memory; a reader gets a `Request` and returns a `Dataset`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from robustill.core.errors import DataError
from robustill.core.validation import check_integer, describe

Split: TypeAlias = Literal["train", "test"]

MAX_IMAGE_SIZE = 4096
"""The largest width and height, in pixels, that images are resized to."""

DARKEST_WHITE = 16
"""No data set is so dark, but values of 0 to 1, or of 0 to 16 as in scikit-learn's digits, are at most that."""

_NUM_PROBE_IMAGES = 16
_MOST_CLASSES = 100_000
# 256 MiB of float32, while images are resized.
_VALUES_AT_A_TIME = 2**26


class MissingDataError(DataError):
    """The files of a data set are missing; a download may be possible."""


class Dataset(Protocol):
    """The interface of a data set, in memory or on disk."""

    @property
    def name(self) -> str:
        """The name under which the data set was loaded."""

    @property
    def split(self) -> Split:
        """The split, "train" or "test"."""

    @property
    def labels(self) -> Tensor:
        """The label of each image, int64 [N], in memory."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class, in the order of the labels."""

    @property
    def num_classes(self) -> int:
        """K, the number of classes; a split may lack images of some."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), the same for every image."""

    @property
    def fingerprint(self) -> str:
        """A sha256 that changes when an image or a label changes."""

    def __len__(self) -> int: ...

    def read(self, indices: Tensor) -> Tensor:
        """Return the images with these ids, uint8 [B,C,H,W]."""

    def subset(self, ids: Tensor, labels: Tensor | None = None) -> Dataset:
        """Return a data set of these images, numbered from 0 in this order; `labels`, [N], replace its own."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request that a reader gets: which data set, where, and which split; see `load` for the fields."""

    name: str
    root: Path
    split: Split
    image_size: int | None = None
    num_classes: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    downloadable: bool = False

    def missing(self, *paths: Path | str) -> MissingDataError:
        """Return the error for missing files: which paths were expected and what to do."""
        expected = " or ".join(str(path) for path in paths)
        advice = "give --data.root, or --data.download true to download it" if self.downloadable else "give --data.root"
        return MissingDataError(f"{self.name} ({self.split}) not found: expected {expected}; {advice}")


Reader: TypeAlias = Callable[[Request], Dataset]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageDataset:
    """A data set in memory.

    Args:
        name: the name of the data set.
        split: "train" or "test".
        images: uint8 [N,C,H,W].
        labels: int64 [N], each in [0, K).
        classes: K names.
        split_rule: how training and test images were told apart, if their files do not.

    Raises:
        DataError: there are no images, a type or shape is another one, or a label is out of range.
    """

    name: str
    split: Split
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    split_rule: str | None = None

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
        """Return the images with these ids, uint8 [B,C,H,W]."""
        return self.images[indices]

    def subset(self, ids: Tensor, labels: Tensor | None = None) -> ImageDataset:
        """Return a data set of these images, numbered from 0 in this order; `labels`, [N], replace its own."""
        return replace(self, images=self.images[ids], labels=(self.labels if labels is None else labels)[ids])

    def resized(self, image_size: int) -> ImageDataset:
        """Resize the shorter side to `image_size` (bilinear, antialiased), then crop to the centre square."""
        C, H, W = self.image_shape
        if image_size == H == W:
            return self
        what = f"{self.name}: {len(self)} images of {image_size}×{image_size}"
        _check_memory(len(self) * C * image_size**2, what)
        scale = image_size / min(H, W)
        height, width = max(image_size, round(H * scale)), max(image_size, round(W * scale))
        top, left = (height - image_size) // 2, (width - image_size) // 2
        try:
            resized = torch.empty(len(self), C, image_size, image_size, dtype=torch.uint8)
        except RuntimeError:
            raise DataError(f"{what} pixels do not fit in memory: give a smaller --data.image_size") from None
        for ids in torch.split(torch.arange(len(self)), max(1, _VALUES_AT_A_TIME // (C * height * width))):
            levels = F.interpolate(self.images[ids].float(), (height, width), mode="bilinear", antialias=True)
            levels = levels.round_().clamp_(0, 255)[:, :, top : top + image_size, left : left + image_size]
            resized[ids] = levels.byte()
        return replace(self, images=resized)


def _check_memory(num_bytes: int, what: str) -> None:
    """Check that resized images fit in the memory of this machine, where the system says how large it is.

    Raises:
        DataError: they do not.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if num_bytes > memory:
        raise DataError(
            f"{what} pixels take {num_bytes / 2**30:.0f} GiB, more than the {memory / 2**30:.0f} GiB of memory here: "
            "give a smaller --data.image_size"
        )


def check_dataset(dataset: Any) -> None:
    """Check that an object has the interface of a data set, and labels that are classes.

    Raises:
        DataError: it has not.
    """
    names = [name for name in dir(Dataset) if not name.startswith("_") and name != "subset"]
    lacking = [name for name in (*names, "__len__") if not hasattr(dataset, name)]
    if lacking or isinstance(dataset, type) or not len(dataset):
        remedy = "load one with robustill.load_data, or make a robustill.data.ImageDataset"
        raise DataError(f"dataset is {describe(dataset)}, expected a data set with images: {remedy}")
    where = f"{dataset.name} ({dataset.split})"
    if not isinstance(dataset.labels, Tensor):
        raise DataError(f"{where}: its labels are {describe(dataset.labels)}, expected a torch.Tensor, int64 [N]")
    num_classes = check_integer(f"{where}: num_classes", dataset.num_classes, at_least=1, error=DataError)
    if len(dataset.classes) != num_classes:
        raise DataError(f"{where}: {len(dataset.classes)} names of classes, expected {num_classes}, one for each class")
    check_labels(dataset.labels, len(dataset), num_classes, where)


def pixel_warnings(dataset: Dataset) -> list[str]:
    """Describe what is wrong with images that nobody can mean, such as black ones.

    Args:
        dataset: all its images are looked at if they are in memory and a few of them look wrong; otherwise a few.

    Returns:
        One line, in a list; empty if nothing is wrong.

    Raises:
        DataError: the images are not bytes, such as those in [0,1] that would be divided by 255 again.
    """
    N, where = len(dataset), f"{dataset.name} ({dataset.split})"
    few = torch.arange(0, N, max(1, N // _NUM_PROBE_IMAGES))
    images = dataset.read(few)
    shape = [len(few), *dataset.image_shape]
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or list(images.shape) != shape:
        is_float = isinstance(images, Tensor) and images.is_floating_point()
        remedy = ": multiply them by 255 and round" if is_float else ""
        raise DataError(f"{where}: its images are {describe(images)}, expected uint8 {shape}{remedy}")
    found = _describe_pixels(images)
    if found is not None and isinstance(dataset, ImageDataset):
        found = _describe_pixels(dataset.images)
    elif found is not None:
        found += f" (in {len(few)} of {N} images)"
    return [] if found is None else [f"{where}: {found}"]


def _describe_pixels(images: Tensor) -> str | None:
    lowest, highest = int(images.min()), int(images.max())
    if lowest == highest:
        colour = {0: ", which is black", 255: ", which is white"}.get(lowest, "")
        return f"every pixel is {lowest} of 255{colour}: store the images again"
    if highest <= DARKEST_WHITE:
        return (
            f"no pixel is above {highest} of 255, so the images are nearly black: were they divided by 255 twice, or "
            "stored as 0 and 1? Multiply them to reach 255"
        )
    if len(images) > 1 and bool((images == images[:1]).all()):
        return "all images are the same: store them again"
    return None


def check_labels(labels: Tensor, count: int, num_classes: int, where: str | Path) -> None:
    """Check that labels are int64 [count] with values in [0, num_classes).

    Args:
        labels: the labels.
        count: the expected number of labels.
        num_classes: K.
        where: the file or data set, for the error.

    Raises:
        DataError: they are not.
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


def count_classes(highest: int, where: str | Path) -> int:
    """Return the number of classes of a data set whose highest label is this.

    Args:
        highest: the highest label of the training images.
        where: the file or data set, for the error.

    Raises:
        DataError: so many classes are a mistake.
    """
    if highest >= _MOST_CLASSES:
        raise DataError(f"{where}: found labels up to {highest}, expected less than {_MOST_CLASSES:,} classes")
    return highest + 1


def warn_of_missing_classes(labels: Tensor, classes: Sequence[str], where: str | Path) -> None:
    """Warn of classes without a single image.

    Args:
        labels: int64 [N].
        classes: the name of each class.
        where: the file or folder, for the warning.
    """
    present = set(labels.tolist())
    missing = [name for label, name in enumerate(classes) if label not in present]
    if missing:
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        warnings.warn(
            f"{where}: no images of {len(missing)} of the {len(classes)} classes ({shown}): the results are about the "
            "other classes",
            stacklevel=4,
        )
