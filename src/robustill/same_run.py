"""Whether two configurations describe the same run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustill.settings import first_difference

# Where the numbers are computed and where the files lie do not change what a run is.
_FREE_KEYS = frozenset({"compute.device", "compute.threads", "compute.teacher_cache", "data.root", "data.download"})


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting that makes them two runs, with both its values; networks may be named from here or the root.

    Args:
        there: a resolved configuration, as plain values.
        here: another.

    Example:
        >>> one = {"seed": 0, "initial": "run:runs/a@best", "teachers": []}
        >>> difference(one, {**one, "initial": f"run:{Path.cwd()}/runs/a@best"})
        >>> difference(one, {**one, "seed": 1})
        ('seed', 0, 1)
    """
    found = {key: there[key] for key in ("initial", "teachers") if _located(there[key]) == _located(here[key])}
    return first_difference(there, {**here, **found}, _FREE_KEYS)


def _located(named: Any) -> Any:
    """Specifications of networks with the paths of runs and files from the root."""
    if isinstance(named, list):
        return [{**each, "spec": _located(each["spec"])} for each in named]
    if isinstance(named, str) and named.startswith("run:"):
        return "run:" + os.path.normpath(Path.cwd() / named.removeprefix("run:"))
    if isinstance(named, str) and Path(named).is_file():
        return os.path.normpath(Path.cwd() / named)
    return named
