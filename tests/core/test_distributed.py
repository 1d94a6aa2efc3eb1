"""What the other processes say when one process of a group ends."""

from __future__ import annotations

from datetime import timedelta

import pytest
from torch import distributed

from robustill.core.distributed import torchrun_group
from robustill.core.errors import RunError

CLOSED = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3432"
TIMEOUT = "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation"


@pytest.mark.parametrize(
    ("lost", "what"),
    [
        (RuntimeError(CLOSED), "has ended: see its message"),
        (distributed.DistNetworkError("gone"), "has ended: see its message"),
        (RuntimeError(TIMEOUT), "has not answered for 7 days"),
    ],
)
def test_a_lost_process_is_one_line_on_the_others(
    lost: RuntimeError, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, timeout: None)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    with pytest.raises(RunError, match=f"another process of this command {what}"), torchrun_group():
        raise lost
    with pytest.raises(RuntimeError, match="a bug"), torchrun_group():
        raise RuntimeError("a bug")


def test_processes_wait_for_the_last_part_of_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[timedelta] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, timeout: given.append(timeout))
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    with torchrun_group():
        assert given[0] > timedelta(days=1)
