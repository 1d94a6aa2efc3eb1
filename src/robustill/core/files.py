"""Files that are there whole or not at all: written to a temporary name, flushed to disk, renamed."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from robustill.core.errors import DataError, RunError
from robustill.core.links import open_regular_file


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content in one instant; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Exclusively: a link of that name, which somebody else put there, is not followed.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8; what has none, such as a part of a file's name that is no UTF-8, is spelled out."""
    write_bytes(path, text.encode(errors="backslashreplace"))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of `path` when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        flush_folder(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make renames inside a folder survive a loss of power, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a parser raises over a damaged file into one DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    # A decoder fed arbitrary bytes may raise any type; the caller can only name the file.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(f"{path}: damaged or not of the expected format ({reason}); replace the file") from error


_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def exclusive_lock(file: Path, refusal: str) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is missing, and stays.

    Args:
        file: in a folder that is there.
        refusal: said where another process holds it.

    Raises:
        RunError: another process does.
    """
    import fcntl

    with _opened_lock(file) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                raise RunError(refusal) from None
            # Some file systems of clusters have no locks; better unguarded than not at all.
            warnings.warn(f"{file} cannot be locked ({error.strerror}): let no second process in", stacklevel=3)
        # Whoever held it may have removed the file after we had opened it.
        try:
            whole = os.path.samestat(os.fstat(handle.fileno()), file.stat())
        except FileNotFoundError:
            whole = False
        if not whole:
            raise RunError(refusal)
        yield


def _opened_lock(file: Path) -> IO[bytes]:
    """Open the file of a lock, which keeps its content and is not reached through a link."""
    try:
        return os.fdopen(open_regular_file(file, os.O_RDWR | os.O_CREAT), "r+b", buffering=0)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL):
            raise
        raise RunError(f"{file} is {error.strerror}: remove it") from None


@contextmanager
def exclusive_lock_in(folder: Path, refusal: str) -> Iterator[None]:
    """As `exclusive_lock`, for a folder that comes into being for the work and may be removed by whoever works in it.

    If nothing else is in it in the end, it goes as it came.

    Raises:
        RunError: another process holds it.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder / "lock", refusal):
        try:
            yield
        finally:
            if folder.is_dir() and [each.name for each in folder.iterdir()] == ["lock"]:
                (folder / "lock").unlink()
                for each in made:
                    with suppress(OSError):
                        each.rmdir()
