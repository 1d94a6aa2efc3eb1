"""Where the numbers are computed: device and threads; and a record of it."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Protocol

import torch

from robustill.core.errors import ConfigError, RunError

# Of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_DEVICES = ("cpu", "cuda", "mps", "xpu")


def pick_device(name: str) -> torch.device:
    """A device by name; "auto" is the first GPU, or the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = name.partition(":")[0]
    if kind not in _DEVICES:
        raise ConfigError(f"device {name!r} is unknown: expected auto, {', '.join(_DEVICES)}, or e.g. cuda:1")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here ({reason}): take another, or auto") from None
    return device


class ProcessSettings(Protocol):
    """The settings of a process that computes, such as the group `compute` of a configuration."""

    @property
    def device(self) -> str:
        """The name of a device, as `pick_device` takes it."""

    @property
    def threads(self) -> int | None:
        """The number of threads of torch on the CPU; None leaves it unchanged."""

    @property
    def keep_memory(self) -> bool:
        """Whether freed memory is kept for the next step, see `keep_freed_memory`."""


def configure_process(settings: ProcessSettings) -> torch.device:
    """Apply settings to this process and return the device to compute on.

    Raises:
        ConfigError: the device does not exist here.
    """
    device = pick_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.keep_memory:
        keep_freed_memory()
    return device


def keep_freed_memory() -> bool:
    """Freed memory stays with this process for its next step; whether the C library here takes that order (glibc does).

    By default glibc gives every large activation back to the system when it is freed. The next one is then made of new
    pages, each of which the system has to clear and to map: up to a quarter of a step on a CPU (docs/results.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # What glibc before 2.34 lets grow with the heap is 32 MiB at most.
    grows = mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)
    return bool(grows and mallopt(_TRIM_THRESHOLD, -1))


def environment() -> dict[str, Any]:
    """Versions and hardware, as they belong beside every number.

    Returns:
        JSON-able: versions of Python and of the libraries that matter, processor, threads, GPU if there is one.
    """
    packages = ("robustill", "torch", "numpy", "scikit-learn", "pydantic", "safetensors")
    return {
        "format": 1,
        "python": sys.version.split()[0],
        # Without the name of whose build of the kernel it is.
        "platform": "-".join([platform.system(), platform.release().partition("-")[0], "".join(platform.libc_ver())]),
        "versions": {name: installed_version(name) for name in packages},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def installed_version(package: str) -> str | None:
    """The version of a package that is installed; None for others."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {capability}"


_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no room; libraries say so by errors of several kinds."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def largest_fitting_batch(attempt: Callable[[int], None], images: int) -> int | None:
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
def explaining_out_of_memory(what_fits: Callable[[], str]) -> Iterator[None]:
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


def out_of_memory_advice(fit: int | None, way: str) -> str:
    """How an error line ends."""
    if fit is None:
        return "not even one image at a time has room: take a smaller network, or a device with more memory"
    return f"{fit} at a time fit, found by halving: {way}"
