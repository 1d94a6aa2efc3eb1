"""A module in the place of Ray: a cluster of given resources, whose tasks run in this process when waited for."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any


class FakeRay(ModuleType):
    """A cluster that reserves resources for its tasks, and loses the process of some.

    Args:
        resources: of the whole cluster.
        losses: how many attempts at a task lose their process, by the name of the task's run.
    """

    def __init__(self, resources: dict[str, float], losses: dict[str, int] | None = None) -> None:
        super().__init__("ray")
        self.exceptions = SimpleNamespace(RayError=type("RayError", (Exception,), {}))
        self.resources = resources
        self.losses = dict(losses or {})
        self.settings: dict[str, Any] | None = None
        self.options: dict[str, Any] = {}
        self.queued: dict[int, Any] = {}
        self.ended: dict[int, Any] = {}
        self.cancelled: list[int] = []
        # The number of the tasks that had their resources at the same time, whenever the engine waited.
        self.at_a_time: list[int] = []

    def init(self, **settings: Any) -> None:
        self.settings = settings

    def shutdown(self) -> None:
        self.settings = None

    def cluster_resources(self) -> dict[str, float]:
        assert self.settings is not None, "asked before ray.init"
        return self.resources

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        self.options = options

        def decorate(function: Callable[[Any], Any]) -> Any:
            return SimpleNamespace(remote=lambda job: self._queue(function, job))

        return decorate

    def _queue(self, function: Callable[[Any], Any], job: Any) -> int:
        reference = len(self.queued) + len(self.ended) + 1000
        self.queued[reference] = (function, job)
        return reference

    def wait(self, references: list[int], timeout: float) -> tuple[list[int], list[int]]:
        needed = {"CPU": self.options["num_cpus"], "GPU": self.options["num_gpus"]}
        room = min(int(self.resources.get(key, 0) / value) for key, value in needed.items() if value)
        at_work = references[:room]
        self.at_a_time.append(len(at_work))
        self.ended[at_work[0]] = self._run(*self.queued.pop(at_work[0]))
        return at_work[:1], references[1:]

    def _run(self, function: Callable[[Any], Any], job: Any) -> Any:
        for _ in range(1 + self.options["max_retries"]):
            name = job if isinstance(job, str) else job.run.rpartition("/")[2]
            if self.losses.get(name, 0) == 0:
                return function(job)
            self.losses[name] -= 1
        return self.exceptions.RayError("The worker died\nunexpectedly.")

    def get(self, reference: int) -> Any:
        found = self.ended[reference]
        if isinstance(found, Exception):
            raise found
        return found

    def cancel(self, reference: int, force: bool) -> None:
        self.cancelled.append(reference)
