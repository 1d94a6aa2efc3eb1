"""CIFAR-10 and CIFAR-100, in the official Python and binary layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustill.core.errors import DataError
from robustill.core.files import reading
from robustill.data.images import ImageDataset, Request, check_labels
from robustill.data.pickles import LARGEST_PICKLE, read_pickle

PIXELS = 3 * 32 * 32
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FINE_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_FINE_NAMES.split())


class _Layout(NamedTuple):
    """A published layout: its folder, the files of each split, and the function that reads a file."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    read: Callable[[Path], tuple[Tensor, Tensor]]


def read_cifar10(request: Request) -> ImageDataset:
    """Read ROOT/cifar-10-batches-py, ROOT/cifar-10-batches-bin, or the files of either in ROOT itself."""
    batches = tuple(f"data_batch_{number}" for number in range(1, 6))
    binary = tuple(f"{batch}.bin" for batch in batches)
    layouts = (
        _Layout("cifar-10-batches-py", batches, ("test_batch",), lambda path: _read_pickle_batch(path, "labels")),
        _Layout(
            "cifar-10-batches-bin", binary, ("test_batch.bin",), lambda path: _read_binary_batch(path, label_bytes=1)
        ),
    )
    return _read(request, layouts, CIFAR10_CLASSES)


def read_cifar100(request: Request) -> ImageDataset:
    """Read ROOT/cifar-100-python, ROOT/cifar-100-binary, or the files of either in ROOT itself; fine labels."""
    layouts = (
        _Layout("cifar-100-python", ("train",), ("test",), lambda path: _read_pickle_batch(path, "fine_labels")),
        _Layout(
            "cifar-100-binary", ("train.bin",), ("test.bin",), lambda path: _read_binary_batch(path, label_bytes=2)
        ),
    )
    return _read(request, layouts, CIFAR100_CLASSES)


def _read(request: Request, layouts: tuple[_Layout, ...], classes: tuple[str, ...]) -> ImageDataset:
    """Read a split in the first layout whose files are all there."""
    folders = [request.root / layout.folder for layout in layouts]
    candidates = list(zip(folders, layouts, strict=True)) + [(request.root, layout) for layout in layouts]
    first_missing: Path | None = None
    for folder, layout in candidates:
        names = layout.train if request.split == "train" else layout.test
        paths = [folder / name for name in names]
        missing = [path for path in paths if not path.is_file()]
        if not missing:
            parts = [layout.read(path) for path in paths]
            for path, (images, labels) in zip(paths, parts, strict=True):
                check_labels(labels, len(images), len(classes), path)
            return ImageDataset(
                name=request.name,
                split=request.split,
                images=torch.cat([images for images, _ in parts]),
                labels=torch.cat([labels for _, labels in parts]),
                classes=classes,
            )
        if len(missing) < len(paths) and first_missing is None:
            first_missing = missing[0]
    # Where some files of a layout are there, the error names the missing one.
    if first_missing is not None:
        raise request.missing(first_missing)
    raise request.missing(*folders)


def _read_pickle_batch(path: Path, label_key: str) -> tuple[Tensor, Tensor]:
    """Read a pickled dictionary with `data`, uint8 [n, 3072], and a list of labels."""
    with reading(path):
        # A file that is too large is refused before it is read.
        if path.stat().st_size > LARGEST_PICKLE:
            raise DataError(f"{path}: {path.stat().st_size} bytes, expected at most {LARGEST_PICKLE}")
        try:
            content = read_pickle(path.read_bytes())
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    images, labels = content.get("data"), content.get(label_key)
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != PIXELS:
        raise DataError(f"{path}: no array `data` of shape [N, {PIXELS}]; replace the file")
    return _to_images(images), _to_labels(labels, label_key, path)


def _to_labels(labels: Any, label_key: str, path: Path) -> Tensor:
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: no list of integers `{label_key}`; replace the file")
    with reading(path):
        return torch.tensor(labels, dtype=torch.int64)


def _read_binary_batch(path: Path, *, label_bytes: int) -> tuple[Tensor, Tensor]:
    """Read records of `label_bytes`, the last of which is the label, and 3072 pixels."""
    with reading(path):
        content = np.fromfile(path, dtype=np.uint8)
    record = label_bytes + PIXELS
    if len(content) == 0 or len(content) % record:
        raise DataError(
            f"{path}: {len(content)} bytes, expected a multiple of {record}; the file is truncated, replace it"
        )
    records = content.reshape(-1, record)
    return _to_images(records[:, label_bytes:]), torch.from_numpy(records[:, label_bytes - 1].astype(np.int64))


def _to_images(pixels: np.ndarray) -> Tensor:
    # Copied because neither the bytes of a pickle nor a column of records are writable and contiguous.
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
