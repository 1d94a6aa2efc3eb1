"""SIGINT and SIGTERM, by which schedulers pre-empt, end a command within seconds and leave its work on disk."""

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
"""The time in seconds that work has to reach its next boundary after a first signal."""

# Seconds between two attempts to raise, after PATIENCE and during an import.
_RETRY = 1.0
_IMPORT_RETRY = 0.05


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end.

    Args:
        number: the number of the signal.
        explanation: what is on disk, and how to continue.
    """

    def __init__(self, number: int, explanation: str = "nothing finished is lost; the same command goes on") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {explanation}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code by the convention of shells: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + self.number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` on either signal, wherever the main thread is, except inside an import.

    Compiled modules that are being loaded lose an exception or abort the process. The exception therefore waits for
    the end of an import that began inside the block, up to PATIENCE.
    """
    outer_imports = _count_import_frames(sys._getframe())
    deadline = 0.0

    def raise_(number: int, frame: FrameType | None) -> None:
        nonlocal deadline
        deadline = deadline or time.monotonic() + PATIENCE
        if _count_import_frames(frame) == outer_imports or time.monotonic() >= deadline:
            raise Interrupted(number)
        retry = threading.Timer(_IMPORT_RETRY, signal.pthread_kill, (threading.get_ident(), number))
        # The timer must not keep a process alive that is ending.
        retry.daemon = True
        retry.start()

    with _handling(raise_):
        yield


class Stop:
    """A block in which the first signal is only noted: work that reads `signal` ends at its next boundary.

    `Interrupted` is raised in the main thread on a second signal, or if no boundary is reached within PATIENCE; inside
    `saving`, on a second signal only. Other threads receive no signals: there `signal` stays None.

    Args:
        at_once: raise on the first signal already.

    Example:
        >>> with Stop() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     print(stop.signal)
        15
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self.signal: int | None = None
        self._saving = False

    def __enter__(self) -> Stop:
        self._handling = _handling(self._note)
        self._handling.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.signal is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._alarm_before)
        self._handling.__exit__(None, None, None)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Let the block finish however long it takes, unless a second signal arrives."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.at_once or self.signal is not None:
            raise Interrupted(number)
        self.signal = number
        self._alarm_before = signal.signal(signal.SIGALRM, self._raise)
        # Repeated, because an exception that is raised inside a finaliser is lost.
        signal.setitimer(signal.ITIMER_REAL, PATIENCE, _RETRY)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        assert self.signal is not None
        if not self._saving:
            raise Interrupted(self.signal)


def _count_import_frames(frame: FrameType | None) -> int:
    """Return the number of frames of a stack that belong to the import system."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    return count


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle both signals by a function inside the block; signals that are ignored stay ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            # The workers of a study ignore SIGINT of their terminal.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
