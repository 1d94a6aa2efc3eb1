"""Checks of the arguments of public functions: what was found, what was expected and how to mend it, in one line.

A check of a tensor's type, shape and dtype costs a microsecond. A check of its values waits for a GPU: only functions
that are called once for many passes through a network make it, never a function that a training step calls.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from robustill.core.errors import ConfigError, DataError, ModelError, RobustillError, did_you_mean

# Commands that compute nothing check their options without the seconds that importing torch takes.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MAX_SEED = 2**64


def describe(value: Any) -> str:
    """Return a value in a few words, for an error message.

    Example:
        >>> import torch
        >>> describe(torch.zeros(2, 3)), describe("8/255"), describe(torch.nn.Flatten)
        ('torch.float32 [2, 3]', "'8/255'", 'the class Flatten')
    """
    if _is_tensor(value):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, str | bytes | numbers.Number | Path):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:77]}..."
    return f"a {type(value).__name__}"


def _is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Return whether a value is a tensor; nothing is one before torch has been imported."""
    loaded = sys.modules.get("torch")
    return loaded is not None and isinstance(value, loaded.Tensor)


# --- options


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    error: type[RobustillError] = ConfigError,
) -> float:
    """Return a finite number within bounds, as a float.

    Args:
        name: the name of the argument, for the error.
        value: the argument; a bool or a string is no number.
        above: a bound that the number exceeds.
        at_least: the smallest number.
        below: a bound that the number stays under.
        at_most: the largest number.
        error: what is raised.

    Raises:
        RobustillError: it is something else.

    Example:
        >>> check_number("temperature", 4, above=0)
        4.0
    """
    # The numbers of Python come first, since they are recognised sooner than those of other libraries.
    is_number = isinstance(value, float | int | numbers.Real) and not isinstance(value, bool) and _is_finite(value)
    if (
        is_number
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    ):
        return float(value)
    bounds = (("above", above), ("of at least", at_least), ("below", below), ("of at most", at_most))
    expected = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
    remedy = ": write it without quotes" if isinstance(value, str) else ""
    raise error(f"{name} is {describe(value)}, expected a finite number {expected}".rstrip() + remedy)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        # A whole number beyond the largest float.
        return False


def check_integer(
    name: str, value: Any, *, at_least: int, below: int | None = None, error: type[RobustillError] = ConfigError
) -> int:
    """Return a whole number within bounds, as an int.

    Raises:
        RobustillError: it is something else; a bool, a float or a string is no whole number.

    Example:
        >>> check_integer("steps", 10, at_least=0)
        10
    """
    try:
        number = None if isinstance(value, bool) or _is_tensor(value) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < at_least or (below is not None and number >= below):
        upper = "" if below is None else f" and below {below}"
        raise error(f"{name} is {describe(value)}, expected a whole number of at least {at_least}{upper}")
    return number


def check_seed(seed: Any, error: type[RobustillError] = ConfigError) -> int:
    """Return a seed, a whole number from 0 to 2⁶⁴ − 1, as an int.

    Raises:
        RobustillError: it is something else.
    """
    return check_integer("seed", seed, at_least=0, below=_MAX_SEED, error=error)


def check_choice(name: str, value: Any, choices: Collection[str], error: type[RobustillError] = ConfigError) -> None:
    """Check that an option is one of the words that it may be.

    Raises:
        RobustillError: it is something else.
    """
    if not isinstance(value, str):
        raise error(f"{name} is {describe(value)}, expected one of {', '.join(sorted(choices))}")
    if value not in choices:
        raise error(f"{name} {describe(value)} is unknown: {did_you_mean(value, choices)}")


def check_flag(name: str, value: Any) -> None:
    """Check that an option is True or False.

    Raises:
        ConfigError: it is something else, such as "no", which Python takes for true.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {describe(value)}, expected True or False")


def check_type(
    name: str,
    value: Any,
    kinds: type | tuple[type, ...],
    expected: str,
    error: type[RobustillError] = ConfigError,
) -> None:
    """Check the type of an argument.

    Args:
        name: the name of the argument.
        value: the argument.
        kinds: the types that it may have.
        expected: what was expected and how to mend it, the end of the error's line.
        error: what is raised.

    Raises:
        RobustillError: it has another type.
    """
    if not isinstance(value, kinds):
        raise error(f"{name} is {describe(value)}, expected {expected}")


def check_callable(name: str, value: Any, expected: str) -> None:
    """Check that an argument is a function.

    Raises:
        ConfigError: it is not, or it is a class of networks, whose objects are functions.
    """
    loaded = sys.modules.get("torch")
    if not callable(value) or (loaded is not None and isinstance(value, type) and issubclass(value, loaded.nn.Module)):
        raise ConfigError(f"{name} is {describe(value)}, expected {expected}")


def check_path(name: str, value: Any) -> Path:
    """Return a path given as text or as a Path.

    Raises:
        ConfigError: it is something else, or empty.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes) or not os.fspath(value):
        raise ConfigError(f"{name} is {describe(value)}, expected a path, as text or as a pathlib.Path")
    if "\0" in os.fspath(value):
        raise ConfigError(f"{name} is {describe(os.fspath(value))}: a path has no null character")
    return Path(value)


def check_texts(name: str, values: Any, example: str) -> list[str]:
    """Return a list of texts, such as overrides of a configuration, as a list.

    Raises:
        ConfigError: it is something else; a single text would be taken for its characters.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ConfigError(f"{name} is {describe(values)}, expected a list of texts such as {example}")
    texts = list(values)
    for each in texts:
        if not isinstance(each, str):
            raise ConfigError(f"{name} holds {describe(each)}, expected a list of texts such as {example}")
    return texts


def check_module(name: str, value: Any) -> None:
    """Check that an argument is a network.

    Raises:
        ModelError: it is something else, such as what `load_network` returns, which has the network as `.module`.
    """
    from torch import nn

    if isinstance(value, nn.Module):
        return
    remedy = ""
    if isinstance(getattr(value, "module", None), nn.Module):
        remedy = ": give its .module"
    elif isinstance(value, type):
        remedy = ": call it to build one"
    elif isinstance(value, list | tuple):
        remedy = ": combine several with robustill.Ensemble"
    elif isinstance(value, str | Path):
        remedy = ": load it with robustill.load_network"
    raise ModelError(f"{name} is {describe(value)}, expected a torch.nn.Module{remedy}")


# --- tensors


def check_tensor(name: str, value: Any, expected: str) -> None:
    """Check that an argument is a torch.Tensor.

    Raises:
        DataError: it is something else, such as an array of NumPy.
    """
    if not _is_tensor(value):
        remedy = ": convert it with torch.from_numpy" if type(value).__module__ == "numpy" else ""
        raise DataError(f"{name} is {describe(value)}, expected a torch.Tensor, {expected}{remedy}")


def check_images(
    x: Any, name: str = "x", *, allow_empty: bool = False, values: bool = False, rounding: float = 0.0
) -> None:
    """Check that images are a tensor of floating-point numbers [B,C,H,W].

    Args:
        x: the images.
        name: the name of the argument.
        allow_empty: accept a batch of no images; the values are then not checked.
        values: also check that they are in [0,1], which waits for a GPU.
        rounding: how far beyond [0,1] they may be.

    Raises:
        DataError: they are not.

    Example:
        >>> import torch
        >>> check_images(torch.zeros(1, 2))
        Traceback (most recent call last):
        robustill.core.errors.DataError: x is torch.float32 [1, 2], expected images [B,C,H,W], at least one
    """
    import torch

    if allow_empty and isinstance(x, torch.Tensor) and x.ndim == 4 and x.is_floating_point():
        return
    check_tensor(name, x, "float32 [B,C,H,W] in [0,1]")
    if not x.is_floating_point():
        remedy = ": divide them by 255" if x.dtype == torch.uint8 else ""
        raise DataError(f"{name} is {describe(x)}, expected float32 [B,C,H,W] in [0,1]{remedy}")
    if x.ndim != 4 or (0 in x.shape and not allow_empty):
        remedy = ": add a dimension with .unsqueeze(0)" if x.ndim == 3 else ""
        raise DataError(f"{name} is {describe(x)}, expected images [B,C,H,W], at least one{remedy}")
    if not values:
        return
    lowest, highest = torch.stack(x.detach().aminmax()).tolist()
    if not -rounding <= lowest <= highest <= 1 + rounding:
        if math.isnan(lowest):
            raise DataError(f"{name} has values that are NaN, expected [0,1]: look for a division by zero before it")
        remedy = "divide bytes by 255, and normalise inside the network"
        raise DataError(f"{name} has values from {lowest:.9g} to {highest:.9g}, expected [0,1]: {remedy}")


def check_same_shape(name: str, value: Any, other_name: str, other: Tensor) -> None:
    """Check that a tensor has the shape of another one, which torch would broadcast otherwise.

    Raises:
        DataError: it has another shape, or is no tensor.
    """
    if _is_tensor(value) and value.shape == other.shape:
        return
    check_tensor(name, value, f"of the shape of {other_name}, {list(other.shape)}")
    if value.shape != other.shape:
        raise DataError(f"{name} is {describe(value)}, expected the shape of {other_name}, {list(other.shape)}")


def check_labels(y: Any, count: int, name: str = "y") -> None:
    """Check that labels are int64 [count].

    Raises:
        DataError: they are not.
    """
    import torch

    if isinstance(y, torch.Tensor) and y.dtype == torch.int64 and y.shape == (count,):
        return
    check_tensor(name, y, f"int64 [{count}]")
    if y.dtype != torch.int64 or y.shape != (count,):
        remedy = ""
        if y.shape == (count,) and y.dtype != torch.int64:
            remedy = ": convert them with .long()"
        elif y.ndim == 2 and len(y) == count:
            remedy = ": take the class of each image, y.argmax(dim=1), or y.squeeze(1)"
        raise DataError(f"{name} is {describe(y)}, expected int64 [{count}], one for each image{remedy}")


def check_label_range(y: Tensor, num_classes: int | None, name: str = "y") -> None:
    """Check that labels are classes from 0 to K − 1, which waits for a GPU; None stands for an unknown K.

    Raises:
        DataError: they are not.
    """
    import torch

    lowest, highest = torch.stack(y.aminmax()).tolist()
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        expected = "at least 0" if num_classes is None else f"0 to {num_classes - 1}"
        raise DataError(f"{name} has labels from {lowest} to {highest}, expected {expected}: count classes from 0")


def check_generators(name: str, value: Any, count: int, device: torch.device) -> None:
    """Check that the random numbers of images come from None, one generator, or one for each image.

    Args:
        name: the name of the argument.
        value: the argument.
        count: the number of images.
        device: of the images, on which a generator must be, too.

    Raises:
        ConfigError: it is something else.
    """
    import torch

    if value is None:
        return
    each = [value] if isinstance(value, torch.Generator) else value
    if not isinstance(each, Sequence) or not all(isinstance(one, torch.Generator) for one in each):
        remedy = "torch.Generator().manual_seed(0)"
        raise ConfigError(f"{name} is {describe(value)}, expected a generator such as {remedy}, or one for each image")
    if each is value and len(each) != count:
        raise ConfigError(f"{name} has {len(each)} generators for {count} images, expected one for each")
    if each and each[0].device.type != device.type:
        raise ConfigError(f"{name} is on {each[0].device}, expected the device of the images, {device}")
