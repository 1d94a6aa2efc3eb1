"""The device that computes: its choice and settings, a record of the environment, and running out of memory."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Protocol

import torch

from robustill.core.errors import ConfigError, RunError

# --- choice and settings

_DEVICES = ("cpu", "cuda", "mps", "xpu")
# Constants of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


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


def busy_lines(device: torch.device) -> list[str]:
    """Return a line, in a list, if other work keeps the CPU so busy that several threads wait for one another."""
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    load = os.getloadavg()[0]
    if device.type != "cpu" or threads == 1 or load < 2 * cores:
        return []
    return [f"{cores} cores have work for {load:.0f}: --compute.threads 1 is then faster than {threads} threads"]


def pick_device(name: str) -> torch.device:
    """Return a device by name; "auto" is the first GPU, or the CPU if there is none.

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


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for this process; return whether it can (glibc can).

    By default glibc returns the memory of every large activation to the system when it is freed. The next activation
    then gets new pages, each of which the system has to clear and to map: up to a quarter of a step on a CPU
    (benchmarks/LOG.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # glibc before 2.34 accepts at most 32 MiB here.
    raised = mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)
    return bool(raised and mallopt(_TRIM_THRESHOLD, -1))


# --- the environment, recorded with every result

_PACKAGES = ("robustill", "torch", "numpy", "pydantic", "safetensors")


def environment(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return the versions and the hardware that a result depends on.

    Args:
        packages: those whose networks or optimizers are used, such as timm.

    Returns:
        JSON values: the versions of Python and of the libraries used, the processor, the threads, the GPU if there is
        one.
    """
    # Only the number of the kernel, without the name of its build.
    kernel = platform.release().partition("-")[0]
    return {
        "format": 1,
        "python": sys.version.split()[0],
        "platform": "-".join([platform.system(), kernel, "".join(platform.libc_ver())]),
        "versions": {name: installed_version(name) for name in (*_PACKAGES, *packages)},
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def installed_version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# --- running out of memory

_OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device or the host ran out of memory; libraries raise several types."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(text in message for text in _OUT_OF_MEMORY_TEXTS)


@contextmanager
def explaining_out_of_memory(explain: Callable[[], str]) -> Iterator[None]:
    """Turn an out-of-memory error of the block into a RunError of one line.

    Args:
        explain: returns the line; it is called when the objects of the block have been freed.

    Raises:
        RunError: the block ran out of memory.
    """
    out_of_memory = False
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        out_of_memory = True
    # Outside the except clause, whose traceback holds the tensors of the block.
    if out_of_memory:
        raise RunError(f"out of memory: {explain()}")


def largest_fitting_batch(attempt: Callable[[int], None], images: int) -> int | None:
    """Return the first of images/2, images/4 ... that fits into memory; None if not even one image fits.

    The objects of the attempt that ran out of memory must have been freed, including those that the traceback of its
    error refers to.

    Args:
        attempt: does the work with a given number of images.
        images: the number of images that did not fit.

    Example:
        >>> def attempt(images):
        ...     if images > 40:
        ...         raise MemoryError
        >>> largest_fitting_batch(attempt, 128)
        32
    """
    while images > 1:
        images //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if _fits(attempt, images):
            return images
    return None


def out_of_memory_advice(fitting: int | None, advice: str) -> str:
    """Return the end of an error message: how many images fit at a time, and what to do about it.

    Args:
        fitting: the number of images that fit, as `largest_fitting_batch` returns it.
        advice: what to do if at least one image fits.
    """
    if fitting is None:
        return "not even one image at a time has room: take a smaller network, or a device with more memory"
    return f"{fitting} at a time fit, found by halving: {advice}"


def _fits(attempt: Callable[[int], None], images: int) -> bool:
    try:
        attempt(images)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
