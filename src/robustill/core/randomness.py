"""Randomness as a function of (seed, purpose, epoch, step, ...), never of what ran before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator]
"""One generator for a whole batch, or one a sample: then what a sample draws depends on no other."""


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that depends on every argument and on nothing else.

    Example:
        >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 3) != derive_seed(0, "order", 4)
        True
    """
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one purpose, e.g. ``generator(seed, "attack", epoch, step)``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *purpose))


def uniform(like: Tensor, generators: Generators | None = None) -> Tensor:
    """Uniform in [0,1), of the shape of `like`; one draw a sample when there is a generator for each."""
    return _draw(torch.rand, like, generators)


def gaussian(like: Tensor, generators: Generators | None = None) -> Tensor:
    """Standard normal, of the shape of `like`; one draw a sample when there is a generator for each."""
    return _draw(torch.randn, like, generators)


def _draw(function, like: Tensor, generators: Generators | None) -> Tensor:  # type: ignore[no-untyped-def]
    settings = {"device": like.device, "dtype": like.dtype}
    if generators is None or isinstance(generators, torch.Generator):
        drawn: Tensor = function(like.shape, generator=generators, **settings)
        return drawn
    assert len(generators) == len(like)
    return torch.stack([function(like.shape[1:], generator=g, **settings) for g in generators])
