"""The device and the settings of a process."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest
import torch

from robustill.config.schema import make_config
from robustill.core import device

ROUNDS = 10
FAULTS = """
import resource, sys, torch
from robustill.config.schema import make_config
from robustill.core.device import configure_process
keep_memory = sys.argv[1] == "yes"
configure_process(make_config({"compute": {"device": "cpu", "threads": 1, "keep_memory": keep_memory}}).compute)
size, rounds = int(sys.argv[2]), int(sys.argv[3])
for number in range(2 + rounds):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(size // 4) for _ in range(2**27 // size)]  # 128 MiB, all of it written
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: str, size: int) -> int:
    command = [sys.executable, "-c", FAULTS, keep, str(size), str(ROUNDS)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has its own ways")
def test_freed_memory_is_kept():
    pages = ROUNDS * 2**27 // 4096
    # The heap may still grow by a tensor or two.
    assert 10 * faults("yes", 2**24) < pages
    # By default glibc adapts to keep blocks below about 32 MiB, and keeps no larger ones.
    assert faults("no", 2**26) >= pages


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
