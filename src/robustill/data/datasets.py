"""The table of data sets, DATASETS, and `load`, the function that reads one of them by a reader of its own file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from robustill.core.errors import DataError, did_you_mean
from robustill.core.user_code import explain_file, names_code
from robustill.core.validation import check_flag, check_integer, check_path, check_type
from robustill.data.cifar import read_cifar10, read_cifar100
from robustill.data.digits import read_digits
from robustill.data.download import ADDRESSES, download_files
from robustill.data.folder import read_folder
from robustill.data.hub import download_shards, is_hub_root
from robustill.data.idx import read_fashion_mnist, read_mnist
from robustill.data.images import (
    MAX_IMAGE_SIZE,
    Dataset,
    ImageDataset,
    MissingDataError,
    Reader,
    Request,
    Split,
    pixel_warnings,
)
from robustill.data.imported import read_imported
from robustill.data.npz import read_npz
from robustill.data.parquet import read_parquet
from robustill.data.svhn import read_svhn
from robustill.data.webdataset import CLASS_NAMES, read_webdataset

DEFAULT_ROOT = Path("data")


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """A row of DATASETS.

    Args:
        read: the reader.
        description: one line for a list of the data sets.
        num_classes: K, or None if it depends on the files.
        image_shape: (C, H, W), or None if it depends on the files.
        mean: mean of the training images for each channel, in [0,1].
        std: standard deviation of the training images for each channel, in [0,1].
        settings: the settings of the reader itself, beside those of all data sets.
        hub_files: patterns of its files in a data set of the Hugging Face hub; none if it cannot come from there.
    """

    read: Reader
    description: str
    num_classes: int | None = None
    image_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    settings: tuple[str, ...] = ()
    hub_files: tuple[str, ...] = ()


DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(
        read=read_digits,
        description="1,797 handwritten digits, 1×8×8, which come with the package",
        num_classes=10,
        image_shape=(1, 8, 8),
        mean=(0.3048,),
        std=(0.3757,),
    ),
    "cifar10": DatasetEntry(
        read=read_cifar10,
        description="60,000 photographs of 10 classes, 3×32×32",
        num_classes=10,
        image_shape=(3, 32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": DatasetEntry(
        read=read_cifar100,
        description="60,000 photographs of 100 classes, 3×32×32",
        num_classes=100,
        image_shape=(3, 32, 32),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    "mnist": DatasetEntry(
        read=read_mnist,
        description="70,000 handwritten digits, 1×28×28",
        num_classes=10,
        image_shape=(1, 28, 28),
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "fashion_mnist": DatasetEntry(
        read=read_fashion_mnist,
        description="70,000 pictures of clothes in 10 classes, 1×28×28",
        num_classes=10,
        image_shape=(1, 28, 28),
        mean=(0.2860,),
        std=(0.3530,),
    ),
    "svhn": DatasetEntry(
        read=read_svhn,
        description="99,289 digits of house numbers, cropped, 3×32×32",
        num_classes=10,
        image_shape=(3, 32, 32),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
    ),
    "npz": DatasetEntry(read=read_npz, description="a NumPy archive, or a folder with train.npz and test.npz"),
    "folder": DatasetEntry(
        read=read_folder,
        description="image files in train/CLASS and test/CLASS, or in CLASS alone: a fifth is then for testing",
    ),
    "parquet": DatasetEntry(
        read=read_parquet,
        description="Parquet files with encoded images and labels, as on the Hugging Face hub",
        settings=("image_column", "label_column"),
        hub_files=("*.parquet",),
    ),
    "webdataset": DatasetEntry(
        read=read_webdataset,
        description="tar archives with KEY.jpg or KEY.png beside KEY.cls or KEY.json",
        settings=("label_column",),
        hub_files=("*.tar", f"*{CLASS_NAMES}"),
    ),
}


def dataset_entry(name: str) -> DatasetEntry:
    """Return the row of DATASETS of a name, or one for an import path, of which nothing is known before it is read."""
    if ":" in name:
        return DatasetEntry(read=read_imported, description=f"the data set that {name} returns")
    return DATASETS[name]


def is_dataset(name: str) -> bool:
    """Return whether a name is that of a data set: a key of DATASETS, or an import path."""
    return name in DATASETS or (names_code(name) and explain_file(name) is None)


def load(
    name: str,
    *,
    root: Path | str | None = None,
    split: Split = "train",
    image_size: int | None = None,
    download: bool = False,
    num_classes: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Dataset:
    """Read a data set.

    Args:
        name: a key of DATASETS, or an import path `my_pkg.my_mod:dataset`, see `robustill.data.imported`.
        root: the folder with its files, by default `data` in the working directory; for parquet and webdataset also
            hf://datasets/OWNER/NAME on the Hugging Face hub.
        split: "train" or "test".
        image_size: images are resized so that the shorter side has this many pixels, then cropped to the centre
            square; None leaves them unchanged.
        download: download the files to `root` if they are missing.
        num_classes: the expected number of classes.
        image_column: the column of the images, for parquet; None for the only one.
        label_column: the column of the labels, for parquet, or their key in KEY.json, for webdataset; None for the
            usual names.

    Returns:
        The split, in memory if it fits.

    Raises:
        DataError: the name is unknown, files are missing or damaged, or the number of classes is not the expected one.
    """
    check_type("name", name, str, f"one of {', '.join(DATASETS)}", DataError)
    if not is_dataset(name):
        raise DataError(f"unknown data set {name!r}: {explain_file(name) or did_you_mean(name, DATASETS)}")
    if split not in get_args(Split):
        raise DataError(f"split {split!r} is unknown: expected train or test; validation images are a part of train")
    if image_size is not None:
        check_integer("image_size", image_size, at_least=1, below=MAX_IMAGE_SIZE + 1, error=DataError)
    if num_classes is not None:
        check_integer("num_classes", num_classes, at_least=1, error=DataError)
    check_flag("download", download)
    entry = dataset_entry(name)
    for setting, value in (("image_column", image_column), ("label_column", label_column)):
        check_type(setting, value, (str, type(None)), "a name", DataError)
        if value is not None and setting not in entry.settings:
            raise DataError(f"{setting} is {value!r}, but the data set {name} has no such setting: leave it out")
    place = DEFAULT_ROOT if root is None else check_path("root", root).expanduser()
    if is_hub_root(place):
        place = download_shards(name, place, entry.hub_files, download=download)
    request = Request(
        name=name,
        root=place,
        split=split,
        image_size=image_size,
        num_classes=num_classes,
        image_column=image_column,
        label_column=label_column,
        downloadable=name in ADDRESSES,
    )
    try:
        dataset = entry.read(request)
    except MissingDataError:
        if not (download and request.downloadable):
            raise
        download_files(name, request.root)
        dataset = entry.read(request)
    if entry.image_shape is not None and dataset.image_shape != entry.image_shape:
        raise DataError(f"{name}: images of shape {dataset.image_shape}, expected {entry.image_shape}")
    if num_classes is not None and dataset.num_classes != num_classes:
        raise DataError(f"{name}: found {dataset.num_classes} classes, expected {num_classes}")
    for line in pixel_warnings(dataset):
        warnings.warn(line, stacklevel=2)
    if image_size is not None and isinstance(dataset, ImageDataset):
        return dataset.resized(image_size)
    return dataset
