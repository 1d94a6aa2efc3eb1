"""A network's forward pass and its gradient towards the images, recorded once and launched as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]
"""Images [B,C,H,W] to logits [B,K]."""


def cuda_graphs(network: Network, sample: Tensor) -> Network:
    """The network on images like `sample`, as two CUDA graphs: one for the pass, one for its gradient."""
    # Of a function: a module's own forward would be replaced by the recording. And a recording that fails may leave its
    # stream the current one.
    with torch.cuda.stream(torch.cuda.current_stream()):
        return cast(Network, torch.cuda.make_graphed_callables(lambda x: network(x), (sample,)))


class Replay:
    """The same function of the images, from a recording where there can be one.

    A small network on a GPU waits for its launches, not for its arithmetic. Recorded are images of the shape, type and
    layout of the first call that wants a gradient; others take the function itself, and so does a second pass that
    begins before the first one's gradient was taken, as both would lie in the same memory. Weights may change between
    passes, in place.

    Args:
        network: without random numbers, and without a host that waits for the device.
        record: takes the network and images like those to come.
    """

    def __init__(self, network: Network, record: Callable[[Network, Tensor], Network] = cuda_graphs) -> None:
        self.network = network
        self.record = record
        self._recorded: Network | None = None
        self._like: tuple[Any, ...] | None = None
        self._under_way = False

    def __call__(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] to logits [B,K]; those of a replay are overwritten by the next one."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return self.network(x)
        if self._like is None:
            self._start(x)
        if self._recorded is None or self._under_way or self._like != _like(x):
            return self.network(x)
        self._under_way = True
        logits = self._recorded(x)
        logits.register_hook(self._free)  # type: ignore[no-untyped-call]
        return logits

    @property
    def recorded(self) -> bool:
        """Whether there is a recording."""
        return self._recorded is not None

    def begin(self) -> None:
        """Forget a pass whose gradient was never taken: nobody will take it now."""
        self._under_way = False

    def _free(self, _: Tensor) -> None:
        self._under_way = False

    def _start(self, x: Tensor) -> None:
        self._like = _like(x)
        sample = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)
        # Too little memory, or a network that makes the host wait: it then does its work launch by launch.
        with contextlib.suppress(RuntimeError):
            self._recorded = self.record(self.network, sample)


def _like(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.dtype, x.device
