"""Zip archives of arrays and tensors from untrusted sources: the unpacked size is checked before unpacking."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from robustill.core.errors import first_line

LARGEST_ARRAYS = 2**32
"""The largest total size of the arrays of an .npz file, in bytes: a small file can unpack to any number of zeros."""


@contextmanager
def opened_arrays(file: IO[bytes]) -> Iterator[np.lib.npyio.NpzFile]:
    """Open the arrays of an .npz file without unpickling anything.

    Raises:
        Exception: of any type, if the file is damaged or too large; the caller adds the name of the file.
    """
    with zipfile.ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > LARGEST_ARRAYS:
        raise ValueError(f"{size} bytes when unpacked, expected at most {LARGEST_ARRAYS}")
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        yield arrays


def read_arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """Return all arrays of an .npz file by name.

    Raises:
        ValueError: the file is damaged, too large, or holds something other than arrays.
    """
    try:
        with opened_arrays(io.BytesIO(content)) as archive:
            # Each member is read to its end: only there does zipfile check its checksum.
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # A damaged archive can make its readers fail in any way.
        raise ValueError(first_line(error)) from None
    others = [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]
    if others:
        raise ValueError(f"{others[0]} is no array")
    return arrays


def refuse_zip_bomb(file: IO[bytes], size: int) -> None:
    """Check that a file of torch.save unpacks to no more than its size: torch.save never compresses.

    Args:
        file: the file at its beginning, where it is left; one of torch's older format, which is no archive, passes.
        size: the size of the file in bytes.

    Raises:
        ValueError: the file would unpack to more.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > size:
            raise ValueError(f"{unpacked} bytes when unpacked, of a file of {size}: torch.save does not compress")
    file.seek(0)
