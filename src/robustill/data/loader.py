"""Batches of a data set in a seeded order, resident on the device or decoded ahead of time."""

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
"""Seconds without an item after which its source counts as hanging."""

_GRACE = 5.0
T = TypeVar("T")


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


def prefetched(source: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, up to `depth` of them ready before they are asked for.

    An error in `source` is raised at the item it belongs to; when the consumer leaves early, the thread ends with it.

    Raises:
        DataError: no item came for PATIENCE seconds; it says where the thread hangs.
    """
    ready: queue.Queue[_Item[T] | BaseException | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: _Item[T] | BaseException | None) -> bool:
        # A plain put could wait for ever for a consumer that has left.
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for value in source:
                if not put(_Item(value)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            try:
                entry = ready.get(timeout=PATIENCE)
            except queue.Empty:
                raise DataError(
                    f"no images came for {PATIENCE:g} seconds: {_place(thread)} hangs; look at the disk or the "
                    "network that they are read from, and repeat the command"
                ) from None
            if entry is None:
                return
            if isinstance(entry, BaseException):
                raise entry
            yield entry.value
    finally:
        stopped.set()
        # One that hangs ends with the process.
        thread.join(_GRACE)


def _place(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return f"the thread {thread.name}"
    (*_, last) = traceback.extract_stack(frame)
    return f"the thread {thread.name}, in {last.name} of {Path(last.filename).name} line {last.lineno},"


class Loader:
    """Batches for one process.

    What an epoch yields is a function of (seed, epoch) alone; of several processes each `share` is a part of the very
    batches, with the very random numbers, that a single process would get.

    Args:
        dataset: in memory (kept on `device` as uint8) or streaming (decoded ahead in a thread).
        ids: which images, int64 [n].
        batch_size: images a step over all processes together.
        seed: of order and augmentation.
        augmentation: None for images as they are.
        device: where the batches are wanted.
        labels: int64 [N], one for each image of the data set, in place of its own.

    Raises:
        ConfigError: a batch size that is not positive.
        DataError: no ids, ids or labels that do not belong to the data set.
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
        self._resident: Tensor | None = None
        if isinstance(dataset, ImageDataset) and self.device == dataset.images.device:
            self._resident = dataset.images
        elif isinstance(dataset, ImageDataset):
            # Only the images in use: the loaders of training and validation share no image.
            self._resident = dataset.images[self.ids].to(self.device)

    def __len__(self) -> int:
        return -(-len(self.ids) // self.batch_size)

    def images_at(self, step: int) -> int:
        """How many images all processes together see at a step."""
        return min(self.batch_size, len(self.ids) - step * self.batch_size)

    def share(self, rank: int, world_size: int) -> Loader:
        """The same batches as one of several processes gets them: a part of each, all parts together the whole."""
        assert 0 <= rank < world_size
        shared = copy.copy(self)
        shared.rank, shared.world_size = rank, world_size
        return shared

    def epoch(self, e: int, first: int = 0) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
        """The batches of epoch `e`.

        Args:
            e: counted from 0.
            first: the step to begin with; those before it need not be computed.

        Returns:
            (x, y, index) a step: images float32 [B,C,H,W] in [0,1], labels int64 [B], ids in the data set int64 [B].
        """
        order = torch.randperm(len(self.ids), generator=generator(self.seed, "order", e))
        # One transfer an epoch; a step only takes views.
        ids = self.ids[order].to(self.device)
        # Closing tells the decoding thread to stop when the consumer leaves in the middle of an epoch.
        with closing(self._pixels(order, first)) as pixels:
            for step, images in enumerate(pixels, first):
                if self.augmentation is not None:
                    total, part = self._share(step)
                    draws = generator(self.seed, "augment", e, step)
                    images = self.augmentation(images, draws, total=total, part=part)
                index = self._part(ids, step)
                yield images.to(torch.float32).div_(255), self._labels[index], index

    def _share(self, step: int) -> tuple[int, slice]:
        """How many images the global batch has, and which of them are this process's."""
        total = self.images_at(step)
        return total, shard_of(total, self.rank, self.world_size)

    def _part(self, ordered: Tensor, step: int) -> Tensor:
        """What this process gets at a step of something in the order of the epoch."""
        _, part = self._share(step)
        return ordered[step * self.batch_size :][part]

    def _pixels(self, order: Tensor, first: int) -> Generator[Tensor, None, None]:
        """The images of each step, uint8 on the device."""
        if self._resident is None:
            ids = self.ids[order]
            reads = (self.dataset.read(self._part(ids, step)) for step in range(first, len(self)))
            with closing(prefetched(reads)) as decoded:
                for images in decoded:
                    yield images.to(self.device, non_blocking=True)
            return
        whole = isinstance(self.dataset, ImageDataset) and self._resident is self.dataset.images
        rows = (self.ids[order] if whole else order).to(self.device)
        for step in range(first, len(self)):
            yield torch.index_select(self._resident, 0, self._part(rows, step))
