"""Methods: what the adversary maximises and what the student minimises. One paper a file; a new one is a row here."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from robustill.core.errors import ConfigError, did_you_mean
from robustill.methods.adaad import AdaAD
from robustill.methods.adaiad import AdaIAD
from robustill.methods.akd import AKD
from robustill.methods.ard import ARD
from robustill.methods.at import AT
from robustill.methods.base import Batch, Method, Network, Outcome
from robustill.methods.clean import Clean
from robustill.methods.dkl import DKL
from robustill.methods.fair_ard import FairARD
from robustill.methods.iad import IAD
from robustill.methods.iad2 import IAD2
from robustill.methods.igdm import IGDM
from robustill.methods.kd import KD
from robustill.methods.kdswa import KDSWA
from robustill.methods.mart import MART
from robustill.methods.mtard import MTARD
from robustill.methods.peerad import PeerAD
from robustill.methods.rslad import RSLAD
from robustill.methods.saad import SAAD
from robustill.methods.trades import TRADES

METHODS: dict[str, type[Method]] = {
    "clean": Clean,
    "at": AT,
    "trades": TRADES,
    "mart": MART,
    "dkl": DKL,
    "kd": KD,
    "akd": AKD,
    "ard": ARD,
    "rslad": RSLAD,
    "iad": IAD,
    "iad2": IAD2,
    "kdswa": KDSWA,
    "adaad": AdaAD,
    "adaiad": AdaIAD,
    "mtard": MTARD,
    "igdm": IGDM,
    "saad": SAAD,
    "fair_ard": FairARD,
    "peerad": PeerAD,
}


def method_class(name: str) -> type[Method]:
    """A row of METHODS, or the Method that an import path "my_pkg.my_mod:MyMethod" names (which runs that module).

    Raises:
        ConfigError: no such name, or the import does not give a Method.
    """
    if ":" not in name:
        if name not in METHODS:
            raise ConfigError(f"method {name!r} is unknown: {did_you_mean(name, METHODS)}")
        return METHODS[name]
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"method {name!r} cannot be imported: {error}") from None
    if not (inspect.isclass(found) and issubclass(found, Method)):
        raise ConfigError(f"method {name!r} is a {type(found).__name__}, expected a subclass of robustill.Method")
    return found


def method_options(name: str) -> dict[str, inspect.Parameter]:
    """The keyword arguments that a method takes, by name."""
    parameters = inspect.signature(method_class(name).__init__).parameters
    return {key: value for key, value in parameters.items() if value.kind is inspect.Parameter.KEYWORD_ONLY}


def build_method(name: str, **options: Any) -> Method:
    """A method with its options; those left out are as published.

    Raises:
        ConfigError: unknown method or option, or a value out of its range.

    Example:
        >>> build_method("akd", alpha=0.5).alpha
        0.5
    """
    known = method_options(name)
    for key in options:
        if key not in known:
            hint = did_you_mean(key, known) if known else "it has no options"
            raise ConfigError(f"method {name} has no option {key!r}: {hint}")
    try:
        return method_class(name)(**options)
    except TypeError as error:
        raise ConfigError(f"method {name} with {options}: {error}") from None


__all__ = ["METHODS", "Batch", "Method", "Network", "Outcome", "build_method", "method_class", "method_options"]
