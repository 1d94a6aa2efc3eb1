"""Data sets in shards, files of many images each: which files belong to which split, and the data set that they hold.

`find_shards` tells training from test shards by their names; `data_set_in_shards` makes the data set of their content.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import torch
from torch import Tensor

from robustill.core.errors import DataError, printable
from robustill.data.encoded import Encoded, data_set_of
from robustill.data.images import Dataset, Request, Split, check_labels, count_classes, warn_of_missing_classes
from robustill.data.splits import in_hashed_fifth

_WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
"""The words in the names of files and folders that say of which split a shard is."""
_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})")


@dataclass(frozen=True)
class Shard:
    """A file of many images.

    Args:
        path: the file.
        name: its path relative to the root of the data set, with slashes.
        size: its size in bytes.
        modified: when it was last written, in nanoseconds.
    """

    path: Path
    name: str
    size: int
    modified: int

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Open the file for reading.

        Raises:
            DataError: it has been written since the shards were found, so that positions in it mean nothing.
            OSError: it cannot be opened.
        """
        with self.path.open("rb") as file:
            found = os.fstat(file.fileno())
            if (found.st_size, found.st_mtime_ns) != (self.size, self.modified):
                raise DataError(f"{self.path} has changed while it was in use: repeat the command")
            yield file


def read_part(file: IO[bytes], offset: int, size: int) -> bytes:
    """Return a part of a file.

    Raises:
        ValueError: the file ends before it.
    """
    file.seek(offset)
    content = file.read(size)
    if len(content) < size:
        raise ValueError(f"it ends within {size} bytes at {offset}")
    return content


class ShardImages(Encoded, Protocol):
    """Encoded images in shards."""

    def name(self, number: int) -> str:
        """Return SHARD/IMAGE, the name of the shard and what tells the image from the others in it."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """The content of shards.

    Args:
        images: N images.
        labels: int64 [N].
        classes: K names; None if the shards do not say them.
    """

    images: ShardImages
    labels: Tensor
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class Shards:
    """The shards of a data set.

    Args:
        train: the training shards.
        test: the test shards; the same ones if `is_divided` is false.
        is_divided: whether there are test shards, or the images are to be divided.
    """

    train: tuple[Shard, ...]
    test: tuple[Shard, ...]
    is_divided: bool


def find_shards(request: Request, suffix: str) -> Shards:
    """Find the shards of a data set: ROOT itself, or files in it, in its folders, and in train, test, ... of those.

    The name of a file says its split, train-00000-of-00002.parquet, or else that of its folder, train/0.tar. Without
    test shards those for validation are the test, and without any of both all images are to be divided.

    Args:
        request: the request, of which root and split are used.
        suffix: ".parquet" or ".tar".

    Raises:
        DataError: there are none, one of several is missing, only some names say the split, or there are the shards of
            several data sets.
    """
    root = request.root
    if root.is_file() and root.suffix == suffix:
        shard = _shard(root, root.name)
        return Shards((shard,), (shard,), is_divided=False)
    paths = _files(root, suffix)
    if not paths:
        raise request.missing(f"*{suffix} files in {root}")
    splits: dict[str | None, list[Shard]] = {}
    for path in paths:
        splits.setdefault(_split_of(path, root), []).append(_shard(path, path.relative_to(root).as_posix()))
    unnamed = splits.pop(None, [])
    if unnamed and splits:
        named = next(iter(splits.values()))[0]
        raise DataError(
            f"{unnamed[0].path} does not say its split as {named.name} does: expected train, test or validation in the "
            "name of each file, or in none"
        )
    _check_complete(paths)
    train, test, validation = (tuple(splits.get(name, [])) for name in ("train", "test", "validation"))
    if unnamed:
        return Shards(tuple(unnamed), tuple(unnamed), is_divided=False)
    if not test and not validation:
        return Shards(train, train, is_divided=False)
    if test and validation and request.split == "train":
        warnings.warn(
            f"{root}: {validation[0].name} and others for validation are left out: validation images are held out of "
            "the training images",
            stacklevel=3,
        )
    return Shards(train, test or validation, is_divided=True)


def data_set_in_shards(
    request: Request, shards: Shards, read: Callable[[Sequence[Shard]], Content], image_name: str
) -> Dataset:
    """Return the data set that shards hold.

    Args:
        request: the request.
        shards: the shards of both splits.
        read: reads the content of some of them.
        image_name: what tells the images of a shard apart, for the rule that divides them.

    Raises:
        DataError: there are no shards of the split, a class has one image alone and images are to be divided, or an
            image is damaged.
    """
    own = shards.train if request.split == "train" else shards.test
    if not own:
        raise request.missing(f"a file with {request.split} in its name in {request.root}")
    content = read(own)
    where = f"{request.root} ({request.split})"
    if len(content.labels) == 0:
        raise DataError(f"{where}: no images")
    labels, classes = content.labels, content.classes
    if classes is None:
        # Test labels must not determine what is trained.
        known = read(shards.train).labels if shards.is_divided and shards.train and own != shards.train else labels
        num_classes = request.num_classes or count_classes(int(known.max()), request.root)
        classes = tuple(str(label) for label in range(num_classes))
    if int(labels.min()) < 0:
        raise DataError(
            f"{where}: found the label {int(labels.min())}, expected 0 or more, as labelled images have; move files of "
            "unlabelled images elsewhere"
        )
    check_labels(labels, len(content.images), len(classes), where)
    warn_of_missing_classes(labels, classes, where)
    if shards.is_divided:
        return data_set_of(request, content.images, labels, classes, split_rule=None)
    split_rule = (
        f"one image in five of each class is for testing: those with the smallest SHA-256 of SHARD/{image_name}"
    )
    if request.split == "train":
        warnings.warn(f"{request.root} has no test images of its own: {split_rule}", stacklevel=4)
    chosen = _part(content, classes, request.split, request.root)
    return data_set_of(request, content.images.subset(chosen), labels[chosen], classes, split_rule)


def _part(content: Content, classes: Sequence[str], split: Split, root: Path) -> Tensor:
    """Return the numbers of the training or of the test images, ascending."""
    in_test = torch.zeros(len(content.labels), dtype=torch.bool)
    for label in torch.unique(content.labels).tolist():
        members = torch.nonzero(content.labels == label).flatten()
        if len(members) < 2:
            raise DataError(
                f"{root}: one image of the class {classes[label]}, expected one to train on and one to test on; add "
                "images of this class"
            )
        in_test[members] = torch.tensor(in_hashed_fifth([content.images.name(each) for each in members.tolist()]))
    return torch.nonzero(in_test if split == "test" else ~in_test).flatten()


def holds_shards(root: Path, suffix: str) -> bool:
    """Return whether a path is a shard, or a folder with shards."""
    return root.suffix == suffix if root.is_file() else bool(_files(root, suffix))


def _files(root: Path, suffix: str) -> list[Path]:
    """Return the shards in a folder, sorted by their relative path.

    Raises:
        DataError: they are those of several data sets.
    """
    folders = [root, *_folders(root)]
    folders += [inner for outer in folders[1:] for inner in _folders(outer) if inner.name.lower() in _WORDS]
    found: dict[Path, list[Path]] = {}
    for folder in folders:
        files = [
            path
            for path in (folder.iterdir() if folder.is_dir() else ())
            if path.suffix == suffix and not path.name.startswith(".") and path.is_file()
        ]
        if files:
            is_split = folder != root and folder.name.lower() in _WORDS
            found.setdefault(folder.parent if is_split else folder, []).extend(files)
    if len(found) > 1:
        names = ", ".join(printable(folder.name) for folder in sorted(found)[:5])
        raise DataError(f"{root} holds several data sets ({names}): give one of these folders as --data.root")
    return sorted((path for paths in found.values() for path in paths), key=lambda path: path.relative_to(root).parts)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _split_of(path: Path, root: Path) -> str | None:
    """Return the split that the name of a shard says, or that of its folder; None if they say none or several."""
    for name in (path.stem, path.parent.name if path.parent != root else ""):
        splits = {_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS}
        if splits:
            return splits.pop() if len(splits) == 1 else None
    return None


def _check_complete(paths: Sequence[Path]) -> None:
    """Check that of shards numbered 00000-of-00002 all are there, as they are not after half a download."""
    names = {path.with_suffix("") for path in paths}
    for path in paths:
        numbered = _NUMBERED.fullmatch(path.stem)
        if numbered is None:
            continue
        before = path.with_name(f"{numbered[1]}-{max(0, int(numbered[2]) - 1):05d}-of-{numbered[3]}")
        last = path.with_name(f"{numbered[1]}-{int(numbered[3]) - 1:05d}-of-{numbered[3]}")
        for needed in (before, last):
            if needed not in names:
                raise DataError(f"{needed}{path.suffix} is missing: {path.name} belongs to {int(numbered[3])} files")


def _shard(path: Path, name: str) -> Shard:
    found = path.stat()
    return Shard(path, name, found.st_size, found.st_mtime_ns)
