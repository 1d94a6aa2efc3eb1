"""Randomness as a function of (seed, purpose, epoch, step, ...), never of earlier random draws."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator]
"""One generator for a whole batch, or one per sample, which makes the draws of a sample independent of the others."""


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed that depends on every argument and on nothing else.

    Example:
        >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 3) != derive_seed(0, "order", 4)
        True
    """
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator for one purpose, e.g. ``generator(seed, "attack", epoch, step)``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *purpose))


def uniform(like: Tensor, generators: Generators | None = None) -> Tensor:
    """Draw from U[0,1) in the shape of `like`; with one generator per sample, each sample is drawn from its own."""
    return _draw(torch.rand, like, generators)


def gaussian(like: Tensor, generators: Generators | None = None) -> Tensor:
    """Draw from N(0,1) in the shape of `like`; with one generator per sample, each sample is drawn from its own."""
    return _draw(torch.randn, like, generators)


def _draw(function: Callable[..., Tensor], like: Tensor, generators: Generators | None) -> Tensor:
    if generators is None or isinstance(generators, torch.Generator):
        return function(like.shape, generator=generators, device=like.device, dtype=like.dtype)
    assert len(generators) == len(like)
    samples = [function(like.shape[1:], generator=g, device=like.device, dtype=like.dtype) for g in generators]
    return torch.stack(samples) if samples else like.clone()
