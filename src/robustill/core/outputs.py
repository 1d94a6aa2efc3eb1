"""Files that a command writes under a name of the user: only what an earlier call wrote is replaced."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from robustill.core.errors import RunError

_HEAD = 2**16


def check_output_file(out: Path, is_ours: Callable[[bytes], bool], what: str, option: str) -> None:
    """Check that a file may be written, before the work whose result goes into it.

    Args:
        out: its name.
        is_ours: whether the first 64 KiB of a file are those of an earlier call.
        what: the file in words, e.g. "page of `robustill report`".
        option: that names it, e.g. "--out".

    Raises:
        RunError: something else is there, or there is no place for the file.
    """
    try:
        mode = out.stat().st_mode
    except FileNotFoundError:
        check_place(out, option)
        if out.is_symlink():
            raise RunError(f"{out} is a link to nothing: give the name of a new file as {option}") from None
        return
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror}): give the name of a new file as {option}") from None
    if stat.S_ISDIR(mode):
        raise RunError(f"{out} is a folder and cannot be written: give the name of a new file as {option}")
    if not stat.S_ISREG(mode):
        raise RunError(f"{out} is no regular file and cannot be written: give the name of a new file as {option}")
    try:
        with out.open("rb") as file:
            ours = is_ours(file.read(_HEAD))
    except OSError as error:
        raise RunError(f"{out} cannot be read ({error.strerror}): give the name of a new file as {option}") from None
    if not ours:
        raise RunError(f"{out} exists and is no {what}: give another name as {option}, or move it away")
    # It is replaced by another file, for which its folder has to have room.
    check_place(out, option)


def check_place(out: Path, option: str) -> None:
    """Check that a new file or folder can be made at a place: above it are folders, and the nearest is writable.

    Args:
        out: its name.
        option: that names it, e.g. "--out".

    Raises:
        RunError: it cannot.
    """
    nearest = next(each for each in out.absolute().parents if each.exists())
    if not nearest.is_dir():
        raise RunError(f"{out} cannot be written, for {nearest} is a file: give the name of a new file as {option}")
    if not os.access(nearest, os.W_OK):
        raise RunError(f"{out} cannot be written, for {nearest} is read-only: give another place as {option}")
