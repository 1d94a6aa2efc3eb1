"""Links and special files in folders that may come from somebody else: nothing is written or removed through a link."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from robustill.core.errors import RunError

# Where the system has them; without O_NONBLOCK the open of a pipe waits for its other end.
_FLAGS = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")

_TEXTS = (".json", ".jsonl", ".yaml")
_LARGEST_TEXT = 2**30


def refuse_link(path: Path) -> None:
    """Check that a path is not a symbolic link; it need not exist.

    Raises:
        RunError: it is one, wherever it leads.
    """
    if path.is_symlink():
        raise RunError(f"{path} is a link, and nothing is written through links: put a copy in its place, or remove it")


def open_regular_file(path: Path, flags: int) -> int:
    """Open a file as `os.open` does, neither through a link nor a pipe, a device or a socket.

    Raises:
        OSError: it is no regular file, or cannot be opened.
    """
    for name in _FLAGS:
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "a link, which is not followed", str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return descriptor


def read_regular_file(path: Path) -> bytes:
    """Return the content of a file, see `open_regular_file`."""
    with os.fdopen(open_regular_file(path, os.O_RDONLY), "rb") as file:
        return file.read()


def refuse_special_files(folder: Path) -> None:
    """Check that a folder can be read: a reader of a pipe would wait for ever, and one of a large text fill the memory.

    Raises:
        RunError: there is a pipe, a device or a socket, or a text of more than a gigabyte.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            try:
                found = path.stat()
            except OSError:
                continue
            mode = found.st_mode
            if path.suffix in _TEXTS and found.st_size > _LARGEST_TEXT:
                raise RunError(f"{path} has {found.st_size:,} bytes, and is no text of a run: remove it")
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise RunError(f"{path} is no regular file but a pipe, a device or a socket: remove it")
