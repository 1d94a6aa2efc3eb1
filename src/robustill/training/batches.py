"""What the student sees, a step each: batches of the loader, or a process's share of them, with their labels mixed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing

import torch

from robustill.config.schema import Config
from robustill.core.distributed import ProcessGroup
from robustill.core.randomness import generator
from robustill.data.augmentation import cutmix
from robustill.data.extra import MixedLoader
from robustill.data.loader import Loader
from robustill.methods import Batch
from robustill.training.setup import TrainingSetup
from robustill.training.step import BatchShare


class Batches:
    """The batches of one epoch after another, a function of (seed, epoch, step).

    Args:
        config: of the run.
        pieces: whose loader gives the images.
        group: the processes that share them.
    """

    def __init__(self, config: Config, pieces: TrainingSetup, group: ProcessGroup) -> None:
        self.config, self.loader, self.group = config, pieces.loader, group
        self.num_classes = pieces.shape.num_classes

    def __len__(self) -> int:
        return len(self.loader)

    def shares(self, epoch: int, first: int = 0) -> Iterator[tuple[Batch, BatchShare | None]]:
        """What this process sees in an epoch, from a step on; alone, it sees all, which is no share."""
        group, loader = self.group, self.loader
        if group.world_size == 1:
            yield from ((batch, None) for batch in self._of(loader, epoch, first))
            return
        whole = isinstance(loader, MixedLoader) or self.config.data.cutmix > 0
        if isinstance(loader, Loader) and not whole:
            loader = loader.shard(group.rank, group.world_size)
        with closing(self._of(loader, epoch, first)) as batches:
            for step, batch in enumerate(batches, first):
                share = BatchShare(loader.images_at(step), group.part(loader.images_at(step)))
                # What is mixed among a whole batch, labels or images of two kinds, is mixed before the parts are taken.
                yield batch.part(share.own) if whole else batch, share

    def whole(self, epoch: int) -> Generator[Batch, None, None]:
        """What all processes together see in an epoch."""
        return self._of(self.loader, epoch, 0)

    def _of(self, loader: Loader | MixedLoader, epoch: int, first: int) -> Generator[Batch, None, None]:
        """The batches of a loader, their labels mixed where that is wanted."""
        config = self.config
        with closing(loader.epoch(epoch, first)) as batches:
            for step, (x, y, index) in enumerate(batches, first):
                mixed = None
                if config.data.cutmix > 0:
                    draws = generator(config.seed, "cutmix", epoch, step)
                    x, mixed = cutmix(x, y, self.num_classes, draws, share=config.data.cutmix)
                yield Batch(
                    x=x.contiguous(memory_format=torch.channels_last),
                    y=y if mixed is None else mixed.argmax(dim=1),
                    index=index,
                    epoch=epoch,
                    epochs=config.optim.epochs,
                    mixed=mixed,
                    smoothing=config.optim.label_smoothing,
                )
