"""YAML of plain values: no duplicate keys, no aliases, bounded in size and depth; written text reads back equal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from robustill.core.errors import ConfigError

# A configuration of a hundred teachers is below 20 kB and seven levels deep.
_MAX_CHARACTERS = 200_000
_MAX_DEPTH = 50
_INTEGER_BOUND = 2**64
# YAML 1.1 reads 1e-3 as a string; in a configuration it is meant as a number.
_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+\Z")


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            # Aliases of aliases grow without bound ("billion laughs"), and a configuration needs none.
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read: write the value out")
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {_MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        result = super().construct_mapping(node, deep=deep)
        if len(result) < len(node.value):
            keys: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in keys:
                    break
                keys.add(key)
            raise yaml.MarkedYAMLError(problem=f"key {key!r} is there twice")
        return result

    def construct_yaml_int(self, node: Any) -> int:
        number: int = super().construct_yaml_int(node)
        if abs(number) >= _INTEGER_BOUND:
            # A hexadecimal number can have more digits than Python prints.
            raise yaml.MarkedYAMLError(problem="a whole number of more than 64 bits")
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    pass


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse_yaml(text: str, what: str) -> Any:
    """Return the value of a YAML text.

    Args:
        text: one YAML document.
        what: the name of the text in error messages.

    Raises:
        ConfigError: the text is no YAML, has a key twice, uses aliases, or is larger or deeper than any configuration.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"{what} is longer than {_MAX_CHARACTERS:,} characters: it is no configuration")
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except Exception as error:
        # PyYAML's constructors fail in many ways, e.g. with a bare ValueError on the date 2001-13-45.
        raise ConfigError(f"{what} is not YAML that can be read: {' '.join(str(error).split())}") from None


def read_yaml(path: Path, what: str) -> Any:
    """Return the value of a YAML file.

    Args:
        path: the file.
        what: its name in error messages.

    Raises:
        ConfigError: the file cannot be read, is not in UTF-8, or is refused by `parse_yaml`.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no UTF-8 text, {error.reason}"
        raise ConfigError(f"{what} cannot be read: {reason}") from None
    return parse_yaml(text, what)


def dump_yaml(value: Any) -> str:
    """Return plain values as YAML, with the keys in their order; `parse_yaml` returns equal values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120)
