"""SVHN's cropped digits, in the official MATLAB files."""

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

_HEADER: Final = 128
_MATRIX: Final = 14
_COMPRESSED: Final = 15
_NUMBERS: Final = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES: Final = range(6, 16)
_COMPLEX: Final = 0x0800


def read_matlab(content: bytes) -> dict[str, np.ndarray]:
    """The real numeric arrays in a file; other variables are left out.

    Args:
        content: of the whole file, format 5 (`save -v6` or `-v7`).

    Returns:
        Name to array, of the type in which the numbers are stored (MATLAB stores small whole doubles as bytes).

    Raises:
        DataError: another format, or a length that leads out of the file.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or content[124:126] not in (b"\x00\x01", b"\x01\x00"):
        raise DataError("not a MATLAB 5 file (MATLAB 7.3 files are of another format: save with -v7)")
    arrays, unpacked = {}, 0
    for kind, data in _elements(memoryview(content)[_HEADER:], order):
        if kind == _COMPRESSED:
            variable = _decompressed(data, LARGEST_FILE - unpacked)
            unpacked += len(variable)
            kind, data = next(_elements(memoryview(variable), order), (0, data))
        if kind == _MATRIX:
            name, array = _matrix(data, order)
            if array is not None:
                arrays[name] = array
    return arrays


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, data) of each element; up to four bytes are packed into the tag itself."""
    place = 0
    while place < len(content):
        if len(content) - place < 8:
            raise DataError("the file is cut")
        kind, size = (int(word) for word in np.frombuffer(content[place : place + 8], dtype=f"{order}u4"))
        packed = kind >> 16
        if packed:
            kind, size, start = kind & 0xFFFF, packed, place + 4
            end = place + 8
            if size > 4:
                raise DataError(f"{size} bytes packed into an element that holds 4")
        else:
            start = place + 8
            # Compressed elements alone are not padded to eight bytes.
            end = start + (size if kind == _COMPRESSED else size + -size % 8)
        if start + size > len(content):
            raise DataError(f"the file is cut: an element of {size} bytes, {len(content) - start} are left")
        yield kind, content[start : start + size]
        place = end


def _decompressed(data: memoryview, most: int) -> bytes:
    stream = zlib.decompressobj()
    # One more than there may be: 0 would mean no limit.
    content = stream.decompress(data, most + 1)
    if not stream.eof or len(content) > most:
        raise DataError(f"a compressed variable is cut, or there are more than {LARGEST_FILE} bytes")
    return content


def _matrix(data: memoryview, order: str) -> tuple[str, np.ndarray | None]:
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


def read_svhn(request: Request) -> ImageDataset:
    """ROOT/train_32x32.mat and ROOT/test_32x32.mat; the files call the digit zero 10."""
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
