"""Reading and writing of files: complete or not at all, errors that name the file, locks between processes."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from robustill.core.errors import DataError, RunError, first_line

if TYPE_CHECKING:
    from filelock import BaseFileLock

_TEMPORARY_NAME = re.compile(r"\..+\.([1-9][0-9]{0,9})\.tmp")

# --- writing: to a temporary name, flushed to disk, renamed


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the content of a file atomically; its folder is made if it is missing.

    Raises:
        RunError: the path is that of a folder.
    """
    if path.is_dir():
        raise RunError(f"{path} is a folder: give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
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
    _flush_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the content of a file atomically by a text in UTF-8; characters that it cannot encode are escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which is removed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, which replaces `path` when the block ends without an exception.

    A process that is killed leaves the old folder, the new one or, between two renames, none, but never a part of
    either; the next call removes what is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _temporary(path), _temporary(path.with_name(f"{path.name}.old"))
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        _flush_folder(temporary)
        if path.is_dir() and not path.is_symlink():
            path.rename(old)
        temporary.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
    _flush_folder(path.parent)
    for left in abandoned(path.parent):
        if left.name.rsplit(".", 2)[0] in (f".{path.name}", f".{path.name}.old"):
            shutil.rmtree(left, ignore_errors=True)


def is_temporary(path: Path) -> bool:
    """Return whether a path has the name of a file or folder whose writing was not finished."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def abandoned(folder: Path) -> Iterator[Path]:
    """Yield the temporary files and folders in a folder whose process of this machine has ended."""
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY_NAME.fullmatch(path.name)
        if match is not None and not _is_running(int(match[1])):
            yield path


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        # It belongs to another user, or is no number of a process.
        return True
    return True


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _flush_folder(folder: Path) -> None:
    """Flush a folder to disk, so that renames inside it survive a loss of power; POSIX only."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- reading


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any exception that a parser raises for a damaged file into one DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    # A decoder can raise any type of exception for arbitrary bytes.
    except Exception as error:
        reason = first_line(error)
        raise DataError(f"{path}: damaged or not of the expected format ({reason}); replace the file") from error


class BoundedReader(io.BufferedReader):
    """A file opened for reading whose `read` asks for no more than is left in it.

    Python reserves as much memory as is asked for, and a damaged file may ask for gigabytes.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Return so many bytes, or those that are left."""
        left = max(0, self.size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


# --- locks

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def take_lock(file: Path) -> BaseFileLock | None:
    """Lock a file exclusively, without waiting; it is created if it is missing, keeps its content and is not removed.

    Returns:
        The lock, until its `release` or until this process ends, even if it is killed; None if it is held already.

    Raises:
        RunError: the file is a link, a folder, a pipe or a device.
        OSError: it cannot be opened, or its file system has no locks.
    """
    from filelock import FileLock, Timeout

    if file.exists() and not file.is_file():
        raise RunError(f"{file} is no regular file: remove it")
    # Of no thread: what holds it may be collected in another one. A soft lock would outlive a process that is killed.
    lock = FileLock(file, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise RunError(f"{file} is a link, which is not followed: remove it") from None
    return lock


@contextmanager
def exclusive_lock(file: Path, refusal: str) -> Iterator[None]:
    """Hold an exclusive lock on a file, see `take_lock`.

    Args:
        file: the lock file, in an existing folder.
        refusal: the error message if another process holds the lock.

    Raises:
        RunError: another process holds the lock.
    """
    try:
        lock = take_lock(file)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        # Some cluster file systems have no locks; working without one is better than not at all.
        warnings.warn(f"{file} cannot be locked ({error.strerror}): start no second process on it", stacklevel=3)
        yield
        return
    if lock is None:
        raise RunError(refusal)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def exclusive_lock_in(folder: Path, refusal: str) -> Iterator[None]:
    """Hold an exclusive lock on a folder that is created for the work and may be removed by it.

    At the end, a folder that holds nothing but the lock is removed, with the parent folders that were created for it.

    Args:
        folder: the folder to lock.
        refusal: the error message if another process holds the lock.

    Raises:
        RunError: another process holds the lock.
    """
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder / "lock", refusal):
        try:
            yield
        finally:
            if folder.is_dir() and [each.name for each in folder.iterdir()] == ["lock"]:
                (folder / "lock").unlink()
                for each in created:
                    with suppress(OSError):
                        each.rmdir()
