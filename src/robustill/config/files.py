"""What each setting of a configuration means, beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from robustill.config.overrides import apply_overrides
from robustill.config.schema import Config, make_config
from robustill.config.settings import short
from robustill.core.errors import ConfigError
from robustill.core.user_code import SPECIFICATION_KINDS, TrustCode, check_named, is_import_path, only_named, paths_in
from robustill.core.yaml import dump_yaml, read_yaml


def load_config(path: Path, overrides: Sequence[str] = (), *, trust_code: TrustCode = False) -> Config:
    """A Config from a YAML file and overrides as in `apply_overrides`.

    Args:
        path: the file.
        overrides: as in `apply_overrides`; import paths that they name may stand in the file, too.
        trust_code: more import paths that the file may name, such as ["my_mod:net"]; True is all of them.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or has wrong keys or values.
        UntrustedCodeError: the file alone names an import path.
    """
    values = read_yaml(path, f"configuration {path}")
    if not isinstance(values, dict):
        raise ConfigError(f"configuration {path} holds {short(values)}, expected keys and values")
    values = apply_overrides(values, overrides)
    with only_named(*paths_in(overrides), trust=trust_code, origin=f"configuration {path}"):
        # Also those that are imported later, when nobody knows any more where the Config comes from.
        for each in named_code(values):
            check_named(each)
        return make_config(values)


def named_code(config: Config | Mapping[str, Any]) -> tuple[str, ...]:
    """Return the import paths that a configuration names: model, method, teachers, and `initial`.

    Example:
        >>> named_code({"model": {"name": "my_mod:net"}, "teachers": ["run:old", {"spec": "my_mod:teacher"}]})
        ('my_mod:net', 'my_mod:teacher')
    """
    values = config.model_dump(mode="json") if isinstance(config, Config) else config
    found = (each for key in ("model", "method", "initial", "teachers") for each in _words(values.get(key)))
    paths = (each for each in found if is_import_path(each))
    return tuple(dict.fromkeys(each for each in paths if each.partition(":")[0] not in SPECIFICATION_KINDS))


def _words(value: Any) -> Iterator[str]:
    """Yield the texts in nested values; an option of a method may name a network or a method as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _words(each)


def dump_config(config: Config) -> str:
    """The configuration as YAML, every key written out; `load_config` gives back an equal one."""
    return dump_yaml(config.model_dump(mode="json"))


_KEY = re.compile(r"( *)(\w+):")
_COLUMN = 40


def explain_config(config: Config) -> str:
    """The text of `dump_config` with the meaning of each setting as a comment; reading it gives the same configuration.

    Example:
        >>> print(explain_config(Config()).partition("\\n")[0])
        seed: 0                                 # of the weights, the order, the augmentation and the attack
    """
    group, lines = "", []
    for line in dump_config(config).splitlines():
        key = _KEY.match(line)
        meaning = None
        if key is not None and not key[1]:
            group = key[2]
            meaning = Config.model_fields[group].description
        elif key is not None and key[1] == "  ":
            meaning = _meaning(group, key[2])
        lines.append(f"{line:<{_COLUMN - 1}} # {meaning}" if meaning else line)
    return "\n".join(lines) + "\n"


def _meaning(group: str, name: str) -> str | None:
    kind = Config.model_fields[group].annotation
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return None
    field = kind.model_fields.get(name)
    return None if field is None else field.description
