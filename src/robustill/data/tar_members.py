"""The members of a tar archive with their positions: only headers are read, nothing is unpacked.

tarfile keeps every member in memory, follows links and takes a damaged header for the end of the archive; here one
header is read at a time, and whatever an archive of images has no use for is refused.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from robustill.core.errors import printable
from robustill.data.shards import read_part

_BLOCK = tarfile.BLOCKSIZE
_LARGEST_NAME = 2**16
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_REFUSED = {
    tarfile.LNKTYPE: "a link",
    tarfile.SYMTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a file with holes",
}


class Member(NamedTuple):
    """A file in an archive.

    Args:
        name: its path.
        offset: where its content begins.
        size: the size of its content in bytes.
    """

    name: str
    offset: int
    size: int


def members(file: IO[bytes], size: int) -> Iterator[Member]:
    """Yield the files in an uncompressed archive.

    Args:
        file: the archive.
        size: its size in bytes.

    Raises:
        ValueError: it is damaged, ends too early, or has a link, a device or a path outside its folder.
    """
    position = 0
    extended: dict[str, str] = {}
    while True:
        header = read_part(file, position, _BLOCK)
        if not any(header):
            return
        member = _parsed(header, position)
        begin = position + _BLOCK
        # A long name or a size that a header has no room for is in a member before it.
        if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
            if member.type == tarfile.GNUTYPE_LONGNAME:
                extended["path"] = _text(file, begin, member.size).rstrip("\0")
            elif member.type == tarfile.XHDTYPE:
                extended |= _records(_text(file, begin, member.size))
            position = begin + _rounded_up(max(0, member.size))
            continue
        name = extended.get("path", member.name)
        length = int(extended.get("size", member.size))
        extended = {}
        _check(name, member.type)
        if member.type == tarfile.DIRTYPE:
            position = begin
            continue
        if length < 0:
            raise ValueError(f"the member {printable(name)} is of {length} bytes")
        position = begin + _rounded_up(length)
        if position > size:
            raise ValueError(f"it ends within the member {printable(name)}, which is of {length:,} bytes")
        yield Member(name, begin, length)


def _parsed(header: bytes, position: int) -> tarfile.TarInfo:
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        is_compressed = position == 0 and header[:2] == b"\x1f\x8b"
        reason = "it is compressed: unpack it with gunzip" if is_compressed else f"at {position}: {error}"
        raise ValueError(reason) from None
    return member


def _check(name: str, kind: bytes) -> None:
    """Check that a member is a file or a folder inside the archive's own folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the member {printable(name)} is outside its folder")
    if kind not in (*_FILES, tarfile.DIRTYPE):
        raise ValueError(f"the member {printable(name)} is {_REFUSED.get(kind, f'of the unknown type {kind!r}')}")


def _text(file: IO[bytes], begin: int, size: int) -> str:
    if not 0 <= size <= _LARGEST_NAME:
        raise ValueError(f"at {begin}: a name of {size:,} bytes")
    return read_part(file, begin, size).decode("utf-8", "surrogateescape")


def _records(text: str) -> dict[str, str]:
    """Return the path and the size among the records `LENGTH KEY=VALUE` of a pax header."""
    content, records = text.encode("utf-8", "surrogateescape"), {}
    while content.strip(b"\0"):
        length = int(content.partition(b" ")[0])
        if not 0 < length <= len(content):
            raise ValueError("a header with a record that has no end")
        key, _, value = content[:length].partition(b" ")[2].partition(b"=")
        if key.startswith(b"GNU.sparse"):
            raise ValueError("a member is a file with holes")
        records[key.decode("utf-8", "surrogateescape")] = value.removesuffix(b"\n").decode("utf-8", "surrogateescape")
        content = content[length:]
    return {key: records[key] for key in ("path", "size") if key in records}


def _rounded_up(size: int) -> int:
    """Return a size in whole blocks."""
    return -(-size // _BLOCK) * _BLOCK
