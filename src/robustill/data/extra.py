"""More training images than fit into memory, such as generated ones: read where they lie, a share of every batch."""

from __future__ import annotations

import hashlib
import math
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
from robustill.core.files import reading
from robustill.core.randomness import generator
from robustill.data.loader import Loader, prefetched
from robustill.data.npz import IMAGE_KEYS, LABEL_KEYS

_LOCAL_HEADER = 30
_ENCRYPTED = 1


def mapped_array(path: Path, names: tuple[str, ...]) -> np.ndarray:
    """The first array of these names, read-only; only the rows that are looked at are read.

    Args:
        path: an .npz file whose arrays are not compressed, or a folder of .npy files.
        names: without .npy, in order of preference.

    Raises:
        DataError: it is missing, cut off, compressed, or holds objects.
    """
    with reading(path):
        if path.is_dir():
            file = next((file for name in names if (file := path / f"{name}.npy").is_file()), None)
            if file is None:
                raise DataError(f"{path}: no file named {'|'.join(names)}.npy; name it so, or give another folder")
            return _map(file, 0, file.stat().st_size, file.name)
        if not path.is_file():
            raise DataError(f"{path} not found: expected an .npz file, or a folder with image.npy and label.npy")
        member = _member(path, names)
        return _map(path, _content(path, member), member.file_size, member.filename)


def _member(path: Path, names: tuple[str, ...]) -> zipfile.ZipInfo:
    with zipfile.ZipFile(path) as archive:
        members = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
    member = next((members[name] for name in names if name in members), None)
    if member is None:
        raise DataError(f"{path}: no array named {'|'.join(names)}, found {', '.join(list(members)[:5]) or 'none'}")
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
        raise DataError(
            f"{path}: {member.filename} is compressed, so that it cannot be read where it lies: "
            f"unpack the file (python -m zipfile -e {path.name} FOLDER) and give the folder"
        )
    return member


def _content(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the content of a member begins; `ZipInfo` tells where its header does."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
    if header[:4] != b"PK\x03\x04":
        raise ValueError("an entry of the archive is not where its index says")
    # The lengths of the name and of the extra field follow at 26; the index may state another extra field.
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return member.header_offset + _LOCAL_HEADER + lengths


def _map(path: Path, start: int, size: int, name: str) -> np.ndarray:
    """The array in these bytes of a file, which begin with the header of the .npy format."""
    with path.open("rb") as file:
        file.seek(start)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        begin = file.tell()
    if dtype.hasobject:
        raise DataError(f"{path}: {name} holds Python objects, which are never read: store numbers")
    expected, found = math.prod(shape) * dtype.itemsize, size - (begin - start)
    if expected != found:
        raise DataError(f"{path}: {name} holds {found} bytes of the {expected} of its shape {shape}: replace the file")
    if expected == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", begin, shape, "F" if fortran else "C")


_SAMPLE = 1000
_LABELS_AT_ONCE = 1 << 20


class ExtraImages:
    """Images and labels on disk, of which only the rows asked for are read; every label is looked at once.

    Args:
        path: an .npz file whose arrays are not compressed, or a folder of .npy files; named images|x|image and
            labels|y|label. Images are uint8, [N,H,W,C], [N,C,H,W] or, with one channel, [N,H,W].
        image_shape: (C,H,W) of the images they are mixed with.
        num_classes: K.

    Raises:
        DataError: a file that is missing, damaged or compressed; images or labels that do not fit.
    """

    def __init__(self, path: Path, image_shape: tuple[int, int, int], num_classes: int) -> None:
        self.path = path
        self.image_shape = image_shape
        self._images, labels = mapped_array(path, IMAGE_KEYS), mapped_array(path, LABEL_KEYS)
        self._labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        C, H, W = image_shape
        layouts: dict[tuple[int, ...], bool] = {(H, W, C): True, (C, H, W): False}
        if C == 1:
            layouts[H, W] = False
        found = self._images.shape[1:]
        if self._images.dtype != np.uint8 or found not in layouts:
            raise DataError(
                f"{path}: images are {self._images.dtype} of shape {self._images.shape}, "
                f"expected uint8 of shape [N,{H},{W},{C}] or [N,{C},{H},{W}], as the data set's"
            )
        self._channels_last = layouts[found]
        self._check_labels(num_classes)

    def _check_labels(self, num_classes: int) -> None:
        labels, count = self._labels, len(self._images)
        if labels.dtype.kind not in "iu" or labels.shape != (count,):
            raise DataError(
                f"{self.path}: labels are {labels.dtype} of shape {labels.shape}, expected integers of shape ({count},)"
            )
        if count == 0:
            raise DataError(f"{self.path}: no images; give a file that holds some")
        for part in self._label_parts():
            if part.min() < 0 or part.max() >= num_classes:
                raise DataError(
                    f"{self.path}: found labels from {part.min()} to {part.max()}, expected 0 to {num_classes - 1}"
                )

    def _label_parts(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), _LABELS_AT_ONCE):
            yield self._labels[start : start + _LABELS_AT_ONCE]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [B,C,H,W] and labels int64 [B] of these rows, on the CPU."""
        chosen = rows.numpy()
        images = torch.from_numpy(np.ascontiguousarray(self._images[chosen]))
        if self._channels_last:
            images = images.permute(0, 3, 1, 2).contiguous()
        return images.view(-1, *self.image_shape), torch.from_numpy(self._labels[chosen].astype(np.int64))

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of shape, of all labels and of a thousand images evenly spaced: to read all would take hours."""
        rows = torch.linspace(0, len(self) - 1, min(_SAMPLE, len(self)), dtype=torch.float64).long()
        images, _ = self.read(rows)
        digest = hashlib.sha256(repr((len(self), *self.image_shape)).encode())
        digest.update(images.numpy().data)
        for part in self._label_parts():
            digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()


class MixedLoader:
    """The batches of a loader, with a share of extra images in every one.

    An epoch has as many steps as it has without them, so it shows a part of the data set, each image at most once. The
    extra images of a step are drawn from all of them, are augmented like the others, and are a function of (seed,
    epoch, step). The id of an extra image is its row, counted on from the end of the data set.

    Args:
        loader: of the data set; its batch size is `own_images` of the whole one.
        extra: what is mixed in.
        batch_size: images a step, both together.
    """

    def __init__(self, loader: Loader, extra: ExtraImages, *, batch_size: int) -> None:
        self.loader = loader
        self.extra = extra
        self.batch_size = batch_size
        self.ids = loader.ids

    def __len__(self) -> int:
        return -(-len(self.ids) // self.batch_size)

    def epoch(self, e: int, first: int = 0) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
        """The batches of epoch `e`, as those of a Loader."""
        device, seed, augmentation = self.loader.device, self.loader.seed, self.loader.augmentation
        with closing(prefetched(self._drawn(e, first))) as drawn, closing(self._own(e, first)) as batches:
            both = zip(drawn, batches, strict=True)
            for step, ((rows, images, labels), (x, y, index)) in enumerate(both, first):
                own = self.images_at(step) - len(rows)
                images = images.to(device, non_blocking=True)
                if augmentation is not None:
                    images = augmentation(images, generator(seed, "augment extra", e, step))
                # Shuffled, so that any part of a batch is a mixture, too.
                order = torch.randperm(own + len(rows), generator=generator(seed, "mixture", e, step))
                order = order.to(device, non_blocking=True)
                yield (
                    torch.cat([x[:own], images.to(torch.float32).div_(255)])[order],
                    torch.cat([y[:own], labels.to(device, non_blocking=True)])[order],
                    torch.cat([index[:own], len(self.loader.dataset) + rows.to(device, non_blocking=True)])[order],
                )

    def images_at(self, step: int) -> int:
        """How many images a step has, both together."""
        return min(self.batch_size, len(self.ids) - step * self.batch_size)

    def _own(self, e: int, first: int) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
        with closing(self.loader.epoch(e, first)) as batches:
            yield from islice(batches, len(self) - first)

    def _drawn(self, e: int, first: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows, images and labels of each step."""
        share = 1 - self.loader.batch_size / self.batch_size
        for step in range(first, len(self)):
            draws = generator(self.loader.seed, "extra", e, step)
            rows = torch.randint(len(self.extra), (round(share * self.images_at(step)),), generator=draws)
            yield rows, *self.extra.read(rows)


def own_images(batch_size: int, share: float) -> int:
    """How many images of a full batch are the data set's, where a share of them are extra.

    Raises:
        ConfigError: none of one kind would be left.

    Example:
        >>> own_images(512, 0.7)
        154
    """
    own = batch_size - round(share * batch_size)
    if not 0 < own < batch_size:
        raise ConfigError(
            f"data.extra_share is {share:g}: of a batch of {batch_size}, {own} images would be the data set's own; "
            "give a share that leaves one of each kind"
        )
    return own
