"""How the process of a command exits, alone and under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

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


PRINTS = """
import sys
from robustill.cli.exit import exiting_at_once_under_torchrun, reporting_errors
from robustill.cli.terminal import escaped_output
with escaped_output(), exiting_at_once_under_torchrun(), reporting_errors():
    print("52.1\\u00a0% \\u00b1 1, \\u22123, l\\u221e \\u2502")
    {then}
"""


def _run(program: str, stdout: IO[bytes] | int, **environment: str) -> tuple[int, str, str]:
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    return result.returncode, (result.stdout or b"").decode(), result.stderr.decode()


def test_characters_that_a_terminal_lacks_are_replaced() -> None:
    program = PRINTS.format(then="print(chr(8722), file=sys.stderr)")
    assert _run(program, subprocess.PIPE, PYTHONIOENCODING="ascii") == (0, "52.1 % +/- 1, -3, linf \\u2502\n", "-\n")


def test_a_reader_that_ends_is_one_line() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        code, _, err = _run(PRINTS.format(then="print('x' * 100_000)"), closed)
    assert (code, err.count("\n")) == (141, 1)
    assert err == "robustill: the program that reads the output has ended; the rest is not printed\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        code, _, err = _run(PRINTS.format(then="pass"), full)
    assert (code, err) == (2, "robustill: No space left on device\n")


def test_a_missing_package_is_one_line() -> None:
    then = "sys.modules['PIL'] = None; import PIL"
    code, shown, error = _run(PRINTS.format(then=then), subprocess.PIPE)
    assert (code, error) == (2, "robustill: this command needs pillow, which is not installed: pip install pillow\n")
    assert shown


def test_a_missing_module_of_the_package_itself_is_a_traceback() -> None:
    code, _, error = _run(PRINTS.format(then="import robustill.nothing"), subprocess.PIPE)
    assert code == 1
    assert error.splitlines()[-1] == "ModuleNotFoundError: No module named 'robustill.nothing'"
