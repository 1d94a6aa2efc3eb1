"""One process at a time: locks that the system takes back when their process ends, however it ends."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from robustill.errors import RunError

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def only_one(file: Path, refusal: str) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is missing, and stays.

    Args:
        file: in a folder that is there.
        refusal: said where another process holds it.

    Raises:
        RunError: another process does.
    """
    import fcntl

    with file.open("w") as handle:
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


@contextmanager
def only_one_in(folder: Path, refusal: str) -> Iterator[None]:
    """As `only_one`, for a folder that comes into being for the work and may be removed by whoever works in it.

    If nothing else is in it in the end, it goes as it came.

    Raises:
        RunError: another process holds it.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder / "lock", refusal):
        try:
            yield
        finally:
            if folder.is_dir() and [each.name for each in folder.iterdir()] == ["lock"]:
                (folder / "lock").unlink()
                for each in made:
                    with suppress(OSError):
                        each.rmdir()
