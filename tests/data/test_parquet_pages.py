import contextlib
import io
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustill.data import parquet_pages
from robustill.data.parquet_pages import UnsupportedPageError, chunks_of, index_pages, read_footer, read_values


def random_values(count, seed=0):
    draws = np.random.default_rng(seed)
    return [draws.bytes(int(size)) for size in draws.integers(0, 60, count)]


def written(values, *, nullable=True, nested=False, **options):
    buffer = io.BytesIO()
    kind = pa.struct([pa.field("bytes", pa.binary(), nullable=nullable)]) if nested else pa.binary()
    field = pa.field("x", kind, nullable=nullable)
    array = pa.array([{"bytes": value} for value in values] if nested else values, kind)
    pq.write_table(pa.table([array], schema=pa.schema([field])), buffer, **options)
    return buffer.getvalue()


def pages_of(content, max_level):
    file = io.BytesIO(content)
    chunks = chunks_of(read_footer(file, len(content)), 0, max_level)
    return file, [page for chunk in chunks for page in index_pages(file, chunk)]


def read_all(content, max_level=1):
    file, pages = pages_of(content, max_level)
    return [value for page in pages for value in read_values(file, page, range(page.rows))]


CODECS = ["none", "snappy", "gzip", "brotli", "zstd", "lz4"]


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_the_values_are_those_that_were_written(compression, version, use_dictionary):
    options = {"compression": compression, "data_page_version": version, "use_dictionary": use_dictionary}
    values = random_values(400)
    for nullable, nested in itertools.product([True, False], [True, False]):
        content = written(
            values,
            nullable=nullable,
            nested=nested,
            row_group_size=150,
            data_page_size=900,
            write_batch_size=7,
            **options,
        )
        max_level = (1 + nested) * nullable
        assert read_all(content, max_level) == values
        file, pages = pages_of(content, max_level)
        assert len(pages) >= 3
        for page in pages:
            rows = [page.rows - 1, 0]
            found = read_values(file, page, rows)
            first = sum(each.rows for each in pages[: pages.index(page)])
            assert found == [values[first + row] for row in rows]


@pytest.mark.parametrize("kinds", [1, 2, 3, 9, 300])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_dictionaries_of_any_size_are_read(kinds, version):
    # Numbers of 0, 1, 2, 4 and 9 bits, in runs and packed.
    entries = random_values(kinds, seed=1)
    draws = np.random.default_rng(2)
    values = [entries[0]] * 100 + [entries[number] for number in draws.integers(0, kinds, 500)] + [entries[-1]] * 30
    assert read_all(written(values, data_page_version=version)) == values


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_value_that_is_null_is_refused(version):
    for values in ([b"a", None, b"b"], [None] * 3):
        with pytest.raises(ValueError, match="an image is null"):
            read_all(written(values, data_page_version=version))


def test_headers_with_long_statistics_are_read():
    values = [bytes([number]) * 3000 for number in range(5)]
    assert read_all(written(values, write_statistics=True, use_dictionary=False)) == values


def test_other_encodings_are_named():
    for encoding in ("DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"):
        content = written(random_values(9), use_dictionary=False, column_encoding={"x": encoding})
        with pytest.raises(UnsupportedPageError, match=f"encoded as {encoding}"):
            read_all(content)


def test_damage_is_a_value_error_or_gives_other_values():
    content = written(random_values(40), use_dictionary=False)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        with contextlib.suppress(ValueError, OSError, IndexError, UnsupportedPageError):
            read_all(bytes(damaged))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rows", 41, "a page of 41 rows in a column of 40"),
        ("rows", -1, "a page of -1 rows"),
        ("packed", -1, "and -1 bytes"),
        ("packed", 2**30, "in a page of 1,073,741,824 bytes"),
        ("packed", 10**6, "a page ends behind its column"),
        ("unpacked", 2**30, "in a page of 1,073,741,824 bytes"),
    ],
)
def test_a_header_that_lies_is_refused(monkeypatch, field, value, message):
    content = written(random_values(40), use_dictionary=False)
    file = io.BytesIO(content)
    (chunk,) = chunks_of(read_footer(file, len(content)), 0, 1)
    header, length = parquet_pages._header(file, chunk.offset, chunk.offset + chunk.size)
    lying = {**header, 5: dict(header[5])}
    if field == "rows":
        lying[5][1] = value
    else:
        lying[{"unpacked": 2, "packed": 3}[field]] = value
    monkeypatch.setattr(parquet_pages, "_header", lambda *_: (lying, length))
    with pytest.raises((ValueError, UnsupportedPageError), match=message):
        list(index_pages(file, chunk))


def test_a_file_without_a_footer_is_refused():
    for content in (b"", b"PAR1", b"\xff\xff\xff\x7fPAR1", bytes(100)):
        with pytest.raises(ValueError, match=r"ends within|a description of|description of its columns is damaged"):
            chunks_of(read_footer(io.BytesIO(content), len(content)), 0, 0)
