"""The progress of long work: the expected time, a bar with what is left on a terminal, an occasional line in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from robustill.core.errors import printable
from robustill.core.formatting import clock

LONG_WAIT = 5.0
"""Seconds from which on the user is told how long to wait."""


def announce(label: str, seconds: float, note: str = "") -> None:
    """Print how long work is expected to take, in one line before it begins; nothing of a few seconds.

    Args:
        label: the name of the work.
        seconds: the estimate.
        note: on what it depends.
    """
    if seconds >= LONG_WAIT:
        condition = f", {note}" if note else ""
        print(printable(f"{label}: about {clock(seconds)} on this machine{condition}"), file=sys.stderr, flush=True)


class Progress:
    """A progress display that counts units of work towards a total.

    Args:
        label: the name of the work.
        total: the number of units of work.
        done: the number of units that an earlier process did.
        unit: the name of the units, in the plural.
        shown: whether to print anything.
        delay: seconds before anything is printed, unless it is clear by then that the work takes longer; work that ends
            sooner prints nothing.

    Example:
        ``with Progress("training", total=100, unit="images") as progress: progress.advance(10, "robust 0.41")``
    """

    # Seconds between two updates.
    _terminal_interval = 0.1
    _log_interval = 15.0
    # A log says how long to wait as soon as so many seconds have shown that so many are left.
    _first_log = 0.5

    def __init__(
        self, label: str, *, total: int, unit: str, done: int = 0, shown: bool = True, delay: float = 0.0
    ) -> None:
        self.label, self.total, self.unit, self.shown, self.delay = printable(label), total, unit, shown, delay
        self.done = done
        self._done_at_start = done
        self.note = ""
        self._start = time.monotonic()
        self._last_written = self._start
        self._terminal = sys.stderr.isatty()
        self._width = 0
        self._done_when_written = -1

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_short = self._done_when_written < 0 and time.monotonic() - self._start < self.delay
        # In a log, the last line may already show the final state.
        if self.shown and not is_short and (self._terminal or self._done_when_written != self.done):
            self._write(final=True)

    def advance(self, units: int, note: str | None = None) -> None:
        """Count more units as done; `note` replaces the text at the end of the line."""
        self.done += units
        if note is not None:
            self.note = note
        now = time.monotonic()
        elapsed, is_long = now - self._start, self._seconds_left(now) >= LONG_WAIT
        is_first = not self._terminal and self._done_when_written < 0 and elapsed >= self._first_log and is_long
        interval = self._terminal_interval if self._terminal else self._log_interval
        is_due = is_first or now - self._last_written >= interval
        if self.shown and is_due and (is_long or elapsed >= self.delay):
            self._last_written = now
            self._write()

    def _seconds_left(self, now: float) -> float:
        """Return an estimate of the seconds that are left; 0 before anything is done."""
        done = self.done - self._done_at_start
        return (self.total - self.done) * (now - self._start) / done if done > 0 else 0.0

    def stop(self, note: str) -> None:
        """Count the work as complete although units are left, as after early stopping."""
        self.total, self.note = self.done, note

    def line(self) -> str:
        """Return the state in one line: share done, rate, remaining time, note."""
        elapsed = time.monotonic() - self._start
        rate = (self.done - self._done_at_start) / elapsed if elapsed > 0 else 0.0
        share = self.done / self.total if self.total else 1.0
        if self.done >= self.total:
            time_text = clock(elapsed)
        elif rate > 0:
            remaining = clock((self.total - self.done) / rate)
            time_text = f"{remaining} left"
        else:
            time_text = "estimating"
        parts = [f"{self.label} {share:4.0%}", f"{rate:,.0f} {self.unit}/s", time_text, self.note]
        return " · ".join(part for part in parts if part)

    def _write(self, final: bool = False) -> None:
        text = self.line()
        self._done_when_written = self.done
        if not self._terminal:
            print(text, file=sys.stderr, flush=True)
            return
        filled = round(20 * min(self.done / max(self.total, 1), 1.0))
        bar = "━" * filled + "─" * (20 - filled)
        text = f"{bar} {text}"
        # Spaces overwrite what is left of a longer line.
        padding = " " * max(self._width - len(text), 0)
        self._width = len(text)
        print(f"\r{text}{padding}", end="\n" if final else "", file=sys.stderr, flush=True)
