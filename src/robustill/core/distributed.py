"""Several processes of one training or evaluation, started by torchrun: each takes a shard of the images.

``torchrun --nproc-per-node 2 -m -- robustill train cifar10_akd_resnet18 --run runs/student``
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robustill.core.errors import RunError

# --- the group of processes


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one command, and which of them this process is.

    Args:
        rank: the number of this process, from 0; only process 0 prints and writes results.
        world_size: the number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes results."""
        return self.rank == 0

    def gather(self, values: dict[int, Any]) -> dict[int, Any]:
        """Merge the dictionaries of all processes; every process gets the result."""
        if self.world_size == 1:
            return values
        gathered: list[Any] = [None] * self.world_size
        # This pickles, but only among processes that one command started.
        distributed.all_gather_object(gathered, values)
        return {key: value for each in gathered for key, value in each.items()}

    def broadcast(self, value: Any) -> Any:
        """Return the value that process 0 passes; the values of the other processes are ignored."""
        return self.gather({0: value} if self.is_main else {})[0]

    def part(self, total: int) -> slice:
        """Return this process's shard of `total` items, see `shard_of`."""
        return shard_of(total, self.rank, self.world_size)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return Σ over the processes, without a gradient; with one process, `values` itself."""
        if self.world_size == 1:
            return values
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        if self.world_size > 1:
            distributed.barrier()


SINGLE_PROCESS = ProcessGroup()
"""The group of a process that works alone."""


def process_group() -> ProcessGroup:
    """Return the process group that torch has initialised, or the group of this process alone."""
    if distributed.is_available() and distributed.is_initialized():
        return ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    return ProcessGroup()


@contextmanager
def torchrun_group(timeout: timedelta | None = None) -> Iterator[ProcessGroup]:
    """Initialise the process group of torchrun for the block; without torchrun, give the group of this process alone.

    gloo carries tensors on a CPU, NCCL those on GPUs.

    Args:
        timeout: how long a process waits for another one that has not ended; None for torch's default, minutes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield process_group()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=timeout)
    try:
        yield process_group()
    except RuntimeError as error:
        lost = _what_is_lost(error)
        if lost is None:
            raise
        raise RunError(
            f"process {process_group().rank} stops, because another process of this command {lost}"
        ) from None
    finally:
        distributed.destroy_process_group()


def _what_is_lost(error: RuntimeError) -> str | None:
    """Return what an error says of another process of the group; None if it says nothing of one."""
    text = str(error)
    # NCCL's errors have a type; gloo's are a RuntimeError that names its source file.
    if "gloo" in text and "imed out" in text:
        return "has not answered in time: end it, and give the same command again"
    if isinstance(error, distributed.DistError) or ("gloo" in text and "onnection" in text):
        return "has ended: see its message"
    return None


def local_device(device: torch.device) -> torch.device:
    """Return the GPU of this process where several processes share a machine's GPUs; otherwise `device` itself."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and device.index is None and process_group().world_size > 1:
        own = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(own)
        return own
    return device


def shard_of(total: int, rank: int, world_size: int) -> slice:
    """Return the shard of one process: consecutive items, in the order of the ranks, in numbers that differ by one.

    Example:
        >>> [shard_of(7, rank, 2) for rank in (0, 1)]
        [slice(0, 3, None), slice(3, 7, None)]
    """
    return slice(total * rank // world_size, total * (rank + 1) // world_size)


# --- sums over the processes


def all_reduce(values: Tensor) -> Tensor:
    """Return Σ over all processes, without a gradient."""
    return process_group().all_reduce(values)


def all_gather(rows: Tensor) -> Tensor:
    """Return the rows [N,...] of all processes, in the order of the ranks, without a gradient."""
    group = process_group()
    if group.world_size == 1:
        return rows
    counts = torch.zeros(group.world_size, dtype=torch.int64, device=rows.device)
    counts[group.rank] = len(rows)
    # Each process has about as many rows, so that they can be sent as tensors of one size.
    numbers = group.all_reduce(counts).tolist()
    padded = rows.new_zeros((max(numbers), *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in numbers]
    distributed.all_gather(gathered, padded)
    return torch.cat([each[:number] for each, number in zip(gathered, numbers, strict=True)])


def all_reduce_with_gradient(values: Tensor) -> Tensor:
    """Return Σ over all processes; the gradients of all processes with respect to the sum reach `values` on each."""
    total: Tensor = _AllReduce.apply(values)  # type: ignore[no-untyped-call]
    return total


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return all_reduce(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_reduce(grad.contiguous())


def all_reduce_gradients(module: nn.Module, group: ProcessGroup) -> None:
    """Replace the gradients of a module by their sums over the processes, in one message.

    The sum is the gradient of the mean loss over all images if each process has divided by their total number.

    Args:
        module: the module; a parameter that has no gradient must have none on every process.
        group: the processes.
    """
    if group.world_size == 1:
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    total = group.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]))
    ends = accumulate(gradient.numel() for gradient in gradients)
    for gradient, end in zip(gradients, ends, strict=True):
        gradient.copy_(total[end - gradient.numel() : end].view_as(gradient))


# --- BatchNorm over the processes


class SyncBatchNormMode(TorchFunctionMode):
    """A mode in which BatchNorm in train mode normalises with the mean and variance over the images of all processes.

    y = γ·(x − μ)/√(σ² + ε) + β with μ and σ² over the images of every process, whose numbers may differ. The running
    statistics are updated with the same values, so that they are equal on all processes. BatchNorm in eval mode is not
    affected, nor are the modules of the networks. All processes must run the same layers in the same order.
    """

    entered: ClassVar[int] = 0

    def __enter__(self) -> SyncBatchNormMode:
        """Enter the mode, and count it.

        Activation checkpointing recomputes a block in the backward pass, where no mode of the forward pass is active:
        there the count tells whether to enter the mode again.
        """
        SyncBatchNormMode.entered += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        """Leave the mode."""
        SyncBatchNormMode.entered -= 1
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace F.batch_norm in train mode; call every other function unchanged."""
        if func is F.batch_norm and _argument(args, kwargs or {}, 5, "training"):
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, False)


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
    all_but_channels = [0, *range(2, x.ndim)]
    per_channel = (1, -1, *(1,) * (x.ndim - 2))
    count = all_reduce(x.new_full((), float(x.numel() // x.shape[1])))
    mean = all_reduce_with_gradient(x.sum(dim=all_but_channels)) / count
    centred = x - mean.view(per_channel)
    # From centred values: the difference of the mean of squares and the square of the mean would cancel.
    variance = all_reduce_with_gradient(centred.square().sum(dim=all_but_channels)) / count
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    output = centred * scale.view(per_channel)
    if bias is not None:
        output = output + bias.view(per_channel)
    return output.to(input.dtype)
