"""Ways in which a file can be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest


def truncated(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def bit_flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    # A digit somewhere in the middle becomes another digit: the damage that parses.
    middle = sorted(range(len(content)), key=lambda at: abs(at - len(content) // 2))
    at = next((each for each in middle if chr(content[each]).isdigit()), len(content) // 2)
    content[at] ^= 1
    file.write_bytes(content)


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def deleted(file: Path) -> None:
    file.unlink()


SLOW = pytest.mark.slow
DAMAGES = (bit_flipped, deleted, pytest.param(truncated, marks=SLOW), pytest.param(emptied, marks=SLOW))
