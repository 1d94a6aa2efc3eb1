"""SIGINT and SIGTERM, by which schedulers pre-empt, end a command within seconds, with what it has done on disk."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 5.0
"""Seconds in which work that was asked to stop may come to its next boundary."""

_AGAIN = 1.0
_SOON = 0.05


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end.

    Args:
        number: of the signal.
        said: what is kept, and how to go on.
    """

    def __init__(self, number: int, said: str = "nothing finished is lost; the same command goes on") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {said}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """As shells count it: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + self.number


@contextmanager
def raised() -> Iterator[None]:
    """Inside the block either signal raises `Interrupted`, wherever the main thread is, but for an import.

    Compiled modules that are being loaded lose an exception or abort the process: the end of an import that began in
    the block is waited for, up to PATIENCE.
    """
    outside, until = _imports(sys._getframe()), 0.0

    def raise_(number: int, frame: FrameType | None) -> None:
        nonlocal until
        until = until or time.monotonic() + PATIENCE
        if _imports(frame) == outside or time.monotonic() >= until:
            raise Interrupted(number)
        again = threading.Timer(_SOON, signal.pthread_kill, (threading.get_ident(), number))
        # It keeps no process that is ending.
        again.daemon = True
        again.start()

    with _handled(raise_):
        yield


class Stop:
    """Inside the block the first signal only asks: work that looks at `asked` ends at its next boundary.

    A second signal, or no boundary within PATIENCE, raises `Interrupted` where the main thread is; while something is
    saved, only a second signal does. In other threads, which get no signals, nothing is ever asked.

    Args:
        at_once: the first signal raises already.

    Example:
        >>> with Stop() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     print(stop.asked)
        15
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self.asked: int | None = None
        self._saves = False

    def __enter__(self) -> Stop:
        self._block = _handled(self._ask)
        self._block.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.asked is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._alarm)
        self._block.__exit__(None, None, None)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Inside the block there is no haste."""
        self._saves = True
        try:
            yield
        finally:
            self._saves = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.at_once or self.asked is not None:
            raise Interrupted(number)
        self.asked = number
        self._alarm = signal.signal(signal.SIGALRM, self._raise)
        # Again and again: an exception inside of a finaliser is lost.
        signal.setitimer(signal.ITIMER_REAL, PATIENCE, _AGAIN)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        assert self.asked is not None
        if not self._saves:
            raise Interrupted(self.asked)


def _imports(frame: FrameType | None) -> int:
    """How many frames of a stack are of the import system."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    return count


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            # Whoever ignores one, as a study's workers do their terminal's, goes on to.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, each in before.items():
            signal.signal(number, each)
