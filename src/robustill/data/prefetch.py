"""Work of an iterator done ahead of its consumer, in a background thread."""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from robustill.errors import DataError

PATIENCE = 300.0
"""Seconds without an item after which its source counts as hanging."""
_GRACE = 5.0

T = TypeVar("T")


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


def prefetched(source: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, up to `depth` of them ready before they are asked for.

    An error in `source` is raised at the item it belongs to; when the consumer leaves early, the thread ends with it.

    Raises:
        DataError: no item came for PATIENCE seconds; it says where the thread hangs.
    """
    ready: queue.Queue[_Item[T] | BaseException | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: _Item[T] | BaseException | None) -> bool:
        # A plain put could wait for ever for a consumer that has left.
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for value in source:
                if not put(_Item(value)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            try:
                entry = ready.get(timeout=PATIENCE)
            except queue.Empty:
                raise DataError(
                    f"no images came for {PATIENCE:g} seconds: {_place(thread)} hangs; look at the disk or the "
                    "network that they are read from, and repeat the command"
                ) from None
            if entry is None:
                return
            if isinstance(entry, BaseException):
                raise entry
            yield entry.value
    finally:
        stopped.set()
        # One that hangs ends with the process.
        thread.join(_GRACE)


def _place(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return f"the thread {thread.name}"
    (*_, last) = traceback.extract_stack(frame)
    return f"the thread {thread.name}, in {last.name} of {Path(last.filename).name} line {last.lineno},"
