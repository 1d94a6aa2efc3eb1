"""How a process that torchrun started ends."""

import os
import subprocess
import sys

import pytest

ENDING = """
import atexit, sys
from robustill.cli.exit import at_once_among_several
atexit.register(print, "taken apart")
with at_once_among_several():
    print("done")
    {how}
"""


@pytest.mark.parametrize(
    ("how", "processes", "code", "shown"),
    [
        ("pass", "2", 0, "done"),
        ("sys.exit(0)", "2", 0, "done"),
        ("sys.exit(2)", "2", 2, "done\ntaken apart"),
        ("raise ValueError", "2", 1, "done\ntaken apart"),
        ("pass", "1", 0, "done\ntaken apart"),
        ("sys.exit()", "1", 0, "done\ntaken apart"),
    ],
)
def test_only_one_of_several_that_succeeded_ends_at_once(how: str, processes: str, code: int, shown: str) -> None:
    command = [sys.executable, "-c", ENDING.format(how=how)]
    environment = {**os.environ, "WORLD_SIZE": processes}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (code, shown), ended.stderr
