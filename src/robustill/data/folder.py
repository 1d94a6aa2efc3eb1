"""Images in folders, one folder for each class; in memory if they fit, else decoded on demand.

`read_folder` reads a split; a `StreamingDataset` decodes its images when a batch needs them.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robustill.core.errors import DataError, printable
from robustill.core.files import reading
from robustill.core.progress import Progress
from robustill.data.images import Dataset, ImageDataset, Request, Split, check_labels, warn_of_missing_classes

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"])
EIGHT_BIT_MODES = frozenset(["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"])
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")
"""Pillow's decoders of SUFFIXES. Without the list it tries all of them, and starts Ghostscript for PostScript."""
MEMORY_BOUND = 2**30
"""Largest number of decoded bytes for which a folder is stored in memory."""
SPLIT_RULE = "one image in five of each class is for testing: those with the smallest SHA-256 of CLASS/FILE"
"""The split of a folder of classes that has no folders train and test: a function of the names alone, so that every
machine and every evaluation have the same test images."""


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
        split_rule: how training and test images were told apart, if their folders do not.

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
    split_rule: str | None = None

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
                digest.update(f"{file}\0{path.stat().st_size}\n".encode(errors="surrogateescape"))
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

    The folders in ROOT/train are the classes, or those in ROOT/test if there is no training folder. A root with neither
    holds the classes itself, ROOT/CLASS/FILE, and is split by SPLIT_RULE.
    """
    is_divided = not _holds_classes(request.root)
    folder = request.root / request.split if is_divided else request.root
    if not folder.is_dir():
        raise request.missing(folder, f"folders of classes in {request.root}")
    classes = (_class_names(request.root / "train") if is_divided else ()) or _class_names(folder)
    if not classes:
        raise DataError(f"{folder}: no class folders, expected {request.split}/CLASS/IMAGE")
    if is_divided:
        unknown = sorted(set(_class_names(folder)) - set(classes))
        if unknown:
            raise DataError(f"{folder / unknown[0]}: a class that is not in {request.root / 'train'}")
    elif request.split == "train":
        warnings.warn(f"{folder} has no folders train and test: {SPLIT_RULE}", stacklevel=2)
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        names = _image_names(folder / name, may_be_empty=is_divided and request.split == "test")
        if not is_divided:
            names = _part_of_class(folder / name, names, request.split)
        files += [f"{name}/{file}" for file in names]
        labels += [label] * len(names)
    _check_found(folder, classes, labels)
    streaming = StreamingDataset(
        name=request.name,
        split=request.split,
        root=folder,
        files=tuple(files),
        labels=torch.tensor(labels, dtype=torch.int64),
        classes=tuple(map(printable, classes)),
        image_shape=(3, *_common_size([folder / file for file in files], request.image_size)),
        image_size=request.image_size,
        split_rule=None if is_divided else SPLIT_RULE,
    )
    decoded_bytes = len(streaming) * int(np.prod(streaming.image_shape))
    return _load_all(streaming) if decoded_bytes <= MEMORY_BOUND else streaming


def decode(path: Path, image_size: int | None = None) -> Tensor:
    """Decode an image file to RGB, uint8 [3,H,W]; transparency is ignored, the orientation in its EXIF data applied.

    Args:
        path: the file.
        image_size: the image is resized (bilinear) so that the shorter side has this many pixels, then cropped to the
            centre square; None leaves it unchanged.

    Raises:
        DataError: the file is damaged, or its pixels have more than 8 bits, for which there is no rule to map them to
            0..255.
    """
    from PIL import Image

    with _opened(path) as picture:
        if picture.mode not in EIGHT_BIT_MODES:
            raise DataError(f"{path}: pixels of mode {picture.mode}, expected 8 bits a channel; convert the file")
        orientation = _orientation(picture)
        image = picture.convert("RGB")
        if orientation in _TRANSPOSED:
            image = image.transpose(Image.Transpose[_TRANSPOSED[orientation]])
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
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_hidden(path)))


def _holds_classes(root: Path) -> bool:
    """Return whether a folder has no folders train and test, but several folders of images."""
    if (root / "train").is_dir() or (root / "test").is_dir():
        return False
    with_images = [name for name in _class_names(root) if _image_names(root / name, may_be_empty=True)]
    return len(with_images) > 1


def _part_of_class(folder: Path, names: list[str], split: Split) -> list[str]:
    """Return the training or the test images of one class by SPLIT_RULE, in the order of their names.

    Raises:
        DataError: there is one image alone, which cannot be both.
    """
    if len(names) < 2:
        raise DataError(f"{folder}: one image, expected one to train on and one to test on; add images of this class")
    # Some systems store an accented letter as two characters.
    digests = {
        name: hashlib.sha256(
            unicodedata.normalize("NFC", f"{folder.name}/{name}").encode(errors="surrogateescape")
        ).digest()
        for name in names
    }
    num_test = max(1, (len(names) + 2) // 5)
    test = set(sorted(names, key=lambda name: digests[name])[:num_test])
    return [name for name in names if (name in test) == (split == "test")]


def _check_found(folder: Path, classes: tuple[str, ...], labels: list[int]) -> None:
    """Check that there are images, and warn of classes without any."""
    if not labels:
        raise DataError(f"{folder}: class folders without images ({', '.join(sorted(SUFFIXES))})")
    warn_of_missing_classes(torch.tensor(labels), classes, folder)


def _is_hidden(path: Path) -> bool:
    """Return whether a name is none of the user's: .ipynb_checkpoints, and what macOS puts beside files (._0.png)."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def _image_names(folder: Path, *, may_be_empty: bool) -> list[str]:
    """Return the names of the images of one class; of a training set, every class must have images."""
    if not folder.is_dir():
        if may_be_empty:
            return []
        raise DataError(f"{folder}: no such class folder, expected one for each class of the training set")
    files = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("._"))
    names = sorted(path.name for path in files if path.is_file())
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
    with _opened(path) as picture:
        return (picture.width, picture.height) if _orientation(picture) >= 5 else (picture.height, picture.width)


# What an EXIF orientation asks for, by the names of Pillow; 1 is upright, and from 5 on the sides are exchanged.
_TRANSPOSED = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_ORIENTATION_TAG = 0x0112


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image with the decoders of FORMATS alone; whatever a damaged file raises is one DataError."""
    from PIL import Image, UnidentifiedImageError

    with reading(path):
        try:
            picture = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"no image in the format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
        with picture:
            yield picture


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, from the header; 1 where there is none or it is damaged."""
    if "exif" not in picture.info:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # EXIF data of a stranger can make its reader fail in any way, and the pixels are whole.
        return 1
    return value if value in _TRANSPOSED else 1


def _format_size(sides: Iterable[int]) -> str:
    return "×".join(str(side) for side in sides)


def _load_all(streaming: StreamingDataset) -> ImageDataset:
    """Decode all images into memory."""
    images = torch.empty(len(streaming), *streaming.image_shape, dtype=torch.uint8)
    with Progress(f"reading {streaming.root}", total=len(streaming), unit="images", delay=2) as progress:
        for ids in torch.split(torch.arange(len(streaming)), 256):
            images[ids] = streaming.read(ids)
            progress.advance(len(ids))
    return ImageDataset(
        name=streaming.name,
        split=streaming.split,
        images=images,
        labels=streaming.labels,
        classes=streaming.classes,
        split_rule=streaming.split_rule,
    )
