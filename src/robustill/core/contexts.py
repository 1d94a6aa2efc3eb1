"""Context managers that change the state of a model, or of torch, and restore it exactly; copies of networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode; the mode of each is restored afterwards, also after an exception."""
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
    """Let no parameter require a gradient; the flag of each is restored afterwards, also after an exception.

    A backward pass to the images then computes no gradients of the weights, which saves about a third of its time.
    """
    before = [(parameter, parameter.requires_grad) for model in models for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def copy_network(model: nn.Module) -> nn.Module:
    """Return a copy of a network, of which the same weights require a gradient.

    `copy.deepcopy` alone makes the weights of a ScriptModule functions of the original ones, which cannot be trained.
    """
    with torch.no_grad():
        copied = copy.deepcopy(model)
    for parameter, original in zip(copied.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    return copied


def freeze_for_good(model: nn.Module) -> nn.Module:
    """Put a network into eval mode without gradients of its weights, and return it.

    The flags are set one by one, since a ScriptModule has no `requires_grad_`.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


@contextmanager
def preserving_buffers(*models: nn.Module) -> Iterator[None]:
    """Restore all buffers, such as running statistics, afterwards, also after an exception."""
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
    """Compute convolutions and matrix products without TF32, which rounds to ten bits and is a default on GPUs."""
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
