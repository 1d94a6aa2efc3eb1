"""The batches that a run trains on, step by step: those of the loader, mixed by CutMix and shared by processes."""

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
from robustill.training.optimizer import rate_factor
from robustill.training.setup import TrainingSetup
from robustill.training.step import BatchShare


class Batches:
    """The batches of one epoch after another, a function of (seed, epoch, step).

    Args:
        config: the configuration of the run.
        setup: the run's images.
        group: the processes that share the batches.
    """

    def __init__(self, config: Config, setup: TrainingSetup, group: ProcessGroup) -> None:
        self.config, self.loader, self.group = config, setup.loader, group
        self.num_classes = setup.shape.num_classes

    def __len__(self) -> int:
        return len(self.loader)

    def shares(self, epoch: int, first: int = 0) -> Iterator[tuple[Batch, BatchShare | None]]:
        """Yield this process's part of every batch of an epoch, with its place in the batch; None for a lone process.

        Args:
            epoch: counted from 0.
            first: the step to begin with.
        """
        group, loader = self.group, self.loader
        if group.world_size == 1:
            for batch in self._load(loader, epoch, first):
                yield batch, None
            return
        # Where labels or two kinds of images are mixed within a batch, the whole batch is made and then divided.
        divides = isinstance(loader, MixedLoader) or self.config.data.cutmix > 0
        if isinstance(loader, Loader) and not divides:
            loader = loader.shard(group.rank, group.world_size)
        with closing(self._load(loader, epoch, first)) as batches:
            for step, batch in enumerate(batches, first):
                share = BatchShare(loader.images_at(step), group.part(loader.images_at(step)))
                yield batch.part(share.own) if divides else batch, share

    def rate_factor(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0 over all epochs, as a share of the largest one."""
        optim = self.config.optim
        progress = step / (optim.epochs * len(self))
        return rate_factor(
            progress, optim.schedule, warmup=optim.warmup, milestones=optim.milestones, decay=optim.decay
        )

    def whole(self, epoch: int) -> Generator[Batch, None, None]:
        """Return the whole batches of an epoch, of all processes together."""
        return self._load(self.loader, epoch, 0)

    def _load(self, loader: Loader | MixedLoader, epoch: int, first: int) -> Generator[Batch, None, None]:
        """Yield the batches of a loader, mixed by CutMix where the configuration says so."""
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
                    rate_factor=self.rate_factor(epoch * len(loader) + step),
                )
