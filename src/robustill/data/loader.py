"""Batches of a data set in a seeded order.

`Loader` makes them, from images on the device or from images that are decoded in a thread; `prefetch` runs that thread.
"""

from __future__ import annotations

import copy
import queue
import sys
import threading
import traceback
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from robustill.core.distributed import shard_of
from robustill.core.errors import ConfigError, DataError
from robustill.core.randomness import generator
from robustill.data.augmentation import Augmentation
from robustill.data.images import Dataset, ImageDataset

PATIENCE = 300.0
"""Seconds to wait for an item before its source counts as hanging."""

_JOIN_TIMEOUT = 5.0
T = TypeVar("T")


class Loader:
    """The batches of a data set, for one process.

    An epoch is a function of (seed, epoch) alone. With several processes each has a `shard`: a part of the batches that
    a single process would get, with the same random numbers.

    Args:
        dataset: in memory, then it is stored on `device` as uint8, or streaming, then it is decoded in a thread.
        ids: the images to use, int64 [n].
        batch_size: images in a step, over all processes together.
        seed: the seed of order and augmentation.
        augmentation: None leaves the images unchanged.
        device: the device of the batches.
        labels: int64 [N], a label for each image of the data set, in place of its own.

    Raises:
        ConfigError: the batch size is not positive.
        DataError: there are no ids, or ids or labels do not belong to the data set.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: Tensor,
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
        labels: Tensor | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch size {batch_size}: expected a positive number")
        if len(ids) == 0 or int(ids.min()) < 0 or int(ids.max()) >= len(dataset):
            raise DataError(f"{dataset.name}: expected one or more ids from 0 to {len(dataset) - 1}")
        if labels is not None and labels.shape != dataset.labels.shape:
            raise DataError(f"{dataset.name}: {len(labels)} labels given for {len(dataset)} images")
        self.dataset = dataset
        self.ids = ids.cpu()
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = augmentation
        self.device = torch.device(device)
        self.rank, self.world_size = 0, 1
        self._labels = (dataset.labels if labels is None else labels).to(self.device)
        self._images: Tensor | None = None
        if isinstance(dataset, ImageDataset) and self.device == dataset.images.device:
            self._images = dataset.images
        elif isinstance(dataset, ImageDataset):
            # Only the images in use, because the loaders of training and validation have no image in common.
            self._images = dataset.images[self.ids].to(self.device)

    def __len__(self) -> int:
        return -(-len(self.ids) // self.batch_size)

    def images_at(self, step: int) -> int:
        """Return the number of images in a step, over all processes together."""
        return min(self.batch_size, len(self.ids) - step * self.batch_size)

    def shard(self, rank: int, world_size: int) -> Loader:
        """Return the loader of one of several processes; the parts of all processes make up each batch."""
        assert 0 <= rank < world_size
        sharded = copy.copy(self)
        sharded.rank, sharded.world_size = rank, world_size
        return sharded

    def epoch(self, e: int, first: int = 0) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
        """Yield the batches of epoch `e`.

        Args:
            e: the epoch, counted from 0.
            first: the step to begin with; earlier steps are not computed.

        Yields:
            (x, y, index): images float32 [B,C,H,W] in [0,1], labels int64 [B], ids in the data set int64 [B].
        """
        order = torch.randperm(len(self.ids), generator=generator(self.seed, "order", e))
        # One transfer for each epoch; a step only takes views.
        ids = self.ids[order].to(self.device)
        # Closing stops the decoding thread when the consumer leaves in the middle of an epoch.
        with closing(self._pixels(order, first)) as pixels:
            for step, images in enumerate(pixels, first):
                if self.augmentation is not None:
                    total, part = self._shard(step)
                    draws = generator(self.seed, "augment", e, step)
                    images = self.augmentation(images, draws, total=total, part=part)
                index = self._rows(ids, step)
                yield images.to(torch.float32).div_(255), self._labels[index], index

    def _shard(self, step: int) -> tuple[int, slice]:
        """Return the number of images in the whole batch, and which of them belong to this process."""
        total = self.images_at(step)
        return total, shard_of(total, self.rank, self.world_size)

    def _rows(self, ordered: Tensor, step: int) -> Tensor:
        """Return this process's rows for a step, from values in the order of the epoch."""
        _, part = self._shard(step)
        return ordered[step * self.batch_size :][part]

    def _pixels(self, order: Tensor, first: int) -> Generator[Tensor, None, None]:
        """Yield the images of each step, uint8 on the device."""
        if self._images is None:
            ids = self.ids[order]
            reads = (self.dataset.read(self._rows(ids, step)) for step in range(first, len(self)))
            with closing(prefetch(reads)) as decoded:
                for images in decoded:
                    yield images.to(self.device, non_blocking=True)
            return
        holds_all = isinstance(self.dataset, ImageDataset) and self._images is self.dataset.images
        rows = (self.ids[order] if holds_all else order).to(self.device)
        for step in range(first, len(self)):
            yield torch.index_select(self._images, 0, self._rows(rows, step))


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


def prefetch(source: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """Yield the items of `source`, which a thread computes ahead, up to `depth` items.

    An error in `source` is raised at the item it belongs to. When the consumer leaves early, the thread ends as well.

    Raises:
        DataError: no item came for PATIENCE seconds; the message says where the thread hangs.
    """
    ready: queue.Queue[_Item[T] | BaseException | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: _Item[T] | BaseException | None) -> bool:
        # A put without a timeout could wait forever for a consumer that has left.
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def fill() -> None:
        try:
            for value in source:
                if not put(_Item(value)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=fill, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            try:
                entry = ready.get(timeout=PATIENCE)
            except queue.Empty:
                raise DataError(
                    f"no images came for {PATIENCE:g} seconds: {_position(thread)} hangs; check the disk or the "
                    "network that they are read from, and repeat the command"
                ) from None
            if entry is None:
                return
            if isinstance(entry, BaseException):
                raise entry
            yield entry.value
    finally:
        stopped.set()
        # A thread that hangs ends with the process.
        thread.join(_JOIN_TIMEOUT)


def _position(thread: threading.Thread) -> str:
    """Describe where a thread is at the moment."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return f"the thread {thread.name}"
    last = traceback.extract_stack(frame)[-1]
    return f"the thread {thread.name}, in {last.name} of {Path(last.filename).name} line {last.lineno},"
