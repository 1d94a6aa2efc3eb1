"""Work of an iterator done ahead of its consumer, in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


def prefetched(source: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, up to `depth` of them ready before they are asked for.

    An error in `source` is raised at the item it belongs to; when the consumer leaves early, the thread ends with it.
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
            entry = ready.get()
            if entry is None:
                return
            if isinstance(entry, BaseException):
                raise entry
            yield entry.value
    finally:
        stopped.set()
        thread.join()
