"""How a command ends: a user's mistake or a signal becomes one line and an exit code, without a traceback."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cyclopts import CycloptsError, MissingArgumentError, UnknownOptionError, UnusedCliTokensError

from robustill.core.errors import RobustillError
from robustill.core.signals import Interrupted, interruptible

_USAGE_ERROR = 2
_BROKEN_PIPE = 128 + 13
"""The exit code of a process that SIGPIPE ends, as a shell reports it."""


_PACKAGES = {"PIL": "pillow", "yaml": "pyyaml"}
"""The packages that are imported by another name than they are installed by."""


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Print an error as one line and exit: with 2 after a user's mistake, 130 after SIGINT, 143 after SIGTERM.

    Warnings are printed as one line, too.
    """
    warnings.showwarning = _show_warning
    try:
        with interruptible():
            yield
            # Here, where an error becomes one line, not while the interpreter shuts down.
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        print("robustill: the program that reads the output has ended; the rest is not printed", file=sys.stderr)
        sys.exit(_BROKEN_PIPE)
    except RobustillError as error:
        _exit_with_error(" ".join(str(error).split()))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("robustill"):
            raise
        package = _PACKAGES.get(error.name, error.name)
        _exit_with_error(f"this command needs {package}, which is not installed: pip install {package}")
    except CycloptsError as error:
        _exit_with_error(_usage_line(error))
    except OSError as error:
        _discard_stdout()
        prefix = f"{error.filename}: " if error.filename else ""
        _exit_with_error(f"{prefix}{error.strerror or error}")
    except Interrupted as interrupted:
        print(f"robustill: {interrupted}", file=sys.stderr)
        sys.exit(interrupted.exit_code)


@contextmanager
def exiting_at_once_under_torchrun() -> Iterator[None]:
    """Exit the process when the command has succeeded; under torchrun, without running the interpreter's shutdown.

    During that shutdown the threads of a closed process group abort about one process in thirty, and torchrun would
    report it as failed. Elsewhere, and after an error, the process exits as usual.
    """
    try:
        yield
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    sys.exit(0)


def _usage_line(error: CycloptsError) -> str:
    """Return one line about a command that was written wrongly: what was found or is missing, and what is expected."""
    line = " ".join(str(error).split())
    command = " ".join(("robustill", *(error.command_chain or ())))
    parameters = [] if error.target is None else list(inspect.signature(error.target).parameters.values())
    kinds = [parameter.kind for parameter in parameters]
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        names = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        option = error.argument.name
        if error.keyword is not None or error.argument.tokens:
            return f"{error.keyword or option} has no value: see {command} --help"
        words = " ".join(name.upper() for name in names)
        if option.removeprefix("--") in names:
            return f"{option.removeprefix('--').upper()} is missing: write {command} {words} ..., see {command} --help"
        return f"{option} is missing: write {command} {words} ... {option} ..., see {command} --help"
    if isinstance(error, UnknownOptionError):
        option = error.token.keyword or error.token.value
        # Of a command that takes settings, whatever they are called, after its first argument.
        if kinds[:2] == [inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL]:
            name = parameters[0].name.upper()
            return f"{option} is not expected before {name}: write {command} {name} {option} ..."
    if isinstance(error, UnusedCliTokensError):
        return f"{' '.join(error.unused_tokens or ())} is not expected here: see {command} --help"
    return line


def _discard_stdout() -> None:
    """Flush stdout or, where that is impossible, discard what is left, so that the shutdown does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _exit_with_error(message: str) -> None:
    print(f"robustill: {message}", file=sys.stderr)
    sys.exit(_USAGE_ERROR)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"robustill: warning: {' '.join(str(message).split())}", file=sys.stderr)
