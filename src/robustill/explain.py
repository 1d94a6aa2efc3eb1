"""What each setting of a configuration means, beside it."""

from __future__ import annotations

import re

from pydantic import BaseModel

from robustill.config import Config, dump

_KEY = re.compile(r"( *)(\w+):")
_COLUMN = 40


def explained(config: Config) -> str:
    """`dump` with the meaning of every setting that has one as a comment; the same configuration when it is read.

    Example:
        >>> print(explained(Config()).partition("\\n")[0])
        seed: 0                                 # of the weights, the order, the augmentation and the attack
    """
    group, lines = "", []
    for line in dump(config).splitlines():
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
