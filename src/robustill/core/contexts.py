"""Context managers that change a model's state, or torch's, and give it back exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode; each one's own mode is restored afterwards, also after an exception."""
    before = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient; each one's own flag is restored afterwards.

    The backward pass towards the images is then spared the gradients of the weights, about a third of its time.
    """
    before = [(parameter, parameter.requires_grad) for model in models for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


@contextmanager
def preserving_buffers(*models: nn.Module) -> Iterator[None]:
    """Whatever moves inside, as running statistics do, is moved back afterwards, also after an exception."""
    buffers = [buffer for model in models for buffer in model.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and matrix products without TF32, the default of convolutions on a GPU: it rounds to ten bits."""
    places = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
