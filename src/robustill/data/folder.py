"""Images in folders, one folder for each class."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from robustill.core.errors import DataError, printable
from robustill.core.files import reading
from robustill.data.encoded import SUFFIXES, data_set_of
from robustill.data.images import Dataset, Request, Split, warn_of_missing_classes
from robustill.data.splits import in_hashed_fifth

SPLIT_RULE = "one image in five of each class is for testing: those with the smallest SHA-256 of CLASS/FILE"
"""The split of a folder of classes that has no folders train and test: a function of the names alone, so that every
machine and every evaluation have the same test images."""


@dataclass(frozen=True)
class ImageFiles:
    """Encoded images, a file for each.

    Args:
        root: the folder that `files` are relative to.
        files: N relative paths, CLASS/FILE.
    """

    root: Path
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def path(self, number: int) -> Path:
        """Return the path of an image."""
        return self.root / self.files[number]

    def identity(self) -> Iterator[bytes]:
        """Yield the relative path and the size of each file."""
        for file in self.files:
            path = self.root / file
            with reading(path):
                yield f"{file}\0{path.stat().st_size}\n".encode(errors="surrogateescape")

    def fetch(self, numbers: Sequence[int], pool: Executor) -> list[Path]:
        """Return the paths of these images: a decoder opens them."""
        return [self.path(number) for number in numbers]

    def subset(self, numbers: Tensor) -> ImageFiles:
        """Return these images, numbered from 0 in this order."""
        return replace(self, files=tuple(self.files[number] for number in numbers.tolist()))


def read_folder(request: Request) -> Dataset:
    """Read ROOT/train/CLASS/FILE or ROOT/test/CLASS/FILE; classes are sorted by name, images are RGB.

    The folders in ROOT/train are the classes, or those in ROOT/test if there is no training folder. A root with neither
    holds the classes itself, ROOT/CLASS/FILE, and is split by SPLIT_RULE.
    """
    is_divided = not _holds_classes(request.root)
    folder = request.root / request.split if is_divided else request.root
    if not folder.is_dir():
        raise request.missing(folder, f"folders of classes in {request.root}")
    classes = (_class_names(request.root / "train") if is_divided else ()) or _class_names(folder)
    if not classes:
        raise DataError(f"{folder}: no class folders, expected {request.split}/CLASS/IMAGE")
    if is_divided:
        unknown = sorted(set(_class_names(folder)) - set(classes))
        if unknown:
            raise DataError(f"{folder / unknown[0]}: a class that is not in {request.root / 'train'}")
    elif request.split == "train":
        warnings.warn(f"{folder} has no folders train and test: {SPLIT_RULE}", stacklevel=2)
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        names = _image_names(folder / name, may_be_empty=is_divided and request.split == "test")
        if not is_divided:
            names = _part_of_class(folder / name, names, request.split)
        files += [f"{name}/{file}" for file in names]
        labels += [label] * len(names)
    _check_found(folder, classes, labels)
    return data_set_of(
        request,
        ImageFiles(folder, tuple(files)),
        torch.tensor(labels, dtype=torch.int64),
        tuple(map(printable, classes)),
        split_rule=None if is_divided else SPLIT_RULE,
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_hidden(path)))


def _holds_classes(root: Path) -> bool:
    """Return whether a folder has no folders train and test, but several folders of images."""
    if (root / "train").is_dir() or (root / "test").is_dir():
        return False
    with_images = [name for name in _class_names(root) if _image_names(root / name, may_be_empty=True)]
    return len(with_images) > 1


def _part_of_class(folder: Path, names: list[str], split: Split) -> list[str]:
    """Return the training or the test images of one class by SPLIT_RULE, in the order of their names.

    Raises:
        DataError: there is one image alone, which cannot be both.
    """
    if len(names) < 2:
        raise DataError(f"{folder}: one image, expected one to train on and one to test on; add images of this class")
    in_test = in_hashed_fifth([f"{folder.name}/{name}" for name in names])
    return [name for name, is_test in zip(names, in_test, strict=True) if is_test == (split == "test")]


def _check_found(folder: Path, classes: tuple[str, ...], labels: list[int]) -> None:
    """Check that there are images, and warn of classes without any."""
    if not labels:
        raise DataError(f"{folder}: class folders without images ({', '.join(sorted(SUFFIXES))})")
    warn_of_missing_classes(torch.tensor(labels), classes, folder)


def _is_hidden(path: Path) -> bool:
    """Return whether a name is none of the user's: .ipynb_checkpoints, and what macOS puts beside files (._0.png)."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def _image_names(folder: Path, *, may_be_empty: bool) -> list[str]:
    """Return the names of the images of one class; of a training set, every class must have images."""
    if not folder.is_dir():
        if may_be_empty:
            return []
        raise DataError(f"{folder}: no such class folder, expected one for each class of the training set")
    files = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("._"))
    names = sorted(path.name for path in files if path.is_file())
    if not names and not may_be_empty:
        raise DataError(f"{folder}: a class folder without images ({', '.join(sorted(SUFFIXES))})")
    return names
