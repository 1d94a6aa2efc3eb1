"""Progress of long work: a bar with the time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from robustill.core.errors import printable
from robustill.core.formatting import clock


class Progress:
    """Counts units of work towards a total.

    Args:
        label: what is being done.
        total: units of work in all.
        done: units that an earlier process did.
        unit: what is counted, in the plural.
        shown: False is silent.

    Example:
        ``with Progress("training", total=100, unit="images") as progress: progress.advance(10, "robust 0.41")``
    """

    _log_every = 15.0

    def __init__(self, label: str, *, total: int, unit: str, done: int = 0, shown: bool = True) -> None:
        self.label, self.total, self.unit, self.shown = printable(label), total, unit, shown
        self.done = self._at_start = done
        self.note = ""
        self._began = time.monotonic()
        self._last = self._began
        self._terminal = sys.stderr.isatty()
        self._width = 0
        self._written = -1

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # In a log the last line may already say it all.
        if self.shown and (self._terminal or self._written != self.done):
            self._write(final=True)

    def advance(self, units: int, note: str | None = None) -> None:
        """Some more units are done; `note` replaces the words at the end of the line."""
        self.done += units
        if note is not None:
            self.note = note
        now = time.monotonic()
        if self.shown and now - self._last >= (0.1 if self._terminal else self._log_every):
            self._last = now
            self._write()

    def stop(self, note: str) -> None:
        """What is left will not be done, and that is as it should be."""
        self.total, self.note = self.done, note

    def line(self) -> str:
        """The state in one line: share, rate, time left, note."""
        elapsed = time.monotonic() - self._began
        rate = (self.done - self._at_start) / elapsed if elapsed > 0 else 0.0
        share = self.done / self.total if self.total else 1.0
        if self.done < self.total:
            left = f"{clock((self.total - self.done) / rate)} left" if rate > 0 else "estimating"
        else:
            left = clock(elapsed)
        parts = [f"{self.label} {share:4.0%}", f"{rate:,.0f} {self.unit}/s", left, self.note]
        return " · ".join(part for part in parts if part)

    def _write(self, final: bool = False) -> None:
        text = self.line()
        self._written = self.done
        if not self._terminal:
            print(text, file=sys.stderr, flush=True)
            return
        filled = round(20 * min(self.done / max(self.total, 1), 1.0))
        text = f"{'━' * filled}{'─' * (20 - filled)} {text}"
        padding = " " * max(self._width - len(text), 0)
        self._width = len(text)
        print(f"\r{text}{padding}", end="\n" if final else "", file=sys.stderr, flush=True)
