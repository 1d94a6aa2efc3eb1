"""The optimizer, and the learning rate as a function of progress alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from robustill.core.errors import ConfigError, did_you_mean

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


def freeze(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Take the gradient from the parameters of these parts.

    Args:
        model: whose parts are named.
        names: of modules or parameters as `named_modules` gives them, with everything below: "layer1" is layer1.0 too,
            but not layer10.

    Returns:
        The frozen modules, to be kept in eval mode while the rest trains: then their BatchNorm statistics stay too.

    Raises:
        ConfigError: a name that the model does not have, or nothing left to train.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> freeze(model, ["0"])
        [Linear(in_features=2, out_features=2, bias=True)]
        >>> [parameter.requires_grad for parameter in model.parameters()]
        [False, False, True, True]
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        if name == "" or name not in modules.keys() | parameters.keys():
            tops = [top for top, _ in model.named_children()]
            raise ConfigError(f"the student has no part {name!r} to freeze: {did_you_mean(name, tops)}")
        for each, parameter in parameters.items():
            if within(each, [name]):
                parameter.requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("every weight of the student is frozen: leave one part out of optim.freeze")
    return [module for name, module in modules.items() if within(name, names)]


def within(name: str, parts: Sequence[str]) -> bool:
    """Whether a module or parameter is one of these parts of its network, or lies below one.

    Example:
        >>> within("layer1.0.bn1", ["layer1"]), within("layer10.0.bn1", ["layer1"])
        (True, False)
    """
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


def grown(first: float, last: float, epoch: int, epochs: int, share: float) -> float:
    """A straight line from `first`, in the first epoch, to `last` over a share of the epochs; `last` from there on.

    first + (last − first)·min(1, epoch/(n−1)) with n = round(share·epochs).

    Args:
        first: in epoch 0.
        last: from epoch n − 1 on; at once where n is 0 or 1.
        epoch: counted from 0.
        epochs: how many there will be.
        share: of the epochs, in (0,1].

    Example:
        >>> [grown(0.0, 8.0, epoch, 10, 0.5) for epoch in (0, 1, 2, 4, 9)]
        [0.0, 2.0, 4.0, 8.0, 8.0]
    """
    rising = round(share * epochs) - 1
    if epoch >= rising:
        return last
    return first + (last - first) * epoch / rising
