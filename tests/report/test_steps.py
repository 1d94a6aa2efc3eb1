import subprocess
import sys

import pytest

from robustill.report import steps as module
from robustill.report.steps import Steps


class Clock:
    """A clock that the test sets."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def work(steps, clock, seconds):
    for _ in steps.over(range(4), "reading runs", "runs"):
        clock.now += seconds


def test_short_work_prints_nothing(clock, capsys):
    work(Steps(shown=True), clock, 0.5)
    assert capsys.readouterr() == ("", "")


def test_work_of_more_than_two_seconds_is_shown_on_stderr(clock, capsys):
    steps = Steps(shown=True)
    work(steps, clock, 0.5)
    work(steps, clock, 0.1)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("reading runs 100%") == 1


def test_progress_can_be_turned_off(clock, capsys):
    work(Steps(shown=False), clock, 10)
    assert capsys.readouterr() == ("", "")


def test_all_parts_are_passed_on(clock):
    assert list(Steps(shown=True).over("abc", "work", "letters")) == ["a", "b", "c"]


def test_a_page_is_made_without_torch():
    """Importing torch takes longer than making a small page."""
    program = "import robustill.report, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
