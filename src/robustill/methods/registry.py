"""The table of methods by name, and how a method is built from its name and options.

A new method is a file of this package and a row of METHODS; one that lies elsewhere is named by its import path.
"""

from __future__ import annotations

import inspect
from typing import Any

from robustill.core.errors import ConfigError, RobustillError, did_you_mean
from robustill.core.user_code import describe_failure, import_user_module
from robustill.core.validation import check_type
from robustill.methods.absld import ABSLD
from robustill.methods.adaad import AdaAD
from robustill.methods.adaiad import AdaIAD
from robustill.methods.adr import ADR
from robustill.methods.akd import AKD
from robustill.methods.ard import ARD
from robustill.methods.at import AT
from robustill.methods.base import Method, check_method
from robustill.methods.clean import Clean
from robustill.methods.dgad import DGAD
from robustill.methods.dkl import DKL
from robustill.methods.fair_ard import FairARD
from robustill.methods.hat import HAT
from robustill.methods.iad import IAD
from robustill.methods.iad2 import IAD2
from robustill.methods.igdm import IGDM
from robustill.methods.kd import KD
from robustill.methods.kdswa import KDSWA
from robustill.methods.lbgat import LBGAT
from robustill.methods.mart import MART
from robustill.methods.mtard import MTARD
from robustill.methods.peerad import PeerAD
from robustill.methods.rebat import ReBAT
from robustill.methods.rslad import RSLAD
from robustill.methods.saad import SAAD
from robustill.methods.sgls import SGLS
from robustill.methods.te import TE
from robustill.methods.trades import TRADES

METHODS: dict[str, type[Method]] = {
    "clean": Clean,
    "at": AT,
    "trades": TRADES,
    "mart": MART,
    "dkl": DKL,
    "sgls": SGLS,
    "adr": ADR,
    "te": TE,
    "rebat": ReBAT,
    "peerad": PeerAD,
    "lbgat": LBGAT,
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
    "hat": HAT,
    "absld": ABSLD,
    "dgad": DGAD,
}


def method_class(name: str) -> type[Method]:
    """Return the class of a method.

    Args:
        name: a key of METHODS, or an import path "my_pkg.my_mod:MyMethod", whose module is then imported.

    Raises:
        ConfigError: the name is unknown, or the import path does not lead to a subclass of Method.
    """
    check_type("method", name, str, "a method's name, or an import path my_pkg.my_mod:MyMethod")
    if ":" not in name:
        if name not in METHODS:
            raise ConfigError(f"method {name!r} is unknown: {did_you_mean(name, METHODS)}")
        return METHODS[name]
    module, _, class_name = name.partition(":")
    try:
        value = getattr(import_user_module(name), class_name, None)
    except ImportError as error:
        raise ConfigError(f"method {name!r} cannot be imported: {error}") from None
    if value is None:
        raise ConfigError(f"method {name!r} cannot be imported: {module} has no class {class_name!r}")
    if not (inspect.isclass(value) and issubclass(value, Method)):
        raise ConfigError(f"method {name!r} is a {type(value).__name__}, expected a subclass of robustill.Method")
    return value


def method_options(name: str) -> dict[str, inspect.Parameter]:
    """Return the keyword arguments that a method takes, by name."""
    parameters = inspect.signature(method_class(name).__init__).parameters
    return {key: value for key, value in parameters.items() if value.kind is inspect.Parameter.KEYWORD_ONLY}


def build_method(name: str, **options: Any) -> Method:
    """Build a method from its name and options.

    Args:
        name: a key of METHODS, or an import path "my_pkg.my_mod:MyMethod", whose module is then imported.
        options: keyword arguments of the method; those that are left out have their published values.

    Raises:
        ConfigError: the method or an option is unknown, or a value is outside its range.

    Example:
        >>> build_method("akd", alpha=0.5).alpha
        0.5
    """
    valid = method_options(name)
    for key in options:
        if key not in valid:
            hint = did_you_mean(key, valid) if valid else "it has no options"
            raise ConfigError(f"method {name} has no option {key!r}: {hint}")
    try:
        method = method_class(name)(**options)
    except RobustillError:
        raise
    except TypeError as error:
        raise ConfigError(f"method {name} with {options}: {error}") from None
    except Exception as error:
        # Raised by torch where a network or a buffer is assigned.
        if isinstance(error, AttributeError) and "__init__() call" in str(error):
            raise ConfigError(f"method {name}: call super().__init__() first in its __init__ ({error})") from None
        if name in METHODS:
            raise
        # A user's class can raise anything.
        raise ConfigError(f"method {name} cannot be built with {options}: {describe_failure(error)}") from error
    check_method(method)
    return method
