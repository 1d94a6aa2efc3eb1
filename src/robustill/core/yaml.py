"""YAML as this project reads it: plain values, no key twice, no aliases, bounded; what is written reads back equal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from robustill.core.errors import ConfigError

# A configuration of a hundred teachers is below 20 kB and seven levels deep.
_MOST_CHARACTERS = 200_000
_DEEPEST = 50
_LARGEST = 2**64
# YAML 1.1 takes 1e-3 for a word; whoever writes it into a configuration means the number.
_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+\Z")


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            # Aliases of aliases grow without bound ("billion laughs"), and a configuration needs none.
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read: write the value out")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {_DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        result = super().construct_mapping(node, deep=deep)
        if len(result) < len(node.value):
            seen: set[Any] = set()
            for key, _ in node.value:
                twice = self.construct_object(key, deep=True)
                if twice in seen:
                    break
                seen.add(twice)
            raise yaml.MarkedYAMLError(problem=f"key {twice!r} is there twice")
        return result

    def construct_yaml_int(self, node: Any) -> int:
        number: int = super().construct_yaml_int(node)
        if abs(number) >= _LARGEST:
            # Written in hexadecimal they can have more digits than Python prints.
            raise yaml.MarkedYAMLError(problem="a whole number of more than 64 bits")
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    pass


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML text.

    Args:
        text: one YAML document.
        what: how an error names it.

    Raises:
        ConfigError: it is no YAML, names a key twice, uses aliases, or is larger or deeper than any configuration.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"{what} is longer than {_MOST_CHARACTERS:,} characters: it is no configuration")
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except Exception as error:
        # PyYAML's constructors fail in many ways, e.g. with a bare ValueError on the date 2001-13-45.
        raise ConfigError(f"{what} is not YAML that can be read: {' '.join(str(error).split())}") from None


def read_yaml(path: Path, what: str) -> Any:
    """As `parse`, from a file.

    Raises:
        ConfigError: also when it cannot be read or is no text.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no UTF-8 text, {error.reason}"
        raise ConfigError(f"{what} cannot be read: {reason}") from None
    return parse_yaml(text, what)


def dump_yaml(value: Any) -> str:
    """Plain values as YAML, keys in their order; `parse` gives them back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120)
