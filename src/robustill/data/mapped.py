"""NumPy arrays read where they lie, in .npy files or uncompressed inside .npz: never loaded, never unpickled."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from robustill.data.images import reading
from robustill.errors import DataError

_LOCAL_HEADER = 30
_ENCRYPTED = 1


def mapped_array(path: Path, names: tuple[str, ...]) -> np.ndarray:
    """The first array of these names, read-only; only the rows that are looked at are read.

    Args:
        path: an .npz file whose arrays are not compressed, or a folder of .npy files.
        names: without .npy, in order of preference.

    Raises:
        DataError: it is missing, cut off, compressed, or holds objects.
    """
    with reading(path):
        if path.is_dir():
            file = next((file for name in names if (file := path / f"{name}.npy").is_file()), None)
            if file is None:
                raise DataError(f"{path}: no file named {'|'.join(names)}.npy; name it so, or give another folder")
            return _map(file, 0, file.stat().st_size, file.name)
        if not path.is_file():
            raise DataError(f"{path} not found: expected an .npz file, or a folder with image.npy and label.npy")
        member = _member(path, names)
        return _map(path, _content(path, member), member.file_size, member.filename)


def _member(path: Path, names: tuple[str, ...]) -> zipfile.ZipInfo:
    with zipfile.ZipFile(path) as archive:
        members = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
    member = next((members[name] for name in names if name in members), None)
    if member is None:
        raise DataError(f"{path}: no array named {'|'.join(names)}, found {', '.join(list(members)[:5]) or 'none'}")
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
        raise DataError(
            f"{path}: {member.filename} is compressed, so that it cannot be read where it lies: "
            f"unpack the file (python -m zipfile -e {path.name} FOLDER) and give the folder"
        )
    return member


def _content(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the content of a member begins; `ZipInfo` tells where its header does."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
    if header[:4] != b"PK\x03\x04":
        raise ValueError("an entry of the archive is not where its index says")
    # The lengths of the name and of the extra field follow at 26; the index may state another extra field.
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return member.header_offset + _LOCAL_HEADER + lengths


def _map(path: Path, start: int, size: int, name: str) -> np.ndarray:
    """The array in these bytes of a file, which begin with the header of the .npy format."""
    with path.open("rb") as file:
        file.seek(start)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        begin = file.tell()
    if dtype.hasobject:
        raise DataError(f"{path}: {name} holds Python objects, which are never read: store numbers")
    expected, found = math.prod(shape) * dtype.itemsize, size - (begin - start)
    if expected != found:
        raise DataError(f"{path}: {name} holds {found} bytes of the {expected} of its shape {shape}: replace the file")
    if expected == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", begin, shape, "F" if fortran else "C")
