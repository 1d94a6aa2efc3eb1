"""Zip archives of arrays and tensors from strangers: what they would unpack to is known before it is unpacked."""

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
"""Bytes that the arrays of one .npz file may have together: a small file can hold any number of zeros."""


@contextmanager
def opened_arrays(file: IO[bytes]) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of an .npz file, none of which is unpickled.

    Raises:
        Exception: any, over a file that is damaged or too large; the caller names it.
    """
    with zipfile.ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > LARGEST_ARRAYS:
        raise ValueError(f"{size} bytes when unpacked, expected at most {LARGEST_ARRAYS}")
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        yield arrays


def read_arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz file, by their names.

    Raises:
        ValueError: it is damaged, too large, or holds something else.
    """
    try:
        with opened_arrays(io.BytesIO(content)) as archive:
            # Read to its end: a checksum is looked at only there.
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # A damaged archive can make its readers fail in any way.
        raise ValueError(first_line(error)) from None
    others = [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]
    if others:
        raise ValueError(f"{others[0]} is no array")
    return arrays


def refuse_unpacking(file: IO[bytes], size: int) -> None:
    """See to it that what torch.save wrote is no larger than the file: its archives are never compressed.

    Args:
        file: at its beginning, where it is left; of the older format it may be no archive.
        size: of the file, in bytes.

    Raises:
        ValueError: it would unpack to more.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > size:
            raise ValueError(f"{unpacked} bytes when unpacked, of a file of {size}: torch.save does not compress")
    file.seek(0)
