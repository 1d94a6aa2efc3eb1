"""What a process settles before it computes."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest
import torch

from robustill import runtime
from robustill.config import make_config

FAULTS = """
import resource, sys, torch
from robustill.config import make_config
from robustill.runtime import settle
settle(make_config({"compute": {"device": "cpu", "threads": 1, "keep_memory": sys.argv[1] == "yes"}}).compute)
for number in range(12):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(2**24) for _ in range(4)]  # 4 times 64 MiB, all of it written
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, keep], capture_output=True, text=True, check=True)
    return int(done.stdout)


def glibc() -> tuple[int, ...]:
    name, version = platform.libc_ver()
    return tuple(map(int, version.split("."))) if name == "glibc" else ()


@pytest.mark.skipif(glibc() < (2, 34), reason="another C library has its own ways, an older glibc keeps 32 MiB at most")
def test_freed_memory_is_not_mapped_anew():
    # Ten rounds of 65,536 pages of 4 kB, in tensors larger than glibc ever learns to keep by itself (32 MiB); the heap
    # may still grow by a few of them.
    assert 4 * faults("yes") < faults("no")


def test_where_the_c_library_takes_no_such_order_nothing_happens(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert runtime.keep_freed_memory() is False


def test_an_older_library_that_allows_less_is_given_less(monkeypatch):
    asked = []

    class Library:
        @staticmethod
        def mallopt(what: int, value: int) -> int:
            asked.append((what, value))
            return int(value <= 2**25)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    assert runtime.keep_freed_memory() is True
    assert asked == [(-3, 2**30), (-3, 2**25), (-1, -1)]


def test_threads_and_device_are_taken_over(monkeypatch):
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: pytest.fail("not asked for"))
    before = torch.get_num_threads()
    try:
        compute = make_config({"compute": {"device": "cpu", "threads": 2, "keep_memory": False}}).compute
        assert runtime.settle(compute) == torch.device("cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
