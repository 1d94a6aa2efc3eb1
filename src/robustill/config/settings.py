"""What all groups of settings share: what they refuse, and how they say it in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from robustill.core.errors import did_you_mean

_EXPECTED = {
    "model_type": "keys and values, such as {name: ...}",
    "dict_type": "keys and values",
    "tuple_type": "a list, such as [A, B]",
    "string_type": "a word",
    "union": "a name, or {name: {option: value}}",
    "path_type": "a path (quote one that is a number)",
    "invalid_key": "a word as the key",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
}
_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a word"}


class Settings(BaseModel):
    """Frozen; unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, values: Any) -> Any:
        """Pydantic takes true for 1, and YAML takes `yes` for true."""
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, bool) and key in cls.model_fields and cls.model_fields[key].annotation is not bool:
                raise ValueError(f"{key} is {str(value).lower()}, expected a number or a word")
        return values


def check_option_types(what: str, defaults: Mapping[str, Any], values: Mapping[Any, Any]) -> None:
    """An option is of the kind of its default: the functions that take them do not look."""
    for key, default in defaults.items():
        value, kind = values.get(key, default), type(default)
        if kind is float:
            fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        else:
            fits = kind not in _KINDS or type(value) is kind
        if not fits:
            raise ValueError(f"{what}: {key} is {short_repr(value)}, expected {_KINDS[kind]}")


def first_error_line(error: ValidationError, root: type[BaseModel]) -> str:
    """The first thing that is wrong, and the nearest known key where one is unknown."""
    errors = error.errors(include_url=False)
    # A misspelt key that is needed is both missing and unknown: unknown says more.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    where, kind = ".".join(str(part) for part in first["loc"]).removesuffix(".str"), first["type"]
    if kind == "extra_forbidden":
        return f"unknown key {where}: {did_you_mean(str(first['loc'][-1]), _fields_at(root, first['loc'][:-1]))}"
    if kind == "missing":
        return f"{where} is missing: give it"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("a valid ")
    if kind == "value_error":
        return f"{where}: {message}" if where else message
    expected = _EXPECTED["union" if first["loc"][-1] == "str" else kind] if kind in _EXPECTED else message
    return f"{where} is {short_repr(first['input'])}, expected {expected}"


def _fields_at(root: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    group: Any = root
    for part in location:
        if isinstance(part, str):
            annotation = group.model_fields[part].annotation
            # tuple[Teacher, ...] and Model | None hold the group; a plain group is itself.
            group = next((each for each in get_args(annotation) if _is_group(each)), annotation)
    return list(group.model_fields)


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def short_repr(value: Any) -> str:
    """A value as an error line shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
