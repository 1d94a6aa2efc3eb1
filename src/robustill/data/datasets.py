"""What can be loaded and from where: the table of data sets and the one function that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustill.data.digits import read_digits
from robustill.data.images import Dataset, ImageDataset, Reader, Request, Split
from robustill.data.npz import read_npz
from robustill.errors import DataError, did_you_mean

DEFAULT_ROOT = Path("data")


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """A row of DATASETS.

    Args:
        read: the reader.
        description: one line for a list.
        num_classes: K, or None where the files decide.
        image_shape: (C, H, W), or None where the files decide.
        mean: of the training images, a channel, in [0,1].
        std: of the training images, a channel, in [0,1].
    """

    read: Reader
    description: str
    num_classes: int | None = None
    image_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(
        read=read_digits,
        description="1,797 handwritten digits, 1×8×8, bundled with scikit-learn",
        num_classes=10,
        image_shape=(1, 8, 8),
    ),
    "npz": DatasetEntry(read=read_npz, description="a NumPy archive, or a folder with train.npz and test.npz"),
}


def load(
    name: str,
    *,
    root: Path | str | None = None,
    split: Split = "train",
    image_size: int | None = None,
    download: bool = False,
    num_classes: int | None = None,
) -> Dataset:
    """Read a data set.

    Args:
        name: a key of DATASETS.
        root: where its files are; the folder `data` here if not given.
        split: "train" or "test".
        image_size: shorter side brought to this many pixels, then the centre square; None for images as they are.
        download: fetch the files to `root` when they are not there.
        num_classes: how many classes are expected.

    Returns:
        The split, in memory where it fits.

    Raises:
        DataError: an unknown name, files that are missing or damaged, another number of classes than expected.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}: {did_you_mean(name, DATASETS)}")
    if image_size is not None and image_size < 1:
        raise DataError(f"image size {image_size}: expected 1 or more pixels")
    entry = DATASETS[name]
    request = Request(
        name=name,
        root=DEFAULT_ROOT if root is None else Path(root).expanduser(),
        split=split,
        image_size=image_size,
        num_classes=num_classes,
    )
    dataset = entry.read(request)
    if num_classes is not None and dataset.num_classes != num_classes:
        raise DataError(f"{name}: found {dataset.num_classes} classes, expected {num_classes}")
    if image_size is not None and isinstance(dataset, ImageDataset):
        return dataset.resized(image_size)
    return dataset
