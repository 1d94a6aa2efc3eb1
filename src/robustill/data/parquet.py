"""Parquet files as the Hugging Face hub stores image sets: a column of encoded images, and a column of labels."""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustill.core.errors import DataError, printable
from robustill.core.files import reading
from robustill.core.progress import Progress
from robustill.data.encoded import StreamingDataset
from robustill.data.images import Dataset, Request
from robustill.data.parquet_pages import Page, UnsupportedPageError, chunks_of, index_pages, read_footer, read_values
from robustill.data.shards import Content, Shard, data_set_in_shards, find_shards

LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "cls", "y")
"""The names of a column of labels that needs no `label_column`."""
LARGE_PAGE = 2**25
"""Size in bytes of a page from which on a warning says that reading single images takes long."""
_REWRITE = "write the file again with pyarrow.parquet.write_table(..., write_batch_size=8)"


@dataclass(frozen=True)
class ParquetImages:
    """Encoded images in a column of Parquet files.

    Args:
        shards: the files.
        footers: the sha256 of the footer of each, which describes all its pages.
        pages: the pages of the column, with the number of their file.
        first: the row that each page begins with, over all files, int64.
        first_of_shard: the row that each file begins with, int64.
        rows: the row of each image, int64 [N].
    """

    shards: tuple[Shard, ...]
    footers: tuple[str, ...]
    pages: tuple[tuple[int, Page], ...]
    first: NDArray[np.int64]
    first_of_shard: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, number: int) -> str:
        """Return SHARD/ROW."""
        shard, row = self._place(number)
        return f"{shard.name}/{row}"

    def path(self, number: int) -> Path:
        """Return the path of the file, followed by the row of an image."""
        shard, row = self._place(number)
        return shard.path / f"row {row}"

    def identity(self) -> Iterator[bytes]:
        """Yield name, size and footer of each file, then the rows."""
        for shard, footer in zip(self.shards, self.footers, strict=True):
            yield f"{shard.name}\0{shard.size}\0{footer}\n".encode(errors="surrogateescape")
        yield self.rows.astype("<i8").tobytes()

    def fetch(self, numbers: Sequence[int], pool: Executor) -> list[IO[bytes]]:
        """Return these images; the threads of the pool read each page once.

        Raises:
            DataError: a file is damaged, or has changed since the start.
        """
        rows = self.rows[np.array(numbers, np.int64)]
        pages = np.searchsorted(self.first, rows, side="right") - 1
        groups = {int(page): np.flatnonzero(pages == page) for page in np.unique(pages)}
        wanted = [(rows[group] - self.first[page]).tolist() for page, group in groups.items()]
        images: list[IO[bytes]] = [BytesIO()] * len(rows)
        for group, values in zip(groups.values(), pool.map(self._read, groups, wanted), strict=True):
            for position, value in zip(group.tolist(), values, strict=True):
                images[position] = BytesIO(value)
        return images

    def subset(self, numbers: Tensor) -> ParquetImages:
        """Return these images, numbered from 0 in this order."""
        return replace(self, rows=self.rows[numbers.numpy()])

    def largest_read(self) -> int:
        """Return the largest number of bytes that are decompressed to read one image."""
        sizes = (page.unpacked + (page.dictionary.unpacked if page.dictionary else 0) for _, page in self.pages)
        return max(sizes, default=0)

    def _place(self, number: int) -> tuple[Shard, int]:
        """Return the file of an image, and its row in it."""
        row = self.rows[number]
        shard = int(np.searchsorted(self.first_of_shard, row, side="right")) - 1
        return self.shards[shard], int(row - self.first_of_shard[shard])

    def _read(self, page_number: int, rows: list[int]) -> list[bytes]:
        number, page = self.pages[page_number]
        shard = self.shards[number]
        with reading(shard.path), shard.opened() as file:
            return read_values(file, page, rows)


def read_parquet(request: Request) -> Dataset:
    """Read Parquet files with a column of encoded images and one of whole numbers, the labels.

    The images are those of `image_column`, or of the only column of bytes or of structures with `bytes`. The labels are
    those of `label_column`, or of the only column with a name of LABEL_NAMES. The names of the classes are those that
    Hugging Face's `datasets` has stored in the file; without them they are numbers.

    Raises:
        DataError: files are missing or damaged, columns cannot be told, or pyarrow is not installed.
    """
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError("parquet needs the extra `data`: pip install 'robustill[data]'") from None
    shards = find_shards(request, ".parquet")
    dataset = data_set_in_shards(request, shards, partial(_read_shards, request=request), image_name="ROW")
    if (
        isinstance(dataset, StreamingDataset)
        and isinstance(dataset.encoded, ParquetImages)
        and request.split == "train"
    ):
        largest = dataset.encoded.largest_read()
        if largest > LARGE_PAGE:
            warnings.warn(
                f"{request.root}: to read one image takes up to {largest / 2**20:.0f} MiB, because there are many in a "
                f"page: {_REWRITE}",
                stacklevel=3,
            )
    return dataset


@dataclass(frozen=True)
class _Table:
    """What a file says of its images.

    Args:
        footer: the sha256 of the footer.
        pages: the pages of the column of images.
        labels: int64 [N].
        classes: the names of the classes; None if it does not say them.
    """

    footer: str
    pages: tuple[Page, ...]
    labels: Tensor
    classes: tuple[str, ...] | None


def _read_shards(shards: Sequence[Shard], request: Request) -> Content:
    tables: list[_Table] = []
    with Progress(f"index of {request.root}", total=len(shards), unit="files", delay=2) as progress:
        for shard in shards:
            tables.append(_read_table(shard, request))
            if tables[-1].classes != tables[0].classes:
                raise DataError(f"{shard.path} names other classes than {shards[0].path}: keep one data set here")
            progress.advance(1)
    pages = [(number, page) for number, table in enumerate(tables) for page in table.pages]
    labels = torch.cat([table.labels for table in tables])
    images = ParquetImages(
        shards=tuple(shards),
        footers=tuple(table.footer for table in tables),
        pages=tuple(pages),
        first=_starts([page.rows for _, page in pages]),
        first_of_shard=_starts([len(table.labels) for table in tables]),
        rows=np.arange(len(labels)),
    )
    return Content(images=images, labels=labels, classes=tables[0].classes)


def _starts(sizes: list[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *sizes], dtype=np.int64)[:-1]


def _read_table(shard: Shard, request: Request) -> _Table:
    parquet: Any = importlib.import_module("pyarrow.parquet")
    with reading(shard.path), shard.opened() as file:
        footer = read_footer(file, shard.size)
        with parquet.ParquetFile(file) as table:
            if table.metadata.num_rows > shard.size:
                raise ValueError(f"{table.metadata.num_rows:,} rows in {shard.size:,} bytes")
            columns = _Columns(table, shard.path)
            image, label = columns.image(request.image_column), columns.label(request.label_column)
            labels = _labels(table, label, shard.path)
            classes = _class_names(table, label)
            chunks = chunks_of(footer, image, table.schema.column(image).max_definition_level)
            try:
                pages = tuple(page for chunk in chunks for page in index_pages(file, chunk))
            except UnsupportedPageError as error:
                raise DataError(f"{shard.path}: images are {error}, which is not read: {_REWRITE}") from None
            if sum(page.rows for page in pages) != len(labels):
                raise ValueError(f"{sum(page.rows for page in pages)} images and {len(labels)} labels")
    return _Table(hashlib.sha256(footer).hexdigest(), pages, labels, classes)


class _Columns:
    """The columns of a file.

    Args:
        table: the open file.
        path: its path, for errors.
    """

    def __init__(self, table: Any, path: Path) -> None:
        self.table, self.path = table, path

    @cached_property
    def fields(self) -> dict[str, str]:
        """The type of each column."""
        return {field.name: str(field.type) for field in self.table.schema_arrow}

    def image(self, name: str | None) -> int:
        """Return the number of the column of images, in the file."""
        schema = self.table.schema
        numbers: dict[str, int] = {}
        for number in range(len(schema)):
            column = schema.column(number)
            holder, _, part = column.path.rpartition(".")
            is_bytes = column.physical_type == "BYTE_ARRAY" and column.logical_type.type == "NONE"
            if is_bytes and column.max_repetition_level == 0 and (not holder or part == "bytes"):
                numbers[holder or part] = number
        if name is None and len(numbers) == 1:
            return next(iter(numbers.values()))
        if name in numbers:
            return numbers[name]
        raise self._error("image", name, list(numbers), "of encoded images: bytes, or a structure with bytes")

    def label(self, name: str | None) -> str:
        """Return the name of the column of labels."""
        whole = [column for column, kind in self.fields.items() if kind.startswith(("int", "uint"))]
        found = [column for column in whole if column in LABEL_NAMES]
        if name is None and len(found) == 1:
            return found[0]
        if name in whole:
            return str(name)
        what = "of whole numbers" if name is not None else f"of whole numbers named {', '.join(LABEL_NAMES)}"
        raise self._error("label", name, found, what)

    def _error(self, kind: str, name: str | None, candidates: list[str], what: str) -> DataError:
        if name is not None:
            problem = f"{printable(name)} is no column {what}"
        elif candidates:
            problem = f"each of {', '.join(map(printable, candidates))} could be the column of {kind}s"
        else:
            problem = f"no column {what}"
        columns = ", ".join(f"{printable(column)} ({_short(type_)})" for column, type_ in self.fields.items())
        return DataError(f"{self.path}: {problem}; found {columns}: name one with --data.{kind}_column")


def _short(type_name: str) -> str:
    return printable(type_name if len(type_name) <= 20 else type_name.partition("<")[0])


def _labels(table: Any, column: str, path: Path) -> Tensor:
    # In threads, pyarrow goes on to read the columns of a damaged file after the error, and ends the process once the
    # file is closed.
    values = table.read(columns=[column], use_threads=False).column(column)
    if values.null_count:
        raise DataError(f"{path}: {values.null_count} labels in the column {column} are missing")
    array = values.to_numpy()
    if array.dtype.kind == "u" and len(array) and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"{path}: found the label {array.max()}")
    return torch.from_numpy(array.astype(np.int64))


def _class_names(table: Any, label: str) -> tuple[str, ...] | None:
    """Return the names of the classes in the metadata of `datasets`; None if there are none."""
    content = (table.schema_arrow.metadata or {}).get(b"huggingface")
    if content is None:
        return None
    names: Any = json.loads(content)
    for key in ("info", "features", label, "names"):
        names = names.get(key) if isinstance(names, dict) else None
    if not isinstance(names, list) or not names:
        return None
    return tuple(printable(str(name)) for name in names)
