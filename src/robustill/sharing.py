"""What it takes that several processes train one student: each has a part of every batch."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import nn

from robustill.config import Config
from robustill.distributed import Processes
from robustill.errors import ConfigError
from robustill.methods import Method
from robustill.prepare import Pieces


def check_shares(config: Config, pieces: Pieces, group: Processes) -> None:
    """See that every process has an image in every batch, and that the method needs no more than the sum over them.

    Raises:
        ConfigError: one of both is not so.
    """
    loader = pieces.loader
    fewest = min(loader.images_at(0), loader.images_at(len(loader) - 1))
    if fewest < group.number:
        raise ConfigError(
            f"a batch of {fewest} images (of {len(loader.ids)} in batches of {loader.batch_size}) is too small for "
            f"{group.number} processes: change optim.batch_size or data.train_size, or start fewer"
        )
    # What they sum in every part, such as BatchNorm's statistics, needs all of them.
    parts = config.optim.accumulate
    for images in (loader.images_at(0), loader.images_at(len(loader) - 1)):
        smallest = images // group.number
        if smallest < parts and images % group.number:
            raise ConfigError(
                f"a batch of {images} images gives {group.number} processes {smallest} or {smallest + 1} images each, "
                f"not equally many parts by optim.accumulate {parts}: change it, optim.batch_size or data.train_size"
            )
    methods = [each for each in pieces.method.modules() if isinstance(each, Method)]
    if group.number > 1 and any(each.whole_batch for each in methods):
        raise ConfigError(
            f"method {config.method.name} compares the images of a whole batch, which {group.number} processes would "
            "share: start one"
        )


def add_up_gradients(module: nn.Module, group: Processes) -> None:
    """Σ over the processes in one message, where each has divided its own by the images of all.

    Args:
        module: its parameters' gradients are overwritten; those that have none must have none on any process.
        group: the processes.
    """
    if group.number == 1:
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    total = group.summed(torch.cat([gradient.flatten() for gradient in gradients]))
    ends = accumulate(gradient.numel() for gradient in gradients)
    for gradient, end in zip(gradients, ends, strict=True):
        gradient.copy_(total[end - gradient.numel() : end].view_as(gradient))
