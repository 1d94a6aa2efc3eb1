"""What a process settles before it computes."""

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

# What the allocator itself says: how many pieces of memory are mapped each for itself, and the bytes of the heap.
LOOK = """
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


def looked_at(keep: str, pieces: int) -> list[int]:
    """Of 256 MiB in so many pieces, held and then freed: what is mapped for itself, and what the heap is larger by."""
    # Nothing from outside tells the allocator what to do, or takes its place.
    told = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(told)}
    command = [sys.executable, "-c", LOOK, keep, str(pieces)]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return [int(word) for word in shown.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has its own ways")
def test_freed_memory_stays_with_the_process():
    # glibc before 2.34 can be told to keep pieces of up to 32 MiB.
    held, freed, grown, kept = looked_at("yes", pieces=16)
    assert (held, freed) == (0, 0)
    assert kept >= grown > 2**27
    # By itself it keeps no piece that is larger.
    held, freed, *_ = looked_at("no", pieces=4)
    assert (held, freed) == (4, 0)


def test_where_the_c_library_takes_no_such_order_nothing_happens(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert device.keep_freed_memory() is False


def test_an_older_library_that_allows_less_is_given_less(monkeypatch):
    asked = []

    class Library:
        @staticmethod
        def mallopt(what: int, value: int) -> int:
            asked.append((what, value))
            return int(value <= 2**25)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    assert device.keep_freed_memory() is True
    assert asked == [(-3, 2**30), (-3, 2**25), (-1, -1)]


def test_threads_and_device_are_taken_over(monkeypatch):
    monkeypatch.setattr(device, "keep_freed_memory", lambda: pytest.fail("not asked for"))
    before = torch.get_num_threads()
    try:
        compute = make_config({"compute": {"device": "cpu", "threads": 2, "keep_memory": False}}).compute
        assert device.configure_process(compute) == torch.device("cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
