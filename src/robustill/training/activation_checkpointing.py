"""Activation checkpointing: blocks keep only their input and compute their activations again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from robustill.core.contexts import preserving_buffers
from robustill.core.distributed import SyncBatchNormMode


def find_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the members of every outermost nn.Sequential: the blocks of a residual network, the layers of a plain one.

    A block that is used several times is listed once. A network without any nn.Sequential has no blocks.
    """
    if isinstance(network, nn.Sequential):
        return list(dict.fromkeys(network))
    return list(dict.fromkeys(block for child in network.children() for block in find_blocks(child)))


@contextmanager
def recomputing_activations(network: nn.Module) -> Iterator[None]:
    """Checkpoint the activations of every forward pass through the network inside the block.

    Each of the network's blocks (`find_blocks`) keeps only its input for the backward pass, which computes the rest
    again, from the buffers that it had before the first computation. Outputs and gradients are the same as without.
    Running statistics are updated once, in the first computation; the modes and weights must not change before the
    second.

    Args:
        network: the network whose blocks are checkpointed.
    """
    blocks = find_blocks(network)
    for block in blocks:
        block.forward = _checkpointed(block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            # Removes the attribute of the instance: the method of the class applies again.
            del block.forward


def _checkpointed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*values: Any, **options: Any) -> Any:
        # A layer that rounds updates the range of its input, and then rounds to it.
        before = [buffer.clone() for buffer in block.buffers()]

        def call(*given: Any) -> Any:
            return forward(*given[: len(values)], **dict(zip(options, given[len(values) :], strict=True)))

        @contextmanager
        def recomputation() -> Iterator[None]:
            with SyncBatchNormMode() if SyncBatchNormMode.entered else nullcontext(), preserving_buffers(block):
                with torch.no_grad():
                    for buffer, value in zip(block.buffers(), before, strict=True):
                        buffer.copy_(value)
                yield

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), recomputation()

        # By position, because `checkpoint` keeps the random state of no device on which only named tensors lie.
        return checkpoint(call, *values, *options.values(), use_reentrant=False, context_fn=contexts)

    return run
