"""Images and labels in a NumPy archive."""

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
from robustill.data.images import ImageDataset, Request, Split, check_labels

IMAGE_KEYS = ("images", "x", "image")
LABEL_KEYS = ("labels", "y", "label")
CHANNELS = (1, 3)
_MOST_CLASSES = 100_000


def read_npz(request: Request) -> ImageDataset:
    """ROOT is one .npz file, which is then the split asked for, or a folder with train.npz and test.npz.

    Keys images|x|image and labels|y|label. Images are [N,H,W], [N,H,W,C] or [N,C,H,W] with 1 or 3 channels; uint8, or
    floats in [0,1], which are rounded to the nearest of 256 levels. Without `num_classes` there are as many classes as
    the labels of train.npz need, where there is one.
    """
    path = _path(request, request.split)
    if not path.is_file():
        raise request.missing(path)
    with _opened(path) as archive:
        images = _images(archive[_key(archive, IMAGE_KEYS, path)], path)
        labels = _labels(archive[_key(archive, LABEL_KEYS, path)], path)
    num_classes = request.num_classes or _count_classes(request)
    check_labels(labels, len(images), num_classes, path)
    return ImageDataset(
        name=request.name,
        split=request.split,
        images=images,
        labels=labels,
        classes=tuple(str(label) for label in range(num_classes)),
    )


@contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with reading(path), path.open("rb") as file, opened_arrays(file) as archive:
        yield archive


def _path(request: Request, split: Split) -> Path:
    return request.root if request.root.suffix == ".npz" else request.root / f"{split}.npz"


def _count_classes(request: Request) -> int:
    """As the training file has them, where there is one: test images must not decide what is trained."""
    trained = _path(request, "train")
    path = trained if trained.is_file() else _path(request, request.split)
    with _opened(path) as archive:
        highest = int(_labels(archive[_key(archive, LABEL_KEYS, path)], path).max())
    if highest >= _MOST_CLASSES:
        raise DataError(f"{request.root}: found labels up to {highest}, expected less than {_MOST_CLASSES:,} classes")
    return highest + 1


def _key(archive: np.lib.npyio.NpzFile, known: tuple[str, ...], path: Path) -> str:
    for key in known:
        if key in archive:
            return key
    raise DataError(f"{path}: no array named {'|'.join(known)}, found {', '.join(archive.files) or 'none'}")


def _images(array: np.ndarray, path: Path) -> Tensor:
    if array.size == 0 or array.ndim not in (3, 4):
        raise DataError(f"{path}: images of shape {array.shape}, expected [N,H,W], [N,H,W,C] or [N,C,H,W]")
    if array.ndim == 3:
        array = array[:, None]
    else:
        first, last = array.shape[1] in CHANNELS, array.shape[3] in CHANNELS
        if first == last:
            found = "either axis could be the channels" if first else "neither 1 nor 3 channels"
            raise DataError(f"{path}: images of shape {array.shape}: {found}; store them as [N,C,H,W] or [N,H,W,C]")
        if last:
            array = array.transpose(0, 3, 1, 2)
    if array.dtype.kind == "f":
        array = _to_bytes(array, path)
    if array.dtype != np.uint8:
        raise DataError(f"{path}: images are {array.dtype}, expected uint8, or floats in [0,1]")
    return torch.from_numpy(np.ascontiguousarray(array))


def _to_bytes(array: np.ndarray, path: Path) -> np.ndarray:
    lowest, highest = float(array.min()), float(array.max())
    if np.isnan(lowest):
        raise DataError(f"{path}: images hold NaN, expected numbers in [0,1]")
    if lowest < 0 or highest > 1:
        raise DataError(f"{path}: images from {lowest:g} to {highest:g}, expected floats in [0,1] (or store uint8)")
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8)


def _labels(array: np.ndarray, path: Path) -> Tensor:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "iu" or array.ndim != 1 or array.size == 0:
        raise DataError(f"{path}: labels are {array.dtype} of shape {array.shape}, expected integers of shape [N]")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise DataError(f"{path}: found labels from {array.min()} to {array.max()}, expected 0 or more")
    return torch.from_numpy(array.astype(np.int64))
