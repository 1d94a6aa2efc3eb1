import sys
import threading
import time
import traceback

import pytest

from robustill.core.errors import DataError
from robustill.data.loader import prefetched


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """On a busy machine a thread may take long to end."""
    monkeypatch.setattr("robustill.data.loader._GRACE", 600.0)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_same_items_in_order():
    assert list(prefetched(iter(range(50)), depth=3)) == list(range(50))
    assert list(prefetched(iter([]))) == []
    assert list(prefetched(iter([None, ValueError]))) == [None, ValueError]
    assert threads() == []


def test_an_error_comes_after_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise OSError("no such image")

    items = prefetched(source())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="no such image"):
        next(items)
    assert threads() == []


def test_leaving_early_ends_the_thread():
    items = prefetched(iter(range(10**9)), depth=2)
    assert next(items) == 0
    assert len(threads()) == 1
    items.close()
    assert threads() == []


def test_works_ahead_by_depth_and_no_further():
    taken = []

    def source():
        for number in range(100):
            taken.append(number)
            yield number

    items = prefetched(source(), depth=2)
    next(items)
    deadline = time.monotonic() + 600
    while len(taken) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    # One handed over, two ready, one waiting for a place.
    assert taken == [0, 1, 2, 3]
    items.close()
    assert taken == [0, 1, 2, 3]


def test_a_source_that_hangs_ends_the_loop_and_says_where(monkeypatch):
    released = threading.Event()

    def stalled():
        yield 1
        released.wait(600)

    items = prefetched(stalled())
    assert next(items) == 1
    # Patience is short only once the thread has come to where it hangs.
    (thread,) = threads()
    deadline = time.monotonic() + 600
    while traceback.extract_stack(sys._current_frames()[thread.ident])[-1].name != "wait":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    monkeypatch.setattr("robustill.data.loader.PATIENCE", 0.2)
    monkeypatch.setattr("robustill.data.loader._GRACE", 0.1)
    with pytest.raises(DataError, match=r"no images came for 0\.2 seconds: the thread prefetch, in wait of threading"):
        next(items)
    released.set()
    thread.join()
