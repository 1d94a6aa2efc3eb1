"""Extra training images, such as generated ones, that may be more than fit into memory: a share of every batch.

In this order: `ExtraImages` on disk, `MixedLoader`, which mixes them into the batches of a data set, and the mapping of
NumPy files into memory.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import zipfile
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustill.core.errors import ConfigError, DataError
from robustill.core.files import BoundedReader, reading
from robustill.core.randomness import generator
from robustill.data.loader import Loader, prefetch
from robustill.data.npz import IMAGE_KEYS, LABEL_KEYS

# Images of which the fingerprint is made.
_SAMPLE = 1000
_LABELS_AT_ONCE = 1 << 20
# Of the zip format: the size of an entry's header, and the flag of an encrypted entry.
_LOCAL_HEADER = 30
_ENCRYPTED = 1


class ExtraImages:
    """Images and labels on disk. Only the requested rows are read; every label is checked once.

    Args:
        path: an .npz file whose arrays are not compressed, or a folder of .npy files; named images|x|image and
            labels|y|label. Images are uint8, [N,H,W,C], [N,C,H,W] or, with one channel, [N,H,W].
        image_shape: (C,H,W) of the images that they are mixed with.
        num_classes: K.

    Raises:
        DataError: a file is missing, damaged or compressed, or images or labels do not match the data set.
    """

    def __init__(self, path: Path, image_shape: tuple[int, int, int], num_classes: int) -> None:
        self.path = path
        self.image_shape = image_shape
        self._images, labels = map_array(path, IMAGE_KEYS), map_array(path, LABEL_KEYS)
        self._labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        C, H, W = image_shape
        layouts: dict[tuple[int, ...], bool] = {(H, W, C): True, (C, H, W): False}
        if C == 1:
            layouts[H, W] = False
        shape = self._images.shape[1:]
        if self._images.dtype != np.uint8 or shape not in layouts:
            raise DataError(
                f"{path}: images are {self._images.dtype} of shape {self._images.shape}, "
                f"expected uint8 of shape [N,{H},{W},{C}] or [N,{C},{H},{W}] as in the data set"
            )
        self._channels_last = layouts[shape]
        self._check_labels(num_classes)

    def _check_labels(self, num_classes: int) -> None:
        labels, count = self._labels, len(self._images)
        if labels.dtype.kind not in "iu" or labels.shape != (count,):
            raise DataError(
                f"{self.path}: labels are {labels.dtype} of shape {labels.shape}, expected integers of shape ({count},)"
            )
        if count == 0:
            raise DataError(f"{self.path}: no images; give a file with images")
        for part in self._label_parts():
            if part.min() < 0 or part.max() >= num_classes:
                raise DataError(
                    f"{self.path}: found labels from {part.min()} to {part.max()}, expected 0 to {num_classes - 1}"
                )

    def _label_parts(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), _LABELS_AT_ONCE):
            check_not_truncated(self.path, self._labels)
            yield self._labels[start : start + _LABELS_AT_ONCE]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images, uint8 [B,C,H,W], and labels, int64 [B], of these rows, on the CPU."""
        index = rows.numpy()
        for array in (self._images, self._labels):
            check_not_truncated(self.path, array)
        images = torch.from_numpy(np.ascontiguousarray(self._images[index]))
        if self._channels_last:
            images = images.permute(0, 3, 1, 2).contiguous()
        return images.view(-1, *self.image_shape), torch.from_numpy(self._labels[index].astype(np.int64))

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of shape, all labels and a thousand evenly spaced images; to read all images would take hours."""
        rows = torch.linspace(0, len(self) - 1, min(_SAMPLE, len(self)), dtype=torch.float64).long()
        images, _ = self.read(rows)
        digest = hashlib.sha256(repr((len(self), *self.image_shape)).encode())
        digest.update(images.numpy().data)
        for part in self._label_parts():
            digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()


class MixedLoader:
    """The batches of a data set, with a share of extra images in every batch.

    An epoch has as many steps as without extra images, so it covers a part of the data set, each image at most once.
    The extra images of a step are drawn from all of them, are augmented like the others, and are a function of (seed,
    epoch, step). The id of an extra image is its row plus the size of the data set.

    Args:
        loader: the loader of the data set; its batch size is `own_images` of the whole batch size.
        extra: the extra images.
        batch_size: images in a step, own and extra ones together.
    """

    def __init__(self, loader: Loader, extra: ExtraImages, *, batch_size: int) -> None:
        self.loader = loader
        self.extra = extra
        self.batch_size = batch_size
        self.ids = loader.ids

    def __len__(self) -> int:
        return -(-len(self.ids) // self.batch_size)

    def epoch(self, e: int, first: int = 0) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
        """Yield the batches of epoch `e` from step `first` on, as `Loader.epoch` does."""
        device, seed, augmentation = self.loader.device, self.loader.seed, self.loader.augmentation
        with closing(prefetch(self._extra(e, first))) as extra, closing(self._own(e, first)) as own_batches:
            pairs = zip(extra, own_batches, strict=True)
            for step, ((rows, images, labels), (x, y, index)) in enumerate(pairs, first):
                own = self.images_at(step) - len(rows)
                images = images.to(device, non_blocking=True)
                if augmentation is not None:
                    images = augmentation(images, generator(seed, "augment extra", e, step))
                # Shuffled, so that each part of a batch is a mixture as well.
                order = torch.randperm(own + len(rows), generator=generator(seed, "mixture", e, step))
                order = order.to(device, non_blocking=True)
                yield (
                    torch.cat([x[:own], images.to(torch.float32).div_(255)])[order],
                    torch.cat([y[:own], labels.to(device, non_blocking=True)])[order],
                    torch.cat([index[:own], len(self.loader.dataset) + rows.to(device, non_blocking=True)])[order],
                )

    def images_at(self, step: int) -> int:
        """Return the number of images in a step, own and extra ones together."""
        return min(self.batch_size, len(self.ids) - step * self.batch_size)

    def _own(self, e: int, first: int) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
        """Yield the batches of the data set."""
        with closing(self.loader.epoch(e, first)) as batches:
            yield from islice(batches, len(self) - first)

    def _extra(self, e: int, first: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows, images and labels of the extra images of each step."""
        share = 1 - self.loader.batch_size / self.batch_size
        for step in range(first, len(self)):
            draws = generator(self.loader.seed, "extra", e, step)
            rows = torch.randint(len(self.extra), (round(share * self.images_at(step)),), generator=draws)
            yield rows, *self.extra.read(rows)


def own_images(batch_size: int, share: float) -> int:
    """Return how many images of a full batch belong to the data set if a share of the batch is extra images.

    Raises:
        ConfigError: the batch would have no images of one kind.

    Example:
        >>> own_images(512, 0.7)
        154
    """
    own = batch_size - round(share * batch_size)
    if not 0 < own < batch_size:
        raise ConfigError(
            f"data.extra_share is {share:g}: a batch of {batch_size} would have {own} images of the data set; "
            "give a share that leaves at least one image of each kind"
        )
    return own


def map_array(path: Path, names: tuple[str, ...]) -> np.ndarray:
    """Map the first array with one of these names into memory, read-only; a row is read from disk when it is used.

    Args:
        path: an .npz file whose arrays are not compressed, or a folder of .npy files.
        names: names without .npy, in order of preference.

    Raises:
        DataError: the array is missing, truncated or compressed, or holds objects.
    """
    with reading(path):
        if path.is_dir():
            files = [path / f"{name}.npy" for name in names]
            existing = [file for file in files if file.is_file()]
            if not existing:
                raise DataError(f"{path}: no file named {'|'.join(names)}.npy; rename a file, or give another folder")
            file = existing[0]
            return _map(file, 0, file.stat().st_size, file.name)
        if not path.is_file():
            raise DataError(f"{path} not found: expected an .npz file, or a folder with image.npy and label.npy")
        member = _stored_member(path, names)
        return _map(path, _content_start(path, member), member.file_size, member.filename)


def check_not_truncated(path: Path, array: np.ndarray) -> None:
    """Check that a mapped file is still as long as it was: reading behind its end would kill the process.

    Raises:
        DataError: the file was truncated.
    """
    while isinstance(array.base, np.ndarray):
        array = array.base
    mapped = array.base
    if isinstance(array, np.memmap) and isinstance(mapped, mmap.mmap) and mapped.size() < array.offset + array.nbytes:
        raise DataError(
            f"{path}: a file of it was truncated while it was in use ({mapped.size()} bytes are left): restore it; "
            "the same command goes on from the last checkpoint"
        )


def _stored_member(path: Path, names: tuple[str, ...]) -> zipfile.ZipInfo:
    """Return the first member of an archive with one of these names; it must not be compressed."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    matching = [members[name] for name in names if name in members]
    if not matching:
        present = ", ".join(list(members)[:5]) or "none"
        raise DataError(f"{path}: no array named {'|'.join(names)}, found {present}")
    member = matching[0]
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
        raise DataError(
            f"{path}: {member.filename} is compressed, so its rows cannot be read one by one: "
            f"unpack the file (python -m zipfile -e {path.name} FOLDER) and give the folder"
        )
    return member


def _content_start(path: Path, member: zipfile.ZipInfo) -> int:
    """Return where the content of a member begins; `ZipInfo` has the start of its header only."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
    if header[:4] != b"PK\x03\x04":
        raise ValueError("an entry of the archive is not at the place in its index")
    # Bytes 26 to 30 are the lengths of the name and of the extra field, which may differ from the index.
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return member.header_offset + _LOCAL_HEADER + lengths


def _map(path: Path, start: int, size: int, name: str) -> np.ndarray:
    """Map the array in these bytes of a file, which begin with the header of the .npy format."""
    with BoundedReader(path) as file:
        file.seek(start)
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        begin = file.tell()
    if dtype.hasobject:
        raise DataError(f"{path}: {name} holds Python objects, which are never read: store numbers")
    expected = math.prod(shape) * dtype.itemsize
    available = size - (begin - start)
    if expected != available:
        raise DataError(
            f"{path}: {name} has {available} bytes, expected {expected} for shape {shape}: replace the file"
        )
    if expected == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", begin, shape, "F" if fortran else "C")
