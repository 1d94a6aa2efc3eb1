"""MNIST and Fashion-MNIST in the idx format, plain or gzipped."""

from __future__ import annotations

import gzip
import io
import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustill.core.errors import DataError
from robustill.core.files import reading
from robustill.data.images import ImageDataset, Request, check_labels

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DIGIT_CLASSES = tuple(str(digit) for digit in range(10))
LARGEST_IDX = 2**32
"""Largest number of bytes that are read, since a header may claim any size and a small gzip file may contain it."""

_BLOCK = 2**24


def read_mnist(request: Request) -> ImageDataset:
    """Read ROOT/MNIST/raw, or the files in ROOT itself."""
    return _read(request, "MNIST", DIGIT_CLASSES)


def read_fashion_mnist(request: Request) -> ImageDataset:
    """Read ROOT/FashionMNIST/raw, or the files in ROOT itself."""
    return _read(request, "FashionMNIST", FASHION_CLASSES)


def _read(request: Request, folder: str, classes: tuple[str, ...]) -> ImageDataset:
    stem = "train" if request.split == "train" else "t10k"
    images = read_idx(_find(request, folder, f"{stem}-images-idx3-ubyte"), num_axes=3)
    labels_path = _find(request, folder, f"{stem}-labels-idx1-ubyte")
    labels = read_idx(labels_path, num_axes=1).to(torch.int64)
    check_labels(labels, len(images), len(classes), labels_path)
    return ImageDataset(
        name=request.name,
        split=request.split,
        images=images.unsqueeze(1),
        labels=labels,
        classes=classes,
    )


def _find(request: Request, folder: str, name: str) -> Path:
    folders = [request.root / folder / "raw", request.root]
    for parent in folders:
        for path in (parent / name, parent / f"{name}.gz"):
            if path.is_file():
                return path
    raise request.missing(*(parent / name for parent in folders))


def read_idx(path: Path, *, num_axes: int) -> Tensor:
    """Read an idx file of unsigned bytes.

    Args:
        path: the file; gzipped if its name ends in .gz.
        num_axes: the expected number of axes, 3 for images and 1 for labels.

    Returns:
        uint8, of the shape in the header.

    Raises:
        DataError: the format is another one, or the file has more or fewer bytes than its header says.
    """
    with reading(path), _open(path) as file:
        header = file.read(4 + 4 * num_axes)
        magic = bytes([0, 0, 8, num_axes])
        if header[:4] != magic:
            raise DataError(f"{path}: begins with {header[:4].hex()}, expected {magic.hex()} (idx); replace the file")
        shape = struct.unpack(f">{num_axes}I", header[4:])
        size = math.prod(shape)
        if size > LARGEST_IDX:
            raise DataError(f"{path}: the header claims {size} bytes, expected at most {LARGEST_IDX}; replace the file")
        content = _read_at_most(file, size + 1)
    if len(content) != size:
        amount = f"only {len(content)} bytes" if len(content) < size else "more bytes"
        raise DataError(f"{path}: {amount} of data, expected {size}; the file is damaged, replace it")
    with reading(path):
        # With one size of 0 the other sizes may still be too large for an array, which raises an error.
        return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).reshape(shape))


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _read_at_most(file: gzip.GzipFile | io.BufferedReader, limit: int) -> bytearray:
    """Read up to `limit` bytes in blocks, since one read would allocate the size that a header claims."""
    content = bytearray()
    while len(content) < limit:
        block = file.read(min(_BLOCK, limit - len(content)))
        if not block:
            break
        content += block
    return content
