"""SVHN's cropped digits, in the official MATLAB files.

`read_svhn` reads a split; below it is a reader of the numeric arrays in a MATLAB 5 file.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch

from robustill.core.errors import DataError
from robustill.core.files import reading
from robustill.data.images import ImageDataset, Request, check_labels

LARGEST_FILE = 2**31
"""Bytes of all variables after decompression; the largest official file, SVHN's extra part, has 1.6e9."""

# The MATLAB 5 format: bytes of the header, types of elements, types of numbers, classes of arrays and a flag.
_HEADER: Final = 128
_MATRIX: Final = 14
_COMPRESSED: Final = 15
_NUMBERS: Final = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES: Final = range(6, 16)
_COMPLEX: Final = 0x0800


def read_svhn(request: Request) -> ImageDataset:
    """Read ROOT/train_32x32.mat or ROOT/test_32x32.mat, where the label of the digit zero is 10."""
    path = request.root / f"{request.split}_32x32.mat"
    if not path.is_file():
        raise request.missing(path)
    with reading(path):
        try:
            content = read_matlab(path.read_bytes())
        except DataError as error:
            raise DataError(f"{path}: {error}; replace the file") from error
    images, labels = content.get("X"), content.get("y")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3:
        raise DataError(f"{path}: no uint8 array X of shape [H,W,3,N]; replace the file")
    if labels is None or not np.array_equal(labels, np.rint(labels)):
        raise DataError(f"{path}: no array y of whole numbers; replace the file")
    digits = torch.from_numpy(labels.ravel().astype(np.int64))
    digits[digits == 10] = 0
    check_labels(digits, images.shape[3], 10, path)
    return ImageDataset(
        name=request.name,
        split=request.split,
        images=torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))),
        labels=digits,
        classes=tuple(str(digit) for digit in range(10)),
    )


def read_matlab(content: bytes) -> dict[str, np.ndarray]:
    """Read the real numeric arrays of a file; other variables are left out.

    Args:
        content: the whole file, in format 5 (`save -v6` or `-v7`).

    Returns:
        The arrays by name, of the type in which the numbers are stored (MATLAB stores small whole doubles as bytes).

    Raises:
        DataError: the format is another one, or a length leads out of the file.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or content[124:126] not in (b"\x00\x01", b"\x01\x00"):
        raise DataError("not a MATLAB 5 file (MATLAB 7.3 files have another format: save with -v7)")
    arrays = {}
    decompressed_bytes = 0
    for kind, data in _elements(memoryview(content)[_HEADER:], order):
        if kind == _COMPRESSED:
            variable = _decompress(data, LARGEST_FILE - decompressed_bytes)
            decompressed_bytes += len(variable)
            kind, data = next(_elements(memoryview(variable), order), (0, data))
        if kind == _MATRIX:
            name, array = _read_matrix(data, order)
            if array is not None:
                arrays[name] = array
    return arrays


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield (type, data) of each element; data of up to four bytes are part of the tag itself."""
    position = 0
    while position < len(content):
        if len(content) - position < 8:
            raise DataError("the file is truncated")
        kind, size = (int(word) for word in np.frombuffer(content[position : position + 8], dtype=f"{order}u4"))
        packed = kind >> 16
        if packed:
            kind, size, start = kind & 0xFFFF, packed, position + 4
            end = position + 8
            if size > 4:
                raise DataError(f"{size} bytes packed into an element that holds 4")
        else:
            start = position + 8
            # All elements but compressed ones are padded to eight bytes.
            end = start + (size if kind == _COMPRESSED else size + -size % 8)
        if start + size > len(content):
            raise DataError(f"the file is truncated: an element of {size} bytes, {len(content) - start} are left")
        yield kind, content[start : start + size]
        position = end


def _decompress(data: memoryview, limit: int) -> bytes:
    stream = zlib.decompressobj()
    # One byte more than allowed, because a length of 0 would mean no limit.
    content = stream.decompress(data, limit + 1)
    if not stream.eof or len(content) > limit:
        raise DataError(f"a compressed variable is truncated, or there are more than {LARGEST_FILE} bytes")
    return content


def _read_matrix(data: memoryview, order: str) -> tuple[str, np.ndarray | None]:
    """Return the name of a matrix and its array, or None for an array that is not real and numeric."""
    parts = _elements(data, order)
    (_, flags), (_, sizes), (_, name) = next(parts), next(parts), next(parts)
    flag = int(np.frombuffer(flags[:4], dtype=f"{order}u4")[0])
    if flag & 0xFF not in _NUMERIC_CLASSES or flag & _COMPLEX:
        return bytes(name).decode("latin-1"), None
    kind, numbers = next(parts)
    if kind not in _NUMBERS:
        raise DataError(f"numbers of the unknown type {kind}")
    shape = np.frombuffer(sizes, dtype=f"{order}i4").tolist()
    array = np.frombuffer(numbers, dtype=order + _NUMBERS[kind]).reshape(shape, order="F")
    return bytes(name).decode("latin-1"), array
