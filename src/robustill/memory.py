"""When the memory is too small: how many images at a time would fit, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from robustill.errors import RunError

_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no room; libraries say so by errors of several kinds."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def fitting(attempt: Callable[[int], None], images: int) -> int | None:
    """The first of images/2, images/4 ... for which an attempt has room; None if not even one image has.

    What ran out of memory must not be held any more, not even by the traceback of its error.

    Args:
        attempt: does the work with so many images.
        images: that did not fit.

    Example:
        >>> def attempt(images):
        ...     if images > 40:
        ...         raise MemoryError
        >>> fitting(attempt, 128)
        32
    """
    while images > 1:
        images //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if _has_room(attempt, images):
            return images
    return None


@contextmanager
def named(what_fits: Callable[[], str]) -> Iterator[None]:
    """Inside the block an error for want of memory becomes one line.

    Args:
        what_fits: the line; called when nothing of the block is held any more.

    Raises:
        RunError: with that line.
    """
    full = False
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        full = True
    if full:
        raise RunError(f"out of memory: {what_fits()}")


def _has_room(attempt: Callable[[int], None], images: int) -> bool:
    try:
        attempt(images)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def advice(fit: int | None, way: str) -> str:
    """How an error line ends."""
    if fit is None:
        return "not even one image at a time has room: take a smaller network, or a device with more memory"
    return f"{fit} at a time fit, found by halving: {way}"
