"""Overrides: settings from the command line that replace those of a file or a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustill.config.settings import retired_line, short_repr
from robustill.core.errors import ConfigError
from robustill.core.yaml import parse_yaml
from robustill.data import DATASETS
from robustill.data.shards import holds_shards
from robustill.threat import Threat

_PATHS = frozenset(
    [("data",), ("data", "name"), ("data", "root"), ("data", "extra"), ("compute", "teacher_cache"), ("initial",)]
)
"""Settings whose value is the name of a file, a folder or a network, which may have any character."""


def apply_overrides(values: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """Return nested values with command-line overrides applied.

    When the name of a model or method changes, its other options are dropped, because they belong to the old one.

    Args:
        values: nested mapping, which is not changed.
        tokens: "--method.alpha", "0.8" or "--method.alpha=0.8"; each value is read as YAML; a path is taken as it is,
            except that null means none. Short forms: --method akd, --data cifar10, --data PATH (a folder of images or
            of .npz, Parquet or tar files, or such a file), --model resnet18, --threat linf:8/255, --teachers
            run:DIR@best.

    Raises:
        ConfigError: a token is not part of such a pair, or a setting is given twice or no longer exists.

    Example:
        >>> apply_overrides({"method": {"name": "akd"}}, ["--method.alpha", "0.8"])
        {'method': {'name': 'akd', 'alpha': 0.8}}
    """
    pairs = [each for path, value in _parse_pairs(tokens) for each in _expand_short_form(path, value)]
    paths = [path for path, _ in pairs]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            hint = ": several are written [A, B]" if path == ("teachers",) else ""
            raise ConfigError(f"--{'.'.join(path)} is given twice{hint}")
    result: dict[str, Any] = _copy(values)
    for path, value in pairs:
        if path in (("model", "name"), ("method", "name")) and _get(result, path) != value:
            result[path[0]] = {}
    for path, value in pairs:
        group = result
        for depth, key in enumerate(path[:-1]):
            if group.get(key) is None:
                group[key] = {}
            if not isinstance(group[key], dict):
                parent = ".".join(path[: depth + 1])
                raise ConfigError(f"--{'.'.join(path)}: {parent} is a value, not a group of keys")
            group = group[key]
        group[path[-1]] = value
    return result


def _parse_pairs(tokens: Sequence[str]) -> list[tuple[tuple[str, ...], Any]]:
    """Return (path, value) of each override, such as (("method", "alpha"), 0.8)."""
    pairs, rest = [], list(tokens)
    while rest:
        token = rest.pop(0)
        name, equals, text = token.partition("=")
        if not name.startswith("--") or len(name) == 2:
            raise ConfigError(
                f"{token!r} is not expected here: an override is written --group.key VALUE, after the recipe, run or "
                "network"
            )
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{name} has no value: an override is written --group.key VALUE")
            text = rest.pop(0)
        path = tuple(name[2:].replace("-", "_").split("."))
        retired = retired_line(path)
        if retired is not None:
            raise ConfigError(retired)
        pairs.append((path, text if _is_path(path, text) else parse_yaml(text, f"{name} {short_repr(text)}")))
    return pairs


def _is_path(path: tuple[str, ...], text: str) -> bool:
    """Return whether the value of a setting is a path, or the name of a network, that is taken as it is."""
    if text in ("", "null"):
        return False
    if path in (("teachers",), ("data",)) and text[:1] in "[{" and not _exists(text):
        # A list of teachers, or keys and values.
        return False
    return path in _PATHS or path == ("teachers",)


def _expand_short_form(path: tuple[str, ...], value: Any) -> list[tuple[tuple[str, ...], Any]]:
    """Return the overrides that a short form such as --threat linf:8/255 stands for; any other override unchanged."""
    if len(path) > 1 or not isinstance(value, str):
        return [(path, value)]
    if path[0] == "data" and value not in DATASETS and _exists(value):
        return [(("data", "name"), _format_of(Path(value))), (("data", "root"), value)]
    if path[0] in ("method", "data", "model"):
        return [((path[0], "name"), value)]
    if path[0] == "threat":
        threat = Threat.parse(value)
        return [(("threat", "norm"), threat.norm), (("threat", "eps"), threat.eps)]
    if path[0] == "teachers":
        return [(path, [value])]
    return [(path, value)]


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:
        # No file can have such a name.
        return False


def _format_of(path: Path) -> str:
    """Return the name of the data set whose reader reads a path."""
    for name, suffix in (("parquet", ".parquet"), ("webdataset", ".tar")):
        if holds_shards(path, suffix):
            return name
    if path.is_file() or any(each.suffix == ".npz" and not each.name.startswith(".") for each in path.iterdir()):
        return "npz"
    return "folder"


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(each) for each in value]
    return value


def _get(values: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    group = values.get(path[0])
    return group.get(path[1]) if isinstance(group, Mapping) else None
