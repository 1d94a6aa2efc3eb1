"""Images in folders, one folder a class; in memory where they fit, else decoded on demand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustill.core.errors import DataError
from robustill.core.files import reading
from robustill.data.images import Dataset, ImageDataset, Request, Split, check_labels

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"])
EIGHT_BIT_MODES = frozenset(["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"])
MEMORY_BOUND = 2**30
"""Decoded bytes up to which a folder is held in memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamingDataset:
    """An image folder that is decoded on demand, by a few threads.

    Args:
        name: of the set.
        split: "train" or "test".
        root: the folder that `files` are relative to.
        files: N relative paths, CLASS/FILE.
        labels: int64 [N], each in [0, K).
        classes: K names.
        image_shape: (C, H, W).
        image_size: shorter side brought to this, then the centre square; None for images as they are.

    Raises:
        DataError: no image, or a label out of range.
    """

    name: str
    split: Split
    root: Path
    files: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    image_size: int | None = None

    def __post_init__(self) -> None:
        check_labels(self.labels, len(self.files), len(self.classes), f"{self.name} ({self.split})")

    def __len__(self) -> int:
        return len(self.files)

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of image shape, relative paths, file sizes and labels; pixels are not read."""
        digest = hashlib.sha256(repr(self.image_shape).encode())
        for file in self.files:
            path = self.root / file
            with reading(path):
                digest.update(f"{file}\0{path.stat().st_size}\n".encode())
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def read(self, indices: Tensor) -> Tensor:
        """The images with these ids, uint8 [B,C,H,W].

        Raises:
            DataError: a file is missing or damaged, or changed its size.
        """
        paths = [self.root / self.files[index] for index in indices.tolist()]
        images = list(self._pool.map(partial(decode, image_size=self.image_size), paths))
        for path, image in zip(paths, images, strict=True):
            if tuple(image.shape) != self.image_shape:
                raise DataError(f"{path}: {_size(image.shape[1:])} pixels, expected {_size(self.image_shape[1:])}")
        return torch.stack(images) if images else torch.empty(0, *self.image_shape, dtype=torch.uint8)

    def subset(self, ids: Tensor, labels: Tensor | None = None) -> StreamingDataset:
        """These images alone, renumbered from 0 in the given order; with other labels, [N], in place of their own."""
        chosen = (self.labels if labels is None else labels)[ids]
        return replace(self, files=tuple(self.files[index] for index in ids.tolist()), labels=chosen)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")


def read_folder(request: Request) -> Dataset:
    """ROOT/train/CLASS/FILE and ROOT/test/CLASS/FILE; classes in the order of their names, images as RGB.

    The training folder names the classes; where there is none, the test folder does.
    """
    folder = request.root / request.split
    if not folder.is_dir():
        raise request.missing(folder)
    classes = _class_names(request.root / "train") or _class_names(folder)
    if not classes:
        raise DataError(f"{folder}: no class folders, expected {request.split}/CLASS/IMAGE")
    unknown = sorted(set(_class_names(folder)) - set(classes))
    if unknown:
        raise DataError(f"{folder / unknown[0]}: a class that {request.root / 'train'} does not have")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images_in(folder / name)
        files += [f"{name}/{file}" for file in found]
        labels += [label] * len(found)
    streaming = StreamingDataset(
        name=request.name,
        split=request.split,
        root=folder,
        files=tuple(files),
        labels=torch.tensor(labels, dtype=torch.int64),
        classes=classes,
        image_shape=(3, *_common_size([folder / file for file in files], request.image_size)),
        image_size=request.image_size,
    )
    decoded_bytes = len(streaming) * int(np.prod(streaming.image_shape))
    return _in_memory(streaming) if decoded_bytes <= MEMORY_BOUND else streaming


def decode(path: Path, image_size: int | None = None) -> Tensor:
    """One image file as RGB, uint8 [3,H,W]; transparency is ignored.

    Args:
        path: the file.
        image_size: shorter side brought to this (bilinear), then the centre square; None for the image as it is.

    Raises:
        DataError: a damaged file, or pixels of more than 8 bits, which no rule brings to 0..255.
    """
    from PIL import Image

    with reading(path), Image.open(path) as picture:
        if picture.mode not in EIGHT_BIT_MODES:
            raise DataError(f"{path}: pixels of mode {picture.mode}, expected 8 bits a channel; convert the file")
        image = picture.convert("RGB")
        if image_size is not None and image.size != (image_size, image_size):
            scale = image_size / min(image.size)
            width, height = (max(image_size, round(side * scale)) for side in image.size)
            left, top = (width - image_size) // 2, (height - image_size) // 2
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            image = image.crop((left, top, left + image_size, top + image_size))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _images_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such class folder, expected one for each class of the training set")
    found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise DataError(f"{folder}: a class folder without images ({', '.join(sorted(SUFFIXES))})")
    return found


def _common_size(paths: list[Path], image_size: int | None) -> tuple[int, int]:
    """(H, W) of every image; only headers are read."""
    if image_size is not None:
        return image_size, image_size
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        sizes = pool.map(_header_size, paths)
        first = next(sizes)
        for path, size in zip(paths[1:], sizes, strict=True):
            if size != first:
                raise DataError(
                    f"{path}: {_size(size)} pixels while {paths[0]} has {_size(first)}; "
                    "give --data.image-size to bring all images to one size"
                )
    return first


def _header_size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with reading(path), Image.open(path) as picture:
        return picture.height, picture.width


def _size(sides: Iterable[int]) -> str:
    return "×".join(str(side) for side in sides)


def _in_memory(streaming: StreamingDataset) -> ImageDataset:
    images = torch.empty(len(streaming), *streaming.image_shape, dtype=torch.uint8)
    for ids in torch.split(torch.arange(len(streaming)), 1024):
        images[ids] = streaming.read(ids)
    return ImageDataset(
        name=streaming.name,
        split=streaming.split,
        images=images,
        labels=streaming.labels,
        classes=streaming.classes,
    )
