"""The type of the fixture `call` of the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable

Call = Callable[..., tuple[int, str, str]]
"""Runs `robustill` with these arguments and returns its exit code, its stdout and its stderr."""
