"""Images and labels in NumPy archives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustill.core.archives import opened_arrays
from robustill.core.errors import DataError
from robustill.core.files import reading
from robustill.data.images import ImageDataset, Request, Split, check_labels, count_classes, warn_of_missing_classes

IMAGE_KEYS = ("images", "x", "image")
LABEL_KEYS = ("labels", "y", "label")
CHANNELS = (1, 3)


def read_npz(request: Request) -> ImageDataset:
    """Read ROOT if it is an .npz file, whatever the split, or ROOT/train.npz or ROOT/test.npz if it is a folder.

    The arrays are named images|x|image and labels|y|label. Images are [N,H,W], [N,H,W,C] or [N,C,H,W] with 1 or 3
    channels; uint8, or floats in [0,1], which are rounded to the nearest of 256 levels. Without `num_classes` the
    number of classes follows from the labels of train.npz, if it exists.
    """
    path = _path(request, request.split)
    if not path.is_file():
        raise request.missing(path)
    with _open(path) as archive:
        images = _to_images(archive[_key(archive, IMAGE_KEYS, path)], path)
        labels = _to_labels(archive[_key(archive, LABEL_KEYS, path)], path)
    num_classes = request.num_classes or _num_classes(request)
    check_labels(labels, len(images), num_classes, path)
    classes = tuple(str(label) for label in range(num_classes))
    if request.split == "test":
        warn_of_missing_classes(labels, classes, path)
    return ImageDataset(name=request.name, split=request.split, images=images, labels=labels, classes=classes)


@contextmanager
def _open(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with reading(path), path.open("rb") as file, opened_arrays(file) as archive:
        yield archive


def _path(request: Request, split: Split) -> Path:
    return request.root if request.root.suffix == ".npz" else request.root / f"{split}.npz"


def _num_classes(request: Request) -> int:
    """Count the classes in the training file, if it exists: test labels must not determine what is trained."""
    path = _path(request, "train")
    if not path.is_file():
        path = _path(request, request.split)
    with _open(path) as archive:
        highest = int(_to_labels(archive[_key(archive, LABEL_KEYS, path)], path).max())
    return count_classes(highest, request.root)


def _key(archive: np.lib.npyio.NpzFile, names: tuple[str, ...], path: Path) -> str:
    """Return the first of these names that the archive has."""
    for name in names:
        if name in archive:
            return name
    present = ", ".join(archive.files) or "none"
    raise DataError(f"{path}: no array named {'|'.join(names)}, found {present}")


def _to_images(array: np.ndarray, path: Path) -> Tensor:
    if array.size == 0 or array.ndim not in (3, 4):
        raise DataError(f"{path}: images of shape {array.shape}, expected [N,H,W], [N,H,W,C] or [N,C,H,W]")
    if array.ndim == 3:
        array = array[:, None]
    else:
        first, last = array.shape[1] in CHANNELS, array.shape[3] in CHANNELS
        if first == last:
            problem = "either axis could be the channels" if first else "neither 1 nor 3 channels"
            raise DataError(f"{path}: images of shape {array.shape}: {problem}; store them as [N,C,H,W] or [N,H,W,C]")
        if last:
            array = array.transpose(0, 3, 1, 2)
    if array.dtype.kind == "f":
        array = to_bytes(array, path)
    if array.dtype != np.uint8:
        raise DataError(f"{path}: images are {array.dtype}, expected uint8, or floats in [0,1]")
    return torch.from_numpy(np.ascontiguousarray(array))


def to_bytes(array: np.ndarray, path: Path | str) -> np.ndarray:
    """Return floats in [0,1] as the nearest of 256 levels.

    Args:
        array: the floats.
        path: where they come from, for the error.

    Raises:
        DataError: they are not in [0,1].
    """
    lowest, highest = float(array.min()), float(array.max())
    if np.isnan(lowest):
        raise DataError(f"{path}: images have NaN, expected numbers in [0,1]")
    if lowest < 0 or highest > 1:
        # With all digits: 1.0000001 is not to read as 1.
        low, high = (f"{each:g}" if float(f"{each:g}") == each else repr(each) for each in (lowest, highest))
        raise DataError(f"{path}: images from {low} to {high}, expected floats in [0,1] (or store uint8)")
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8)


def _to_labels(array: np.ndarray, path: Path) -> Tensor:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "iu" or array.ndim != 1 or array.size == 0:
        raise DataError(f"{path}: labels are {array.dtype} of shape {array.shape}, expected integers of shape [N]")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise DataError(f"{path}: found labels from {array.min()} to {array.max()}, expected 0 or more")
    return torch.from_numpy(array.astype(np.int64))
