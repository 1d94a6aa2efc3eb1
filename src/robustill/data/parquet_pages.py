"""The pages of a column of a Parquet file, so that one image is read without the thousands beside it.

pyarrow reads no less than a row group, which is often a whole file. A column in a row group is a sequence of pages of
about a megabyte: `index_pages` finds them by their headers, and `read_values` reads values of one.

Reference: the Parquet format, https://parquet.apache.org/docs/file-format/data-pages.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustill.data.encoded import LARGEST_ENCODED
from robustill.data.shards import read_part

# pyarrow's names of codecs, by its names of them in a file; LZ4 there is the one without a frame.
_CODECS = {
    "UNCOMPRESSED": None,
    "SNAPPY": "snappy",
    "GZIP": "gzip",
    "BROTLI": "brotli",
    "ZSTD": "zstd",
    "LZ4": "lz4_raw",
}
# Kinds of pages, and fields of their headers.
_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
_KIND, _UNPACKED, _PACKED, _OF_DATA, _OF_DICTIONARY, _OF_DATA_2 = 1, 2, 3, 5, 7, 8
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8
_ENCODINGS = {5: "DELTA_BINARY_PACKED", 6: "DELTA_LENGTH_BYTE_ARRAY", 7: "DELTA_BYTE_ARRAY", 9: "BYTE_STREAM_SPLIT"}
# Headers have statistics, which may hold two values of the column.
_HEADER, _LARGEST_HEADER = 2**12, 2**26
# A page holds one image at least.
_LARGEST_PAGE = LARGEST_ENCODED + 2**20


class UnsupportedPageError(Exception):
    """A page that is not damaged, but written in a way that is not read here."""


@dataclass(frozen=True)
class Chunk:
    """A column in a row group.

    Args:
        offset: where its pages begin in the file.
        size: the size of its pages in bytes, headers included.
        rows: the number of rows.
        codec: the name of its compression in the file.
        max_level: the definition level of a value that is not null.
    """

    offset: int
    size: int
    rows: int
    codec: str
    max_level: int


class Page(NamedTuple):
    """A page with values.

    Args:
        chunk: the column in a row group that it belongs to.
        offset: where its content begins in the file.
        packed: the size of its content in the file, in bytes.
        unpacked: the size of its content, in bytes.
        rows: the number of rows.
        kind: 0 and 3 for values, 2 for a dictionary.
        encoding: 0 for values, 2 or 8 for numbers of entries of the dictionary.
        plain_bytes: the size of the definition levels that are not compressed, at the beginning of a page of kind 3.
        is_packed: whether its content is compressed.
        dictionary: the dictionary of its chunk.
    """

    chunk: Chunk
    offset: int
    packed: int
    unpacked: int
    rows: int
    kind: int
    encoding: int
    plain_bytes: int
    is_packed: bool
    dictionary: Page | None


def index_pages(file: IO[bytes], chunk: Chunk) -> Iterator[Page]:
    """Yield the pages of a column in a row group.

    Raises:
        ValueError: the file is damaged.
        UnsupportedPageError: it is written with an encoding or a compression that is not read.
    """
    if chunk.codec not in _CODECS:
        raise UnsupportedPageError(f"compressed by {chunk.codec}")
    position, end, rows = chunk.offset, chunk.offset + chunk.size, 0
    dictionary: Page | None = None
    while rows < chunk.rows:
        header, length = _header(file, position, end)
        try:
            page = _page(header, chunk, position + length, dictionary)
        except (KeyError, TypeError):
            raise ValueError("a header of a page without its fields") from None
        position = page.offset + page.packed
        if position > end:
            raise ValueError("a page ends behind its column")
        if page.kind == _DICTIONARY:
            dictionary = page
        else:
            rows += page.rows
            yield page
    if rows != chunk.rows:
        raise ValueError(f"pages of {rows} rows, expected {chunk.rows}")


def read_values(file: IO[bytes], page: Page, rows: Sequence[int]) -> list[bytes]:
    """Return the values of some rows of a page, counted from its first.

    Raises:
        ValueError: the file is damaged, or a value is null.
    """
    content, values = _content(file, page), 0
    max_level = page.chunk.max_level
    if max_level > 0:
        if page.kind == _DATA:
            length = int.from_bytes(content[:4], "little")
            levels, values = content[4 : 4 + length], 4 + length
        else:
            levels, values = content[: page.plain_bytes], page.plain_bytes
        if (_unpacked_runs(levels, max_level.bit_length(), page.rows) != max_level).any():
            raise ValueError("an image is null")
    if page.encoding == _PLAIN:
        return _plain(content[values:], rows, page.rows)
    if page.dictionary is None:
        raise ValueError("a dictionary is missing")
    entries = _unpacked_runs(content[values + 1 :], content[values], page.rows)[np.array(rows)].tolist()
    return _plain(_content(file, page.dictionary), entries, page.dictionary.rows)


def _page(header: dict[int, Any], chunk: Chunk, offset: int, dictionary: Page | None) -> Page:
    kind = header[_KIND]
    of_kind = {_DATA: _OF_DATA, _DICTIONARY: _OF_DICTIONARY, _DATA_2: _OF_DATA_2}
    if kind not in of_kind:
        raise UnsupportedPageError(f"in pages of the kind {kind}")
    fields = header[of_kind[kind]]
    is_second = kind == _DATA_2
    page = Page(
        chunk=chunk,
        offset=offset,
        packed=header[_PACKED],
        unpacked=header[_UNPACKED],
        rows=fields[1],
        kind=kind,
        encoding=fields[4] if is_second else fields[2],
        plain_bytes=fields[5] + fields[6] if is_second else 0,
        is_packed=_CODECS[chunk.codec] is not None and (not is_second or fields.get(7, True)),
        dictionary=dictionary,
    )
    if page.encoding not in (_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY):
        raise UnsupportedPageError(f"encoded as {_ENCODINGS.get(page.encoding, page.encoding)}")
    if kind == _DATA and chunk.max_level > 0 and fields[3] != _RLE:
        raise UnsupportedPageError("with definition levels that are not in runs")
    largest = max(page.packed, page.unpacked)
    if kind != _DICTIONARY and page.rows > chunk.rows:
        raise ValueError(f"a page of {page.rows:,} rows in a column of {chunk.rows:,}")
    if min(page.packed, page.unpacked, page.rows, page.plain_bytes) < 0 or largest > _LARGEST_PAGE:
        raise ValueError(f"a page of {page.rows:,} rows and {largest:,} bytes")
    return page


def _content(file: IO[bytes], page: Page) -> bytes:
    """Return the content of a page, decompressed."""
    content = read_part(file, page.offset, page.packed)
    if not page.is_packed:
        return content
    size = page.unpacked - page.plain_bytes
    if size <= 0:
        return content[: page.plain_bytes]
    codec: Any = importlib.import_module("pyarrow").Codec(_CODECS[page.chunk.codec])
    rest = codec.decompress(content[page.plain_bytes :], size, asbytes=True)
    return content[: page.plain_bytes] + bytes(rest)


def _plain(content: bytes, numbers: Sequence[int], count: int) -> list[bytes]:
    """Return some of `count` values, each of which follows its length in four bytes."""
    starts, position = [], 0
    for _ in range(min(count, 1 + max(numbers, default=-1))):
        starts.append(position)
        position += 4 + int.from_bytes(content[position : position + 4], "little")
        if position > len(content):
            raise ValueError("a value ends behind its page")
    values = []
    for number in numbers:
        start = starts[number] + 4
        values.append(content[start : start + int.from_bytes(content[start - 4 : start], "little")])
    return values


def _unpacked_runs(content: bytes, width: int, count: int) -> NDArray[np.int64]:
    """Return `count` numbers of so many bits: runs of equal ones, and groups of eight packed without gaps."""
    if not 0 <= width <= 32:
        raise ValueError(f"numbers of {width} bits")
    numbers = np.zeros(count, np.int64)
    if width == 0:
        return numbers
    position, done, num_bytes = 0, 0, (width + 7) // 8
    while done < count:
        run, position = _varint(content, position)
        if run & 1:
            packed = content[position : position + (run >> 1) * width]
            position += (run >> 1) * width
            bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
            found = bits[: len(bits) // width * width].reshape(-1, width) @ (1 << np.arange(width))
        else:
            value = content[position : position + num_bytes]
            position += num_bytes
            found = np.full(min(run >> 1, count - done), int.from_bytes(value, "little"), np.int64)
        if len(found) == 0:
            raise ValueError("a run without numbers")
        part = found[: count - done]
        numbers[done : done + len(part)] = part
        done += len(part)
    return numbers


# --- headers, in Thrift's compact protocol


def _header(file: IO[bytes], position: int, end: int) -> tuple[dict[int, Any], int]:
    """Return the fields of the header of a page, and its length in bytes."""
    size = _HEADER
    while True:
        available = min(size, end - position)
        if available <= 0:
            raise ValueError("a page is missing")
        try:
            return _struct(read_part(file, position, available), 0, depth=0)
        except IndexError:
            if available < size or size >= _LARGEST_HEADER:
                raise ValueError("a header of a page has no end") from None
            size *= 16


def _struct(content: bytes, position: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a structure by their number, and the position behind it."""
    if depth > 4:
        raise ValueError("a header of a page that is nested too deep")
    fields: dict[int, Any] = {}
    number = 0
    while (first := content[position]) != 0:
        position += 1
        if first >> 4:
            number += first >> 4
        else:
            number, position = _signed(content, position)
        fields[number], position = _field(content, position, first & 15, depth)
    return fields, position + 1


def _field(content: bytes, position: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, position
    if kind == 3:
        return content[position], position + 1
    if kind in (4, 5, 6):
        return _signed(content, position)
    if kind == 8:
        # Statistics, of which nothing is needed.
        length, position = _varint(content, position)
        if position + length > len(content):
            raise IndexError
        return None, position + length
    if kind == 12:
        return _struct(content, position, depth + 1)
    raise ValueError(f"a header of a page with a field of the kind {kind}")


def _signed(content: bytes, position: int) -> tuple[int, int]:
    number, position = _varint(content, position)
    return (number >> 1) ^ -(number & 1), position


def _varint(content: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 70:
        byte = content[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position
    raise ValueError("a number has no end")
