"""The optimizer, and the learning rate as a function of progress alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

Schedule = Literal["onecycle", "cosine", "multistep", "constant"]


def rate_factor(
    progress: float, schedule: Schedule, *, warmup: float, milestones: Sequence[float], decay: float
) -> float:
    """What the peak learning rate is multiplied with.

    onecycle: linear from 0 to 1 over the warm-up, linear back to 0. cosine: the same warm-up, then ½(1 + cos πp).
    multistep: the warm-up, then `decay` for each milestone passed. constant: the warm-up, then 1.

    Args:
        progress: share of all steps done, in [0,1).
        schedule: which one.
        warmup: share of all steps spent on the linear rise.
        milestones: shares of all steps, ascending.
        decay: factor at each milestone.

    Example:
        >>> [rate_factor(p, "onecycle", warmup=0.5, milestones=[], decay=0.1) for p in (0.0, 0.25, 0.5, 0.75)]
        [0.0, 0.5, 1.0, 0.5]
    """
    if warmup > 0 and progress < warmup:
        return progress / warmup
    rest = (progress - warmup) / (1 - warmup)
    if schedule == "onecycle":
        return 1 - rest
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    if schedule == "multistep":
        return decay ** sum(progress >= milestone for milestone in milestones)
    return 1.0


def parameter_groups(modules: Sequence[nn.Module], weight_decay: float, *, decay_all: bool) -> list[dict[str, object]]:
    """Parameters with weight decay and, unless `decay_all`, those without: BatchNorm's and biases, of one dimension."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if decay_all or p.ndim > 1]
    free = [p for p in parameters if not decay_all and p.ndim <= 1]
    groups: list[dict[str, object]] = [{"params": decayed, "weight_decay": weight_decay}]
    return groups + ([{"params": free, "weight_decay": 0.0}] if free else [])


def build_optimizer(
    modules: Sequence[nn.Module],
    name: Literal["sgd", "adamw"],
    *,
    learning_rate: float,
    weight_decay: float,
    decay_all: bool,
    momentum: float,
    nesterov: bool,
) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW; the learning rate is the peak that `rate_factor` scales."""
    groups = parameter_groups(modules, weight_decay, decay_all=decay_all)
    # One launch for all parameters; on a CPU the loop over them is as fast.
    fused = all(parameter.is_cuda for module in modules for parameter in module.parameters())
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov, fused=fused)
