"""The usual names of methods: PGD-AT, AKD, PGD-AT + EMA. The one place where a setting becomes such a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHOD_NAMES = {
    "clean": "Standard training",
    "at": "PGD-AT",
    "trades": "TRADES",
    "mart": "MART",
    "dkl": "DKL",
    "sgls": "SGLS",
    "adr": "ADR",
    "te": "TE",
    "rebat": "ReBAT",
    "kd": "KD",
    "akd": "AKD",
    "ard": "ARD",
    "rslad": "RSLAD",
    "iad": "IAD-I",
    "iad2": "IAD-II",
    "kdswa": "KD+SWA",
    "adaad": "AdaAD",
    "adaiad": "AdaIAD",
    "mtard": "MTARD",
    "igdm": "IGDM",
    "saad": "SAAD",
    "fair_ard": "Fair-ARD",
    "peerad": "PeerAiD",
    "lbgat": "LBGAT",
    "hat": "HAT",
    "absld": "ABSLD",
    "dgad": "DGAD",
}
"""The name of each method in papers, by its name in a configuration."""


def method_name(config: Mapping[str, Any], average: str | None = None) -> str:
    """Return the usual name of the training that a configuration describes.

    Args:
        config: the configuration of a run, as plain values.
        average: "ema" or "swa" if the weights are averaged, as in the checkpoint best-ema.

    Example:
        >>> method_name({"method": {"name": "at"}}, "ema"), method_name({"method": {"name": "my_pkg.my_mod:Mine"}})
        ('PGD-AT + EMA', 'Mine')
    """
    method, optim = config.get("method"), config.get("optim")
    name = str(method.get("name")) if isinstance(method, Mapping) and method.get("name") else "unknown method"
    parts = [METHOD_NAMES.get(name) or name.rpartition(":")[2] or name]
    if isinstance(optim, Mapping) and optim.get("awp") is not None:
        parts.append("AWP")
    if average is not None and average.upper() not in parts[0]:
        parts.append(average.upper())
    return " + ".join(parts)


def average_of(checkpoint: str) -> str | None:
    """Return the kind of average that a checkpoint is.

    Example:
        >>> average_of("best-ema"), average_of("last")
        ('ema', None)
    """
    kind = checkpoint.rpartition("-")[2]
    return kind if kind in ("ema", "swa") else None
