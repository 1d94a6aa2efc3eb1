"""The optimizer, schedules that are functions of progress alone, and the freezing of parts of a network."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from robustill.core.errors import ConfigError, RobustillError, did_you_mean
from robustill.core.user_code import describe_failure, import_callable
from robustill.models.vision import import_vision

Schedule = Literal["onecycle", "cosine", "multistep", "constant"]


def rate_factor(
    progress: float, schedule: Schedule, *, warmup: float, milestones: Sequence[float], decay: float
) -> float:
    """Return the factor of the peak learning rate.

    onecycle: linear from 0 to 1 over the warm-up, linear back to 0. cosine: the same warm-up, then ½(1 + cos πp).
    multistep: the warm-up, then `decay` for each milestone passed. constant: the warm-up, then 1.

    Args:
        progress: share of all steps done, in [0,1).
        schedule: the name of the schedule.
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
    """Return parameter groups for an optimizer, of the parameters that require a gradient.

    Without `decay_all` the parameters of one dimension, biases and BatchNorm's, form a group without weight decay.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if decay_all or p.ndim > 1]
    undecayed = [p for p in parameters if not decay_all and p.ndim <= 1]
    groups: list[dict[str, object]] = [{"params": decayed, "weight_decay": weight_decay}]
    if undecayed:
        groups.append({"params": undecayed, "weight_decay": 0.0})
    return groups


def build_optimizer(
    modules: Sequence[nn.Module],
    name: str,
    *,
    learning_rate: float,
    weight_decay: float,
    decay_all: bool,
    momentum: float,
    nesterov: bool,
) -> torch.optim.Optimizer:
    """Build an optimizer with the peak learning rate, which `rate_factor` scales.

    Args:
        modules: whose parameters are trained.
        name: "sgd", "adamw", "timm:NAME", or an import path `my_pkg.my_mod:MyOptimizer`, which is called with the
            parameter groups, each with its weight decay, and `lr`.
        learning_rate: the peak.
        weight_decay: of the first group, see `parameter_groups`.
        decay_all: whether biases and BatchNorm have weight decay, too.
        momentum: of SGD and of those of timm that have one.
        nesterov: of SGD.

    Raises:
        ConfigError: the optimizer cannot be imported, is unknown to timm, fails, or takes no plain steps.
    """
    groups = parameter_groups(modules, weight_decay, decay_all=decay_all)
    # One kernel launch for all parameters; on a CPU a loop over them is as fast.
    fused = all(parameter.is_cuda for module in modules for parameter in module.parameters())
    if name.startswith("timm:"):
        return _timm_optimizer(name, groups, learning_rate, momentum)
    if ":" in name:
        return _checked(
            name, lambda: import_callable(name, "optimizer", "class", ConfigError)(groups, lr=learning_rate)
        )
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov, fused=fused)


def _timm_optimizer(
    name: str, groups: list[dict[str, object]], learning_rate: float, momentum: float
) -> torch.optim.Optimizer:
    import_vision("timm")
    optim: Any = import_vision("timm.optim")
    own_name, names = name.partition(":")[2], optim.list_optimizers()
    if own_name not in names:
        raise ConfigError(f"optimizer {name} is unknown: {did_you_mean(own_name, names)}")
    return _checked(
        name,
        lambda: optim.create_optimizer_v2(groups, opt=own_name, lr=learning_rate, weight_decay=0.0, momentum=momentum),
    )


def _checked(name: str, make: Callable[[], Any]) -> torch.optim.Optimizer:
    """Return the optimizer that a function makes, after checking that its steps need nothing but gradients."""
    try:
        optimizer = make()
    except RobustillError:
        raise
    except Exception as error:  # The constructor of an optimizer can raise anything.
        raise ConfigError(f"optimizer {name} cannot be built: {describe_failure(error)}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer {name} is a {type(optimizer).__name__}, expected a torch.optim.Optimizer")
    parameters = inspect.signature(optimizer.step).parameters.values()
    named = (each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD))
    required = next((each.name for each in named if each.default is each.empty), None)
    if required is not None:
        raise ConfigError(f"optimizer {name} needs {required!r} in each step, expected one whose step() needs nothing")
    return optimizer


def freeze(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Make the parameters of parts of a model require no gradient.

    Args:
        model: the network.
        names: names of modules or parameters, as in `named_modules`. Everything inside a module is frozen with it:
            "layer1" includes layer1.0, but not layer10.

    Returns:
        The frozen modules. Keep them in eval mode while the rest trains, so that their BatchNorm statistics do not
        change either.

    Raises:
        ConfigError: the model has no part of that name, or no parameter is left to train.

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
            children = [child for child, _ in model.named_children()]
            raise ConfigError(f"the student has no part {name!r} to freeze: {did_you_mean(name, children)}")
        for each, parameter in parameters.items():
            if is_within(each, [name]):
                parameter.requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("every weight of the student is frozen: leave one part out of optim.freeze")
    return [module for name, module in modules.items() if is_within(name, names)]


def is_within(name: str, parts: Sequence[str]) -> bool:
    """Return whether a module or parameter is one of the named parts of its network, or is inside one.

    Example:
        >>> is_within("layer1.0.bn1", ["layer1"]), is_within("layer10.0.bn1", ["layer1"])
        (True, False)
    """
    return any(f"{name}.".startswith(f"{part}.") for part in parts)
