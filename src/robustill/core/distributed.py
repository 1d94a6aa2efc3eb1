"""Several processes of one training or evaluation, started by torchrun: each takes a share of the images.

``torchrun --nproc-per-node 2 -m -- robustill train cifar10_akd_resnet18 --run runs/student``
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class ProcessGroup:
    """This process among all.

    Args:
        rank: counted from 0; only process 0 prints and writes results.
        world_size: the number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this one prints and writes."""
        return self.rank == 0

    def gather(self, mine: dict[int, Any]) -> dict[int, Any]:
        """What all processes have, on each of them."""
        if self.world_size == 1:
            return mine
        everyone: list[Any] = [None] * self.world_size
        # Pickled, but only among processes that one command started.
        distributed.all_gather_object(everyone, mine)
        return {key: value for each in everyone for key, value in each.items()}

    def broadcast(self, value: Any) -> Any:
        """What process 0 gives here, on each of them; what the others give does not count."""
        return self.gather({0: value} if self.is_main else {})[0]

    def part(self, total: int) -> slice:
        """Which of so many things are this process's: shares in order, whose sizes differ by at most one."""
        return shard_of(total, self.rank, self.world_size)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Σ over the processes, on each of them, without a gradient; `values` itself where there is one process."""
        if self.world_size == 1:
            return values
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total

    def barrier(self) -> None:
        """Until all processes are here."""
        if self.world_size > 1:
            distributed.barrier()


ALONE = ProcessGroup()


def shard_of(total: int, rank: int, number: int) -> slice:
    """The share of one process.

    Example:
        >>> [part_of(7, rank, 2) for rank in (0, 1)]
        [slice(0, 3, None), slice(3, 7, None)]
    """
    return slice(total * rank // number, total * (rank + 1) // number)


def all_reduce(values: Tensor) -> Tensor:
    """Σ over all processes, on each of them, without a gradient."""
    return process_group().all_reduce(values)


def all_reduce_with_gradient(values: Tensor) -> Tensor:
    """Σ over all processes, on each of them; the gradient of what any process computes from it reaches each one."""
    total: Tensor = _AllReduce.apply(values)  # type: ignore[no-untyped-call]
    return total


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return all_reduce(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_reduce(grad.contiguous())


def process_group() -> ProcessGroup:
    """The process group that is open, or this process alone."""
    if distributed.is_available() and distributed.is_initialized():
        return ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    return ProcessGroup()


@contextmanager
def joined() -> Iterator[ProcessGroup]:
    """The process group of torchrun for as long as the block lasts; without torchrun, this process alone.

    What lies on a CPU is carried by gloo; gradients on GPUs by NCCL.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield process_group()
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield process_group()
    finally:
        distributed.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """On a machine with several GPUs, each process takes one."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and device.index is None and process_group().world_size > 1:
        own = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(own)
        return own
    return device


class SyncBatchNormMode(TorchFunctionMode):
    """As long as it is entered, BatchNorm in train mode normalises with the mean and the variance of all processes.

    y = γ·(x − μ)/√(σ² + ε) + β with μ and σ² over the images of every process, whose numbers may differ; the running
    statistics move by the same, so that they are equal on all. What is in eval mode, and the networks' modules, stay
    as they are. Every process must take the same layers in the same order.
    """

    entered: ClassVar[int] = 0

    def __enter__(self) -> SyncBatchNormMode:
        """Count, so that what is computed again on the way back, where no such mode is seen, can enter one anew."""
        SyncBatchNormMode.entered += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        """Give back."""
        SyncBatchNormMode.entered -= 1
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Takes F.batch_norm over, and passes on what else there is."""
        if func is F.batch_norm and _argument(args, kwargs or {}, 5, "training"):
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, False)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    x = input.float()
    others = [0, *range(2, x.ndim)]
    per_channel = (1, -1, *(1,) * (x.ndim - 2))
    count = all_reduce(x.new_full((), float(x.numel() // x.shape[1])))
    mean = all_reduce_with_gradient(x.sum(dim=others)) / count
    centred = x - mean.view(per_channel)
    # Of what is centred already: the mean of squares less the square of the mean would cancel.
    variance = all_reduce_with_gradient(centred.square().sum(dim=others)) / count
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    found = centred * scale.view(per_channel)
    if bias is not None:
        found = found + bias.view(per_channel)
    return found.to(input.dtype)


def all_reduce_gradients(module: nn.Module, group: ProcessGroup) -> None:
    """Σ over the processes in one message, where each has divided its own by the images of all.

    Args:
        module: its parameters' gradients are overwritten; those that have none must have none on any process.
        group: the processes.
    """
    if group.world_size == 1:
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    total = group.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]))
    ends = accumulate(gradient.numel() for gradient in gradients)
    for gradient, end in zip(gradients, ends, strict=True):
        gradient.copy_(total[end - gradient.numel() : end].view_as(gradient))
