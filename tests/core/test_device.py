"""The device and the settings of a process."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch

from robustill.config.schema import make_config
from robustill.core import device

# Prints the number of blocks that the allocator maps one by one, and the growth of its heap in bytes: while the blocks
# are in use, and after they are freed.
ALLOCATIONS = """
import ctypes, sys
from robustill.config.schema import make_config
from robustill.core.device import configure_process

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_int) for name in names.split()]

c = ctypes.CDLL(None)
c.mallinfo.restype = Info
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
settings = {"device": "cpu", "threads": 1, "keep_memory": sys.argv[1] == "yes"}
configure_process(make_config({"compute": settings}).compute)
before = c.mallinfo()
pieces = [c.malloc(2**28 // int(sys.argv[2])) for _ in range(int(sys.argv[2]))]
during = c.mallinfo()
for piece in pieces:
    c.free(piece)
after = c.mallinfo()
print(*(now.hblks - before.hblks for now in (during, after)), *(now.arena - before.arena for now in (during, after)))
"""


def count_allocations(keep: str, blocks: int) -> list[int]:
    """Allocate and free 256 MiB in equal blocks; return mapped blocks and the growth of the heap, during and after."""
    # No setting of the environment changes or replaces the allocator.
    settings = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    command = [sys.executable, "-c", ALLOCATIONS, keep, str(blocks)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return [int(word) for word in output.split()]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has its own ways")
def test_freed_memory_is_kept():
    # glibc before 2.34 keeps blocks of at most 32 MiB.
    held, freed, grown, kept = count_allocations("yes", blocks=16)
    assert (held, freed) == (0, 0)
    assert kept >= grown > 2**27
    # By default it keeps no block that is larger.
    held, freed, *_ = count_allocations("no", blocks=4)
    assert (held, freed) == (4, 0)


def test_without_mallopt_memory_is_not_kept(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert device.keep_freed_memory() is False


def test_an_older_glibc_gets_a_smaller_threshold(monkeypatch):
    calls = []

    class Library:
        @staticmethod
        def mallopt(what: int, value: int) -> int:
            calls.append((what, value))
            return int(value <= 2**25)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    assert device.keep_freed_memory() is True
    assert calls == [(-3, 2**30), (-3, 2**25), (-1, -1)]


def test_a_process_gets_its_threads_and_device(monkeypatch):
    monkeypatch.setattr(device, "keep_freed_memory", lambda: pytest.fail("not set"))
    before = torch.get_num_threads()
    try:
        compute = make_config({"compute": {"device": "cpu", "threads": 2, "keep_memory": False}}).compute
        assert device.configure_process(compute) == torch.device("cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
