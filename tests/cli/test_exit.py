"""How the process of a command exits, alone and under torchrun."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
from robustill.cli.exit import exiting_at_once_under_torchrun
atexit.register(print, "shut down")
with exiting_at_once_under_torchrun():
    print("done")
    {how}
"""


@pytest.mark.parametrize(
    ("how", "processes", "code", "shown"),
    [
        ("pass", "2", 0, "done"),
        ("sys.exit(0)", "2", 0, "done"),
        ("sys.exit(2)", "2", 2, "done\nshut down"),
        ("raise ValueError", "2", 1, "done\nshut down"),
        ("pass", "1", 0, "done\nshut down"),
        ("sys.exit()", "1", 0, "done\nshut down"),
    ],
)
def test_only_a_successful_process_of_torchrun_exits_at_once(how: str, processes: str, code: int, shown: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(how=how)]
    environment = {**os.environ, "WORLD_SIZE": processes}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert (result.returncode, result.stdout.strip()) == (code, shown), result.stderr
