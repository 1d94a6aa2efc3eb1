"""Images in folders, one folder for each class; in memory if they fit, else decoded on demand.

`read_folder` reads a split; a `StreamingDataset` decodes its images when a batch needs them.
"""

from __future__ import annotations

import hashlib
import os
import warnings
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
"""Largest number of decoded bytes for which a folder is stored in memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamingDataset:
    """An image folder that is decoded on demand, by up to eight threads.

    Args:
        name: the name of the data set.
        split: "train" or "test".
        root: the folder that `files` are relative to.
        files: N relative paths, CLASS/FILE.
        labels: int64 [N], each in [0, K).
        classes: K names.
        image_shape: (C, H, W).
        image_size: images are resized so that the shorter side has this many pixels, then cropped to the centre square;
            None leaves them unchanged.

    Raises:
        DataError: there are no images, or a label is out of range.
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
        """Return the images with these ids, uint8 [B,C,H,W].

        Raises:
            DataError: a file is missing or damaged, or has another size than at the start.
        """
        paths = [self.root / self.files[index] for index in indices.tolist()]
        images = list(self._pool.map(partial(decode, image_size=self.image_size), paths))
        for path, image in zip(paths, images, strict=True):
            if tuple(image.shape) != self.image_shape:
                raise DataError(
                    f"{path}: {_format_size(image.shape[1:])} pixels, expected {_format_size(self.image_shape[1:])}"
                )
        return torch.stack(images) if images else torch.empty(0, *self.image_shape, dtype=torch.uint8)

    def subset(self, ids: Tensor, labels: Tensor | None = None) -> StreamingDataset:
        """Return a data set of these images, numbered from 0 in this order; `labels`, [N], replace its own."""
        all_labels = self.labels if labels is None else labels
        files = tuple(self.files[index] for index in ids.tolist())
        return replace(self, files=files, labels=all_labels[ids])

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")


def read_folder(request: Request) -> Dataset:
    """Read ROOT/train/CLASS/FILE or ROOT/test/CLASS/FILE; classes are sorted by name, images are RGB.

    The folders in ROOT/train are the classes, or those in ROOT/test if there is no training folder.
    """
    folder = request.root / request.split
    if not folder.is_dir():
        raise request.missing(folder)
    classes = _class_names(request.root / "train") or _class_names(folder)
    if not classes:
        raise DataError(f"{folder}: no class folders, expected {request.split}/CLASS/IMAGE")
    unknown = sorted(set(_class_names(folder)) - set(classes))
    if unknown:
        raise DataError(f"{folder / unknown[0]}: a class that is not in {request.root / 'train'}")
    files: list[str] = []
    labels: list[int] = []
    missing = []
    for label, name in enumerate(classes):
        names = _image_names(folder / name, may_be_empty=request.split == "test")
        if not names:
            missing.append(name)
        files += [f"{name}/{file}" for file in names]
        labels += [label] * len(names)
    if not files:
        raise DataError(f"{folder}: class folders without images ({', '.join(sorted(SUFFIXES))})")
    if missing:
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        warnings.warn(
            f"{folder}: no images of {len(missing)} of the {len(classes)} classes ({shown}): the results are about the "
            "other classes",
            stacklevel=2,
        )
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
    return _load_all(streaming) if decoded_bytes <= MEMORY_BOUND else streaming


def decode(path: Path, image_size: int | None = None) -> Tensor:
    """Decode an image file to RGB, uint8 [3,H,W]; transparency is ignored.

    Args:
        path: the file.
        image_size: the image is resized (bilinear) so that the shorter side has this many pixels, then cropped to the
            centre square; None leaves it unchanged.

    Raises:
        DataError: the file is damaged, or its pixels have more than 8 bits, for which there is no rule to map them to
            0..255.
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


def _image_names(folder: Path, *, may_be_empty: bool) -> list[str]:
    """Return the names of the images of one class; of a training set, every class must have images."""
    if not folder.is_dir():
        if may_be_empty:
            return []
        raise DataError(f"{folder}: no such class folder, expected one for each class of the training set")
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not names and not may_be_empty:
        raise DataError(f"{folder}: a class folder without images ({', '.join(sorted(SUFFIXES))})")
    return names


def _common_size(paths: list[Path], image_size: int | None) -> tuple[int, int]:
    """Return (H, W) if all images have the same size; only their headers are read."""
    if image_size is not None:
        return image_size, image_size
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        sizes = pool.map(_header_size, paths)
        first = next(sizes)
        for path, size in zip(paths[1:], sizes, strict=True):
            if size != first:
                raise DataError(
                    f"{path}: {_format_size(size)} pixels while {paths[0]} has {_format_size(first)}; "
                    "give --data.image-size to resize all images to one size"
                )
    return first


def _header_size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with reading(path), Image.open(path) as picture:
        return picture.height, picture.width


def _format_size(sides: Iterable[int]) -> str:
    return "×".join(str(side) for side in sides)


def _load_all(streaming: StreamingDataset) -> ImageDataset:
    """Decode all images into memory."""
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
