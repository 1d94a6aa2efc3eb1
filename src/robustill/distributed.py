"""Several processes of one training or evaluation, started by torchrun: each takes a share of the images.

``torchrun --nproc-per-node 2 -m -- robustill train cifar10_akd_resnet18 --run runs/student``
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


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

    def said_by_first(self, value: Any) -> Any:
        """What process 0 gives here, on each of them; what the others give does not count."""
        return self.gather({0: value} if self.first else {})[0]

    def part(self, total: int) -> slice:
        """Which of so many things are this process's: shares in order, whose sizes differ by at most one."""
        return part_of(total, self.rank, self.number)

    def summed(self, values: Tensor) -> Tensor:
        """Σ over the processes, on each of them, without a gradient; `values` itself where there is one process."""
        if self.number == 1:
            return values
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total

    def wait(self) -> None:
        """Until all processes are here."""
        if self.number > 1:
            distributed.barrier()


ALONE = Processes()


def part_of(total: int, rank: int, number: int) -> slice:
    """The share of one process.

    Example:
        >>> [part_of(7, rank, 2) for rank in (0, 1)]
        [slice(0, 3, None), slice(3, 7, None)]
    """
    return slice(total * rank // number, total * (rank + 1) // number)


def summed(values: Tensor) -> Tensor:
    """Σ over all processes, on each of them, without a gradient."""
    return processes().summed(values)


def summed_with_gradient(values: Tensor) -> Tensor:
    """Σ over all processes, on each of them; the gradient of what any process computes from it reaches each one."""
    total: Tensor = _Summed.apply(values)  # type: ignore[no-untyped-call]
    return total


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return summed(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return summed(grad.contiguous())


def processes() -> Processes:
    """The process group that is open, or this process alone."""
    if distributed.is_available() and distributed.is_initialized():
        return Processes(distributed.get_rank(), distributed.get_world_size())
    return Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """The process group of torchrun for as long as the block lasts; without torchrun, this process alone.

    What lies on a CPU is carried by gloo; gradients on GPUs by NCCL.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield processes()
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield processes()
    finally:
        distributed.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """On a machine with several GPUs, each process takes one."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and device.index is None and processes().number > 1:
        own = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(own)
        return own
    return device
