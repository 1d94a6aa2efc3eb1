"""Several processes of one evaluation, started by torchrun: each takes a share of the images.

``torchrun --nproc-per-node 2 -m robustill evaluate runs/student --suite standard``
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Args:
        rank: counted from 0; only process 0 prints and writes results.
        number: of processes.
    """

    rank: int = 0
    number: int = 1

    @property
    def first(self) -> bool:
        """Whether this one prints and writes."""
        return self.rank == 0

    def gather(self, mine: dict[int, Any]) -> dict[int, Any]:
        """What all processes have, on each of them."""
        if self.number == 1:
            return mine
        everyone: list[Any] = [None] * self.number
        # Pickled, but only among processes that one command started.
        distributed.all_gather_object(everyone, mine)
        return {key: value for each in everyone for key, value in each.items()}

    def wait(self) -> None:
        """Until all processes are here."""
        if self.number > 1:
            distributed.barrier()


def processes() -> Processes:
    """The process group that is open, or this process alone."""
    if distributed.is_available() and distributed.is_initialized():
        return Processes(distributed.get_rank(), distributed.get_world_size())
    return Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """The process group of torchrun for as long as the block lasts; without torchrun, this process alone.

    Its messages are rows on the CPU, so gloo carries them also where the networks run on GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield processes()
        return
    distributed.init_process_group("gloo")
    try:
        yield processes()
    finally:
        distributed.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """On a machine with several GPUs, each process takes one."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and device.index is None and processes().number > 1:
        return torch.device("cuda", local % torch.cuda.device_count())
    return device
