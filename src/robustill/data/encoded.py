"""Encoded images, such as PNG and JPEG, wherever they are stored: in memory if they fit, else decoded on demand.

`Encoded` is the interface of a store, `data_set_of` makes a data set of one, and a `StreamingDataset` decodes its
images when a batch needs them.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from robustill.core.errors import DataError
from robustill.core.files import BoundedReader, reading
from robustill.core.progress import Progress
from robustill.data.images import Dataset, ImageDataset, Request, Split, check_labels

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"])
EIGHT_BIT_MODES = frozenset(["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"])
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")
"""Pillow's decoders of SUFFIXES. Without the list it tries all of them, and starts Ghostscript for PostScript."""
MEMORY_BOUND = 2**30
"""Largest number of decoded bytes for which a data set is stored in memory."""
LARGEST_ENCODED = 2**28
"""Largest size in bytes of an encoded image that is read into memory."""

_AT_A_TIME = 256
File: TypeAlias = Path | IO[bytes]


class Encoded(Protocol):
    """A store of encoded images, numbered from 0."""

    def __len__(self) -> int: ...

    def path(self, number: int) -> Path:
        """Return where an image is, for errors; the path of a file of many images goes on with the image's name."""

    def identity(self) -> Iterator[bytes]:
        """Yield what tells these images from others, for a fingerprint; pixels are not read."""

    def fetch(self, numbers: Sequence[int], pool: Executor) -> Sequence[File]:
        """Return these images for a decoder to open; what reading takes long is done by the threads of the pool.

        Raises:
            DataError: a file is missing, damaged or another one than at the start.
        """

    def subset(self, numbers: Tensor) -> Encoded:
        """Return these images, numbered from 0 in this order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamingDataset:
    """Images that are decoded on demand, by up to eight threads.

    Args:
        name: the name of the data set.
        split: "train" or "test".
        encoded: N images.
        labels: int64 [N], each in [0, K).
        classes: K names.
        image_shape: (C, H, W).
        image_size: images are resized so that the shorter side has this many pixels, then cropped to the centre square;
            None leaves them unchanged.
        split_rule: how training and test images were told apart, if their files do not.

    Raises:
        DataError: there are no images, or a label is out of range.
    """

    name: str
    split: Split
    encoded: Encoded
    labels: Tensor
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    image_size: int | None = None
    split_rule: str | None = None

    def __post_init__(self) -> None:
        check_labels(self.labels, len(self.encoded), len(self.classes), f"{self.name} ({self.split})")

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of image shape, names and sizes of the encoded images, and labels; pixels are not read."""
        digest = hashlib.sha256(repr(self.image_shape).encode())
        for part in self.encoded.identity():
            digest.update(part)
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def read(self, indices: Tensor) -> Tensor:
        """Return the images with these ids, uint8 [B,C,H,W].

        Raises:
            DataError: a file is missing or damaged, or an image has another size than at the start.
        """
        numbers = indices.tolist()
        paths = [self.encoded.path(number) for number in numbers]
        files = self.encoded.fetch(numbers, self._pool)
        images = list(self._pool.map(partial(decode, image_size=self.image_size), files, paths))
        for path, image in zip(paths, images, strict=True):
            if tuple(image.shape) != self.image_shape:
                raise DataError(
                    f"{path}: {_format_size(image.shape[1:])} pixels, expected {_format_size(self.image_shape[1:])}"
                )
        return torch.stack(images) if images else torch.empty(0, *self.image_shape, dtype=torch.uint8)

    def subset(self, ids: Tensor, labels: Tensor | None = None) -> StreamingDataset:
        """Return a data set of these images, numbered from 0 in this order; `labels`, [N], replace its own."""
        all_labels = self.labels if labels is None else labels
        return replace(self, encoded=self.encoded.subset(ids), labels=all_labels[ids])

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return _started_pool()


def data_set_of(
    request: Request, encoded: Encoded, labels: Tensor, classes: tuple[str, ...], split_rule: str | None
) -> Dataset:
    """Return encoded images as a data set, in memory if the decoded images take at most MEMORY_BOUND.

    Args:
        request: the request, of which name, split and image size are used.
        encoded: N images.
        labels: int64 [N], each in [0, K).
        classes: K names.
        split_rule: how training and test images were told apart, if their files do not.

    Raises:
        DataError: there are no images, a label is out of range, an image is damaged, or they have several sizes and no
            image size is given.
    """
    check_labels(labels, len(encoded), len(classes), f"{request.root} ({request.split})")
    streaming = StreamingDataset(
        name=request.name,
        split=request.split,
        encoded=encoded,
        labels=labels,
        classes=classes,
        image_shape=(3, *_common_size(encoded, request)),
        image_size=request.image_size,
        split_rule=split_rule,
    )
    decoded_bytes = len(streaming) * int(np.prod(streaming.image_shape))
    return _load_all(streaming, request) if decoded_bytes <= MEMORY_BOUND else streaming


def decode(file: File, path: Path | None = None, *, image_size: int | None = None) -> Tensor:
    """Decode an image to RGB, uint8 [3,H,W]; transparency is ignored, the orientation in its EXIF data applied.

    Args:
        file: the encoded image.
        path: where it is, for errors; None for a file of its own.
        image_size: the image is resized (bilinear) so that the shorter side has this many pixels, then cropped to the
            centre square; None leaves it unchanged.

    Raises:
        DataError: the file is damaged, or its pixels have more than 8 bits, for which there is no rule to map them to
            0..255.
    """
    from PIL import Image

    with _opened(file, path) as picture:
        if picture.mode not in EIGHT_BIT_MODES:
            raise DataError(
                f"{path or file}: pixels of mode {picture.mode}, expected 8 bits a channel; convert the file"
            )
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


def _started_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")


def _common_size(encoded: Encoded, request: Request) -> tuple[int, int]:
    """Return (H, W) if all images have the same size; only their headers are decoded."""
    if request.image_size is not None:
        return request.image_size, request.image_size
    first: tuple[int, int] | None = None
    with (
        _started_pool() as pool,
        Progress(f"sizes of {request.root}", total=len(encoded), unit="images", delay=2) as progress,
    ):
        for start in range(0, len(encoded), _AT_A_TIME):
            numbers = range(start, min(start + _AT_A_TIME, len(encoded)))
            paths = [encoded.path(number) for number in numbers]
            for path, size in zip(paths, pool.map(_header_size, encoded.fetch(numbers, pool), paths), strict=True):
                first = first or size
                if size != first:
                    raise DataError(
                        f"{path}: {_format_size(size)} pixels while {encoded.path(0)} has {_format_size(first)}; "
                        "give --data.image_size to resize all images to one size"
                    )
            progress.advance(len(numbers))
    assert first is not None
    return first


def _header_size(file: File, path: Path) -> tuple[int, int]:
    with _opened(file, path) as picture:
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
def _opened(file: File, path: Path | None) -> Iterator[Image.Image]:
    """Open an image with the decoders of FORMATS alone; whatever a damaged file raises is one DataError."""
    from PIL import Image, UnidentifiedImageError

    with (
        reading(path or Path(str(file))),
        BoundedReader(file) if isinstance(file, Path) else nullcontext(file) as source,
    ):
        try:
            picture = Image.open(source, formats=FORMATS)
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


def _load_all(streaming: StreamingDataset, request: Request) -> ImageDataset:
    """Decode all images into memory."""
    images = torch.empty(len(streaming), *streaming.image_shape, dtype=torch.uint8)
    with Progress(f"reading {request.root}", total=len(streaming), unit="images", delay=2) as progress:
        for ids in torch.split(torch.arange(len(streaming)), _AT_A_TIME):
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
