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
from robustill.data.thrift import read_struct, varint

# pyarrow's names of the codecs, by their numbers in a file.
_CODECS = {0: None, 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
# Of the description at the end of a file: a footer, a row group, a column in it, and its metadata.
_FOOTER_END, _ROW_GROUPS, _COLUMNS, _FILE, _METADATA = 8, 4, 1, 1, 3
_CODEC, _NUM_VALUES, _NUM_BYTES, _DATA_OFFSET, _DICTIONARY_OFFSET = 4, 5, 7, 9, 11
# Kinds of pages, and fields of their headers.
_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
_KIND, _UNPACKED, _PACKED, _OF_DATA, _OF_DICTIONARY, _OF_DATA_2 = 1, 2, 3, 5, 7, 8
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8
_ENCODINGS = {5: "DELTA_BINARY_PACKED", 6: "DELTA_LENGTH_BYTE_ARRAY", 7: "DELTA_BYTE_ARRAY", 9: "BYTE_STREAM_SPLIT"}
# Headers have statistics, which may hold two values of the column.
_HEADER, _LARGEST_HEADER = 2**12, 2**26
# A page holds one image at least.
LARGEST_PAGE = LARGEST_ENCODED + 2**20
"""Largest size in bytes of a page, all of which is read for any of its images."""


class UnsupportedPageError(Exception):
    """A page that is not damaged, but written in a way that is not read here."""


@dataclass(frozen=True)
class Chunk:
    """A column in a row group.

    Args:
        offset: where its pages begin in the file.
        size: the size of its pages in bytes, headers included.
        rows: the number of rows.
        codec: the number of its compression.
        max_level: the definition level of a value that is not null.
    """

    offset: int
    size: int
    rows: int
    codec: int
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


def read_footer(file: IO[bytes], size: int) -> bytes:
    """Return the description at the end of a file of so many bytes, which names all that is in it.

    Raises:
        ValueError: it is no Parquet file, or damaged.
    """
    length = int.from_bytes(read_part(file, max(0, size - _FOOTER_END), 4), "little")
    if length > size - _FOOTER_END:
        raise ValueError(f"a description of {length:,} bytes at the end of {size:,}")
    return read_part(file, size - _FOOTER_END - length, length)


def chunks_of(footer: bytes, column: int, max_level: int) -> list[Chunk]:
    """Return a column in each row group.

    pyarrow ends the process where it is asked for these, and the description is damaged.

    Args:
        footer: the description of the file.
        column: the number of the column.
        max_level: the definition level of a value that is not null.

    Raises:
        ValueError: the description is damaged.
    """
    chunks = []
    try:
        for group in read_struct(footer)[0][_ROW_GROUPS]:
            described = group[_COLUMNS][column]
            if _FILE in described:
                raise ValueError("its columns are in another file")
            metadata = described[_METADATA]
            begin, dictionary = metadata[_DATA_OFFSET], metadata.get(_DICTIONARY_OFFSET, 0)
            offset = dictionary if 0 < dictionary < begin else begin
            chunks.append(Chunk(offset, metadata[_NUM_BYTES], metadata[_NUM_VALUES], metadata[_CODEC], max_level))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("the description of its columns is damaged") from None
    return chunks


def index_pages(file: IO[bytes], chunk: Chunk) -> Iterator[Page]:
    """Yield the pages of a column in a row group.

    Raises:
        ValueError: the file is damaged.
        UnsupportedPageError: it is written with an encoding or a compression that is not read.
    """
    if chunk.codec not in _CODECS:
        raise UnsupportedPageError(f"compressed by the codec {chunk.codec}")
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
    content, values = memoryview(_content(file, page)), 0
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
    return _plain(memoryview(_content(file, page.dictionary)), entries, page.dictionary.rows)


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
    if min(page.packed, page.unpacked, page.rows, page.plain_bytes) < 0:
        raise ValueError(f"a page of {page.rows:,} rows and {min(page.packed, page.unpacked):,} bytes")
    if largest > LARGEST_PAGE:
        raise UnsupportedPageError(f"in a page of {largest:,} bytes")
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
    rest: bytes = codec.decompress(memoryview(content)[page.plain_bytes :], size, asbytes=True)
    return content[: page.plain_bytes] + rest if page.plain_bytes else rest


def _plain(content: memoryview, numbers: Sequence[int], count: int) -> list[bytes]:
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
        values.append(bytes(content[start : start + int.from_bytes(content[start - 4 : start], "little")]))
    return values


def _unpacked_runs(content: memoryview, width: int, count: int) -> NDArray[np.int64]:
    """Return `count` numbers of so many bits: runs of equal ones, and groups of eight packed without gaps."""
    if not 0 <= width <= 32:
        raise ValueError(f"numbers of {width} bits")
    numbers = np.zeros(count, np.int64)
    if width == 0:
        return numbers
    position, done, num_bytes = 0, 0, (width + 7) // 8
    while done < count:
        run, position = varint(content, position)
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


def _header(file: IO[bytes], position: int, end: int) -> tuple[dict[int, Any], int]:
    """Return the fields of the header of a page, and its length in bytes."""
    size = _HEADER
    while True:
        available = min(size, end - position)
        if available <= 0:
            raise ValueError("a page is missing")
        try:
            return read_struct(read_part(file, position, available))
        except IndexError:
            if available < size or size >= _LARGEST_HEADER:
                raise ValueError("a header of a page has no end") from None
            size *= 16
