"""What the other processes say when one process of a group ends."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from torch import distributed

from robustill.cli.app import app
from robustill.core.distributed import torchrun_group
from robustill.core.errors import RobustillError, RunError

CLOSED = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3432"
TIMEOUT = "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation"


@pytest.mark.parametrize(
    ("lost", "what"),
    [
        (RuntimeError(CLOSED), "has ended: see its message"),
        (distributed.DistNetworkError("gone"), "has ended: see its message"),
        (RuntimeError(TIMEOUT), "has not answered in time"),
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


def test_an_evaluation_waits_longer_for_a_process_than_a_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[timedelta | None] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, timeout: given.append(timeout))
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    missing = str(tmp_path / "missing")
    for words in (["evaluate", missing], ["train", f"{missing}.yaml", "--run", missing]):
        with pytest.raises((SystemExit, RobustillError)):
            app(words)
    assert given[0] is not None
    assert given[0] > timedelta(days=1)
    # torch's own.
    assert given[1:] == [None]
