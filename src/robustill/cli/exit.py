"""How a command ends: a mistake that the user can mend, or a signal, is one line and an exit code, no traceback."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cyclopts import CycloptsError

from robustill.core.errors import RobustillError
from robustill.core.signals import Interrupted, interruptible


@contextmanager
def one_line() -> Iterator[None]:
    """The process ends with 2 after a mistake, with 130 after SIGINT, with 143 after SIGTERM."""
    warnings.showwarning = _one_line_warning
    try:
        with interruptible():
            yield
    except (RobustillError, CycloptsError) as error:
        sys.exit(_failed(" ".join(str(error).split())))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sys.exit(_failed(f"{place}{error.strerror or error}"))
    except Interrupted as interrupted:
        print(f"robustill: {interrupted}", file=sys.stderr)
        sys.exit(interrupted.exit_code)


@contextmanager
def at_once_among_several() -> Iterator[None]:
    """A process that torchrun started, its work done, ends without taking apart what its libraries have left.

    There the threads of a closed process group abort one in thirty, and torchrun counts it as failed.
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


def _failed(line: str) -> int:
    print(f"robustill: {line}", file=sys.stderr)
    return 2


def _one_line_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"robustill: warning: {' '.join(str(message).split())}", file=sys.stderr)
