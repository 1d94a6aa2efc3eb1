"""The base class of all groups of settings, and the errors that they raise, in one line."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from robustill.core.errors import did_you_mean
from robustill.runs.directory import RETIRED_SETTINGS

# What is expected, by pydantic's type of error.
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
_TYPE_NAMES: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a word"}


# What others call a setting.
_SYNONYMS = {
    "arch": "model",
    "architecture": "model",
    "bs": "batch_size",
    "checkpoint": "initial",
    "dataset": "data",
    "epsilon": "eps",
    "gpu": "device",
    "init": "initial",
    "iters": "steps",
    "lr": "learning_rate",
    "max_lr": "learning_rate",
    "network": "model",
    "num_epochs": "epochs",
    "num_steps": "steps",
    "num_threads": "threads",
    "optimizer": "optim",
    "pretrained": "initial",
    "random_seed": "seed",
    "scheduler": "schedule",
    "teacher": "teachers",
    "wd": "weight_decay",
    "weights": "initial",
}


class Settings(BaseModel):
    """A group of settings: frozen; unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_booleans(cls, values: Any) -> Any:
        """Refuse a boolean where a number is expected: pydantic reads true as 1, and YAML reads `yes` as true."""
        if not isinstance(values, Mapping):
            return values
        for key, value in values.items():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise ValueError(f"{key} is {str(value).lower()}, expected a number or a word")
        return values


def check_option_types(what: str, defaults: Mapping[str, Any], values: Mapping[Any, Any]) -> None:
    """Check that each option has the type of its default.

    Args:
        what: whose options these are, for error messages.
        defaults: the default of each option.
        values: the given options.

    Raises:
        ValueError: an option has another type.
    """
    for key, default in defaults.items():
        value, expected = values.get(key, default), type(default)
        if expected is float:
            is_valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        else:
            is_valid = expected not in _TYPE_NAMES or type(value) is expected
        if not is_valid:
            raise ValueError(f"{what}: {key} is {short_repr(value)}, expected {_TYPE_NAMES[expected]}")


def first_error_line(error: ValidationError, root: type[BaseModel], options: Sequence[str] = ()) -> str:
    """Return one line about the first error of a validation, with the nearest valid key for an unknown one.

    Args:
        error: the error of pydantic.
        root: the class whose validation failed.
        options: further settings, such as "model.width", which are not fields of the class.
    """
    errors = error.errors(include_url=False)
    # A required key that is misspelt is reported both as missing and as unknown; the latter says more.
    unknown = [each for each in errors if each["type"] == "extra_forbidden"]
    first = unknown[0] if unknown else errors[0]
    location, kind = first["loc"], first["type"]
    where = ".".join(str(part) for part in location).removesuffix(".str")
    if kind == "extra_forbidden":
        retired = retired_line(location)
        if retired is not None:
            return retired
        known = _fields_at(root, location[:-1])
        group = ".".join(map(str, location[:-1]))
        near = nearest_settings(str(location[-1]), root, known, group, options)
        hint = f"did you mean {' or '.join(near)}?" if near else did_you_mean(str(location[-1]), known)
        return f"unknown key {where}: {hint}"
    if kind == "missing":
        return f"{where} is missing: give it"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("a valid ")
    if kind == "value_error":
        return f"{where}: {message}" if where else message
    expected = message
    if kind in _EXPECTED:
        expected = _EXPECTED["union" if location[-1] == "str" else kind]
    return f"{where} is {short_repr(first['input'])}, expected {expected}"


def nearest_settings(
    key: str, root: type[BaseModel], known: Sequence[str], group: str = "", options: Sequence[str] = ()
) -> list[str]:
    """Return the settings that an unknown key most likely means: by other names for them, and in other groups.

    Args:
        key: the unknown key.
        root: the class of the whole configuration.
        known: the keys where it was given.
        group: the group that it was given in, with dots; "" for none.
        options: further settings, such as "model.width", which are not fields of the class.

    Returns:
        At most three names with dots; none if several keys where it was given are as near.
    """
    word = _SYNONYMS.get(key, key)
    if word in known:
        return [f"{group}.{word}" if group else word]
    settings = [
        f"{name}.{each}"
        for name, field in root.model_fields.items()
        if _is_group(field.annotation)
        for each in field.annotation.model_fields  # type: ignore[union-attr]
    ]
    settings += options
    words = [each.rpartition(".")[2] for each in settings]
    if word not in words and difflib.get_close_matches(word, known, n=1):
        return []
    found = [word] if word in words else difflib.get_close_matches(word, dict.fromkeys(words), n=1, cutoff=0.75)
    near = [each for each, own in zip(settings, words, strict=True) if own in found]
    return near if len(near) <= 3 else []


def retired_line(location: Sequence[int | str]) -> str | None:
    """Return the error line for a setting that no longer exists; None for any other setting.

    Example:
        >>> retired_line(("compute", "cuda_graphs"))
        'compute.cuda_graphs no longer exists: leave it out (it had no effect on any number)'
    """
    if len(location) != 2 or location[1] not in RETIRED_SETTINGS.get(str(location[0]), {}):
        return None
    group, key = str(location[0]), str(location[1])
    return f"{group}.{key} no longer exists: leave it out ({RETIRED_SETTINGS[group][key]})"


def _fields_at(root: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the keys of the group of settings at a location."""
    group: Any = root
    for part in location:
        if isinstance(part, str):
            annotation = group.model_fields[part].annotation
            # The group is an argument of tuple[TeacherConfig, ...] and of ModelConfig | None, or the annotation itself.
            arguments = [each for each in get_args(annotation) if _is_group(each)]
            group = arguments[0] if arguments else annotation
    return list(group.model_fields)


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def short_repr(value: Any) -> str:
    """Return the repr of a value, cut off after 80 characters, for error messages."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
