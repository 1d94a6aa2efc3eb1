"""WebDataset: images and labels in tar archives, KEY.jpg beside KEY.cls; read where they are, nothing is unpacked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustill.core.errors import DataError, printable
from robustill.core.files import reading
from robustill.core.progress import Progress
from robustill.data.encoded import LARGEST_ENCODED, SUFFIXES
from robustill.data.images import Dataset, Request
from robustill.data.shards import Content, Shard, data_set_in_shards, find_shards, read_part
from robustill.data.tar_members import Member, members

# Everything up to the first dot of the name is the key, as the WebDataset library has it.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_WHOLE_NUMBER = re.compile(rb"\s*(-?\d{1,9})\s*")
_LARGEST_LABEL, _LARGEST_JSON, _LARGEST_CLASS_NAMES = 64, 2**20, 2**24
_JSON_KEY = "label"
CLASS_NAMES = "classnames.txt"
"""The file beside the shards with the name of each class, one a line."""


@dataclass(frozen=True)
class TarImages:
    """Encoded images in tar archives.

    Args:
        shards: the archives.
        shard: the number of the archive of each image, int32 [N].
        offset: where each image begins in it, int64 [N].
        size: the size of each image in bytes, int64 [N].
        keys: the name of each image in it.
    """

    shards: tuple[Shard, ...]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, number: int) -> str:
        """Return SHARD/KEY."""
        return f"{self.shards[self.shard[number]].name}/{self.keys[number]}"

    def path(self, number: int) -> Path:
        """Return the path of the archive, followed by the key of an image."""
        shard = self.shards[int(self.shard[number])]
        return shard.path / printable(self.keys[number])

    def identity(self) -> Iterator[bytes]:
        """Yield archive, key and size of each image."""
        for number, size in enumerate(self.size.tolist()):
            yield f"{self.name(number)}\0{size}\n".encode(errors="surrogateescape")

    def fetch(self, numbers: Sequence[int], pool: Executor) -> list[IO[bytes]]:
        """Return these images, read by the threads of the pool.

        Raises:
            DataError: an archive has changed since the start.
        """
        return list(pool.map(self._read, numbers))

    def subset(self, numbers: Tensor) -> TarImages:
        """Return these images, numbered from 0 in this order."""
        rows = numbers.numpy()
        keys = tuple(self.keys[row] for row in rows.tolist())
        return replace(self, shard=self.shard[rows], offset=self.offset[rows], size=self.size[rows], keys=keys)

    def _read(self, number: int) -> IO[bytes]:
        shard = self.shards[self.shard[number]]
        with reading(self.path(number)), shard.opened() as file:
            return BytesIO(read_part(file, int(self.offset[number]), int(self.size[number])))


def read_webdataset(request: Request) -> Dataset:
    """Read tar archives of samples: KEY.png, KEY.jpg or another image, and KEY.cls or a number in KEY.json.

    `label_column` is the key in KEY.json, by default "label"; if it is given, KEY.cls is not read. The names of the
    classes are the lines of classnames.txt beside the archives, if there is one.

    Raises:
        DataError: files are missing, damaged or hostile, or a sample has no image or no label.
    """
    shards = find_shards(request, ".tar")
    read = partial(_read_shards, root=request.root, label_key=request.label_column)
    return data_set_in_shards(request, shards, read, image_name="KEY")


@dataclass
class _Sample:
    """What is known of a sample, whose members follow one another."""

    key: str
    image: Member | None = None
    label: int | None = None
    number_in_json: int | None = None


def _read_shards(shards: Sequence[Shard], root: Path, label_key: str | None) -> Content:
    shard_numbers, offsets, sizes, labels = [], [], [], []
    keys: list[str] = []
    with Progress(f"index of {root}", total=len(shards), unit="files", delay=2) as progress:
        for number, shard in enumerate(shards):
            with reading(shard.path), shard.opened() as file:
                for sample in _samples(file, shard, label_key):
                    image, label = _complete(sample, shard, label_key)
                    shard_numbers.append(number)
                    offsets.append(image.offset)
                    sizes.append(image.size)
                    labels.append(label)
                    keys.append(sample.key)
            progress.advance(1)
    images = TarImages(
        tuple(shards),
        np.array(shard_numbers, np.int32),
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        tuple(keys),
    )
    classes = _class_names(shards[0].path.parent, root)
    return Content(images=images, labels=torch.tensor(labels, dtype=torch.int64), classes=classes)


def _samples(file: IO[bytes], shard: Shard, label_key: str | None) -> Iterator[_Sample]:
    """Yield the samples of an archive that have an image or a label; texts alone are passed over."""
    sample: _Sample | None = None
    for member in members(file, shard.size):
        parts = _NAME.fullmatch(member.name)
        if parts is None or member.name.startswith("__MACOSX/"):
            continue
        key, extension = parts[1], parts[2].lower()
        if sample is None or sample.key != key:
            if sample is not None and _is_used(sample):
                yield sample
            sample = _Sample(key)
        if f".{extension}" in SUFFIXES:
            if sample.image is not None:
                raise DataError(f"{shard.path}: {printable(key)} has two images, expected one")
            if member.size > LARGEST_ENCODED:
                raise DataError(
                    f"{shard.path}: {printable(member.name)} has {member.size:,} bytes, expected an image of at most "
                    f"{LARGEST_ENCODED:,}"
                )
            sample.image = member
        elif extension == "cls" and label_key is None:
            sample.label = _number(_small(file, member, _LARGEST_LABEL), member.name)
        elif extension == "json":
            sample.number_in_json = _number_in(_small(file, member, _LARGEST_JSON), label_key or _JSON_KEY)
    if sample is not None and _is_used(sample):
        yield sample


def _is_used(sample: _Sample) -> bool:
    return sample.image is not None or sample.label is not None


def _complete(sample: _Sample, shard: Shard, label_key: str | None) -> tuple[Member, int]:
    """Return the image and the label of a sample."""
    where = f"{shard.path}: {printable(sample.key)}"
    label = sample.number_in_json if sample.label is None else sample.label
    if sample.image is None:
        raise DataError(f"{where} has a label and no image ({', '.join(sorted(SUFFIXES))})")
    if label is None and label_key is None:
        raise DataError(
            f"{where} has no label: expected KEY.cls with a whole number, or KEY.json with one as {_JSON_KEY!r}; "
            "--data.label_column names another key"
        )
    if label is None:
        raise DataError(f"{where} has no label: expected KEY.json with a whole number as {label_key!r}")
    return sample.image, label


def _small(file: IO[bytes], member: Member, largest: int) -> bytes:
    if member.size > largest:
        raise ValueError(f"{printable(member.name)} has {member.size:,} bytes, expected at most {largest:,}")
    return read_part(file, member.offset, member.size)


def _number(content: bytes, name: str) -> int:
    found = _WHOLE_NUMBER.fullmatch(content)
    if found is None:
        raise ValueError(f"{printable(name)} is no whole number")
    return int(found[1])


def _number_in(content: bytes, key: str) -> int | None:
    """Return the label in the JSON of a sample; None if it has none."""
    page = json.loads(content)
    value = page.get(key) if isinstance(page, dict) else None
    return value if type(value) is int and abs(value) < 10**9 else None


def _class_names(folder: Path, root: Path) -> tuple[str, ...] | None:
    """Return the names of the classes from the file in the folder of the shards, or above it up to the root."""
    inside = [place for place in folder.parents if root == place or root in place.parents]
    for path in (place / CLASS_NAMES for place in (folder, *inside)):
        if path.is_file():
            if path.stat().st_size > _LARGEST_CLASS_NAMES:
                raise DataError(f"{path} has {path.stat().st_size:,} bytes, and is no list of classes")
            with reading(path):
                return tuple(map(printable, path.read_text(encoding="utf-8").rstrip("\n").split("\n")))
    return None
