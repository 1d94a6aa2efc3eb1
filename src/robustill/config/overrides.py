"""Settings given on the command line, laid over those of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustill.config.settings import short_repr
from robustill.core.errors import ConfigError
from robustill.core.yaml import parse_yaml
from robustill.threat import Threat


def apply_overrides(values: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """Nested values with command-line overrides laid over them.

    When a model's or method's name changes, its other options go: they belonged to the old one.

    Args:
        values: nested mapping; left as it is.
        tokens: "--method.alpha", "0.8" or "--method.alpha=0.8"; each value is read as YAML. Short forms: --method akd,
            --data cifar10, --model resnet18, --threat linf:8/255, --teachers run:DIR@best.

    Raises:
        ConfigError: a token that is no such pair.

    Example:
        >>> apply_overrides({"method": {"name": "akd"}}, ["--method.alpha", "0.8"])
        {'method': {'name': 'akd', 'alpha': 0.8}}
    """
    pairs = [each for pair in _pairs(tokens) for each in _spelled_out(*pair)]
    for number, (path, _) in enumerate(pairs):
        if path in [earlier for earlier, _ in pairs[:number]]:
            hint = ": several are written [A, B]" if path == ("teachers",) else ""
            raise ConfigError(f"--{'.'.join(path)} is given twice{hint}")
    result: dict[str, Any] = _copied(values)
    for path, value in pairs:
        if path in (("model", "name"), ("method", "name")) and _at(result, path) != value:
            result[path[0]] = {}
    for path, value in pairs:
        here = result
        for depth, key in enumerate(path[:-1]):
            if here.get(key) is None:
                here[key] = {}
            if not isinstance(here[key], dict):
                raise ConfigError(f"--{'.'.join(path)}: {'.'.join(path[: depth + 1])} is a value, not a group of keys")
            here = here[key]
        here[path[-1]] = value
    return result


def _pairs(tokens: Sequence[str]) -> list[tuple[tuple[str, ...], Any]]:
    pairs, rest = [], list(tokens)
    while rest:
        token = rest.pop(0)
        name, equals, text = token.partition("=")
        if not name.startswith("--") or len(name) == 2:
            raise ConfigError(f"{token!r} is not expected here: an override is written --group.key VALUE")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{name} has no value: an override is written --group.key VALUE")
            text = rest.pop(0)
        value = parse_yaml(text, f"{name} {short_repr(text)}")
        pairs.append((tuple(name[2:].replace("-", "_").split(".")), value))
    return pairs


def _spelled_out(path: tuple[str, ...], value: Any) -> list[tuple[tuple[str, ...], Any]]:
    """The short forms: --method akd, --data cifar10, --model resnet18, --threat linf:8/255, --teachers run:DIR@best."""
    if len(path) > 1 or not isinstance(value, str):
        return [(path, value)]
    if path[0] in ("method", "data", "model"):
        return [((path[0], "name"), value)]
    if path[0] == "threat":
        threat = Threat.parse(value)
        return [(("threat", "norm"), threat.norm), (("threat", "eps"), threat.eps)]
    return [(path, [value] if path[0] == "teachers" else value)]


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list | tuple) else value


def _at(values: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    group = values.get(path[0])
    return group.get(path[1]) if isinstance(group, Mapping) else None
