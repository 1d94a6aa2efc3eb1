"""Studies whose jobs run one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from robustill.studies.job import Job, run_job


class SameProcess:
    """Runs the jobs of a study one after the other in this process."""

    workers = 1

    def __init__(self) -> None:
        self.ended: dict[str, str | None] = {}

    def start(self, name: str, job: Job) -> None:
        self.ended[name] = run_job(job)

    def wait(self, seconds: float) -> dict[str, str | None]:
        ended, self.ended = self.ended, {}
        return ended

    def stop(self) -> None:
        pass


@contextmanager
def same_process(*_: Any) -> Iterator[SameProcess]:
    """Take the place of `started_engine`."""
    yield SameProcess()
