"""Zip archives of arrays and tensors from untrusted sources: the unpacked size is checked before unpacking."""

from __future__ import annotations

import io
import json
import os
import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from robustill.core.errors import first_line
from robustill.core.links import open_regular_file

LARGEST_ARRAYS = 2**32
"""The largest total size of the arrays of an .npz file, in bytes: a small file can unpack to any number of zeros."""

# Of a .safetensors file, as its own reader has it; and bytes beside the content of a member of an archive.
_LARGEST_HEADER = 100_000_000
_SLACK = 4096
# Of torch.save before 1.6: its first number, the largest size of a number in a tensor, and bounds of its pickles.
_TORCH_MAGIC, _LARGEST_ITEM = 0x1950A86A20F9469CFC6C, 16
_LARGEST_PICKLES, _LONGEST_LINE = 2**26, 2**12
_INTS = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG")


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


def check_header(path: Path, *, suffix: str | None = None) -> None:
    """Check that the header of a file of tensors or arrays accounts for its size, before all of it is read or hashed.

    A sparse file of any size takes no room on a disk, and reading it takes minutes or all memory.

    Args:
        path: .safetensors, or a file of torch.save or NumPy.
        suffix: that of a link to the file; None is the file's own.

    Raises:
        ValueError: the file begins like none of them, or has bytes that nothing in it describes.
        OSError: it cannot be opened, or is a link or no regular file.
    """
    with os.fdopen(open_regular_file(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            described = _described_bytes(file, size, path.suffix if suffix is None else suffix)
        except Exception as error:  # A header of a stranger can make a reader fail in any way.
            raise ValueError(first_line(error)) from None
    if size > described:
        raise ValueError(f"{size:,} bytes, of which its header describes {described:,}")


def _described_bytes(file: IO[bytes], size: int, suffix: str) -> int:
    """Return the largest size of a file that its header accounts for."""
    start = file.read(8)
    if suffix == ".safetensors":
        return _described_by_safetensors(file, start, size)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        # torch.save aligns its tensors.
        return sum(member.compress_size + _SLACK for member in members) + _SLACK
    if start.startswith(b"\x80"):
        file.seek(0)
        return _described_by_pickles(_Pickles(file))
    raise ValueError("it does not begin like one")


def _described_by_pickles(pickles: _Pickles) -> int:
    """Return the number of bytes that a file of torch.save before 1.6 describes; of any other pickle, its own.

    Such a file has five pickles, of which the fourth names the storages, and behind them the numbers of each storage.
    The operations of the pickles are looked at, and none is run.
    """
    numbers = storages = 0
    for position in range(5):
        ints: list[int] = []
        for operation, argument, _ in pickletools.genops(pickles):  # type: ignore[arg-type]  # It reads only.
            if operation.name == "MARK":
                ints = []
            elif operation.name in _INTS and isinstance(argument, int):
                ints.append(argument)
            elif operation.name == "BINPERSID" and position == 3:
                # Of a storage: how many numbers it has, and where a view of it begins and ends.
                numbers, storages = numbers + sum(map(abs, ints)), storages + 1
        if position == 0 and ints != [_TORCH_MAGIC]:
            break
    return pickles.tell() + numbers * _LARGEST_ITEM + storages * 8


class _Pickles:
    """A file of pickles, of which no more is read than pickles of tensors have."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        if self.tell() + size > _LARGEST_PICKLES:
            raise ValueError(f"more than {_LARGEST_PICKLES:,} bytes beside its tensors")
        return self.file.read(size)

    def readline(self) -> bytes:
        """Return the rest of the line, which is a name or a number."""
        return self.file.readline(_LONGEST_LINE)

    def tell(self) -> int:
        """Return the position in the file."""
        return self.file.tell()


def _described_by_safetensors(file: IO[bytes], start: bytes, size: int) -> int:
    """Return the number of bytes that the header of a .safetensors file describes, the header included."""
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(size - 8, _LARGEST_HEADER):
        raise ValueError("its header has no length that is possible")
    tensors = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)
