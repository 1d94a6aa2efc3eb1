"""Configurations as YAML files: reading, writing, and writing with the meaning of each setting as a comment."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from robustill.config.overrides import apply_overrides
from robustill.config.schema import Config, make_config
from robustill.config.settings import short_repr
from robustill.core.errors import ConfigError
from robustill.core.user_code import TrustCode, check_named, names_code, only_named, paths_in
from robustill.core.yaml import dump_yaml, read_yaml
from robustill.runs.directory import drop_retired


def load_config(path: Path, overrides: Sequence[str] = (), *, trust_code: TrustCode = False) -> Config:
    """Load a Config from a YAML file.

    Args:
        path: the file.
        overrides: overrides as in `apply_overrides`; the file may name the import paths that they name.
        trust_code: more import paths that the file may name, such as ["my_mod:net"]; True is all of them.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or has unknown keys or impossible values.
        UntrustedCodeError: only the file names an import path.
    """
    values = read_yaml(path, f"configuration {path}")
    if not isinstance(values, dict):
        raise ConfigError(f"configuration {path} holds {short_repr(values)}, expected keys and values")
    values, retired = drop_retired(values)
    for name in retired:
        warnings.warn(f"{path}: {name} no longer exists and is ignored", stacklevel=2)
    values = apply_overrides(values, overrides)
    with only_named(*paths_in(overrides), trust=trust_code, origin=f"configuration {path}"):
        # Also check the paths that are imported later, when nothing tells where the Config comes from.
        for import_path in named_code(values):
            check_named(import_path)
        return make_config(values)


def named_code(config: Config | Mapping[str, Any]) -> tuple[str, ...]:
    """Return the import paths that a configuration names: model, method, `initial`, teachers, data set, optimizer.

    Example:
        >>> named_code({"model": {"name": "my_mod:net"}, "teachers": ["run:old", {"spec": "my_mod:teacher"}]})
        ('my_mod:net', 'my_mod:teacher')
    """
    values = config.model_dump(mode="json") if isinstance(config, Config) else config
    # Other texts of these two groups are no names, such as a folder.
    names = [group.get("name") for key in ("data", "optim") if isinstance(group := values.get(key), Mapping)]
    named = [*(values.get(key) for key in ("model", "method", "initial", "teachers")), *names]
    texts = (text for each in named for text in _texts(each))
    return tuple(dict.fromkeys(text for text in texts if names_code(text)))


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in nested values; an option of a method may name a network or a method as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def dump_config(config: Config) -> str:
    """Return a configuration as YAML with every key; `load_config` returns an equal one."""
    return dump_yaml(config.model_dump(mode="json"))


_KEY = re.compile(r"( *)(\w+):")
_COMMENT_COLUMN = 40


def explain_config(config: Config) -> str:
    """Return the text of `dump_config` with the meaning of each setting as a comment.

    Example:
        >>> print(explain_config(Config()).partition("\\n")[0])
        seed: 0                                 # seed of the weights, the order, the augmentation and the attack
    """
    group, lines = "", []
    for line in dump_config(config).splitlines():
        key = _KEY.match(line)
        field = None
        if key is not None and key[1] == "":
            group = key[2]
            field = Config.model_fields[group]
        elif key is not None and key[1] == "  ":
            field = _field(group, key[2])
        if field is not None and (comment := meaning(field)):
            setting = line.ljust(_COMMENT_COLUMN - 1)
            lines.append(f"{setting} # {comment}")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def meaning(field: FieldInfo) -> str:
    """Return the description of a setting, and the words it may be."""
    words = " or ".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else ""
    return ": ".join(part for part in (field.description, words) if part)


def _field(group: str, name: str) -> FieldInfo | None:
    """Return a setting inside a group; None for what is no setting, such as the options of a method."""
    group_class = Config.model_fields[group].annotation
    if not (isinstance(group_class, type) and issubclass(group_class, BaseModel)):
        return None
    return group_class.model_fields.get(name)
