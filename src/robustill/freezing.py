"""Parts of a network that training leaves alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from robustill.errors import ConfigError, did_you_mean


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
