"""Activation checkpointing: what a block computes inside is not kept for the way back, but computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from robustill.core.contexts import preserving_buffers
from robustill.core.distributed import SyncBatchNormMode


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The members of every outermost nn.Sequential: the blocks of a residual network, the layers of a plain one."""
    if isinstance(network, nn.Sequential):
        return list(network)
    return [block for child in network.children() for block in blocks_of(child)]


@contextmanager
def recomputed(network: nn.Module) -> Iterator[None]:
    """Blocks that the network computes inside keep no more than their input, and compute the rest again when needed.

    The outputs and gradients are those without it. Running statistics move once, in the first computation; mode and
    weights must be the same at the second.

    Args:
        network: whose `blocks_of` these are.
    """
    blocks = blocks_of(network)
    for block in blocks:
        block.forward = _twice(block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            # The class's own comes to light again.
            del block.forward


def _twice(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    @contextmanager
    def again() -> Iterator[None]:
        with SyncBatchNormMode() if SyncBatchNormMode.entered else nullcontext(), preserving_buffers(block):
            yield

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), again()

    def run(*values: Any) -> Any:
        return checkpoint(forward, *values, use_reentrant=False, context_fn=contexts)

    return run
