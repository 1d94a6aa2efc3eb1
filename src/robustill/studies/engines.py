"""Where the runs of a study are computed: processes of this machine, or tasks of Ray on one machine or many."""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol

from robustill.core.errors import ConfigError
from robustill.core.formatting import clock
from robustill.core.signals import Interrupted
from robustill.studies.job import Job, perform

EngineName = Literal["local", "ray"]
# Imported once, before the processes part ways; torch._dynamo is what the first optimizer would import, for seconds.
_PRELOADED = ["robustill.training.loop", "robustill.evaluation.targets", "robustill.studies.job", "torch._dynamo"]
_GRACE = 10.0
_STILL = 600.0
"""Seconds without any work of the processor, after which a job's process hangs: it is stopped, or waits for itself."""


def visible_gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


class Engine(Protocol):
    """Does jobs, each apart from the others: one that dies takes none with it."""

    workers: int
    """how many jobs at once"""

    def start(self, name: str, job: Job) -> None:
        """Begin a job; the caller keeps to `workers`."""

    def ended(self, seconds: float) -> dict[str, str | None]:
        """The jobs that ended since the last call, with None or what went wrong; waits at most so long for one."""

    def stop(self) -> None:
        """End what still runs; runs are whole on disk at any moment."""


@contextmanager
def engine(name: EngineName, workers: int | None, threads: int, gpu: bool) -> Iterator[Engine]:
    """An engine by name, stopped at the end.

    Args:
        name: "local" or "ray".
        workers: jobs at once; None is as many as there is room for.
        threads: of a job.
        gpu: whether a job takes one.
    """
    made: Engine = Ray(workers, threads, gpu) if name == "ray" else Local(workers or 1, gpu)
    try:
        yield made
    finally:
        made.stop()


class Local:
    """One process a job; all end with this one, however it ends.

    Args:
        workers: jobs at once.
        gpu: whether they take the GPUs in turn.
    """

    def __init__(self, workers: int, gpu: bool) -> None:
        self.workers = workers
        self.gpus = visible_gpus() if gpu else []
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(_PRELOADED)
        self.running: dict[str, tuple[BaseProcess, Connection, int]] = {}
        # What each process had worked at the last look, and for how long that has been all.
        self.still: dict[str, tuple[float | None, float]] = {}

    def start(self, name: str, job: Job) -> None:
        """Begin a job."""
        slot = min(set(range(self.workers)) - {slot for *_, slot in self.running.values()})
        ours, theirs = self.context.Pipe()
        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
        process = self.context.Process(target=_in_process, args=(job, theirs, gpu), name=name)
        process.start()
        theirs.close()
        self.running[name] = process, ours, slot

    def ended(self, seconds: float) -> dict[str, str | None]:
        """The jobs that ended, and those that had to be ended."""
        began = time.monotonic()
        multiprocessing.connection.wait([process.sentinel for process, *_ in self.running.values()], seconds)
        # A machine that slept in between has kept nobody waiting.
        waited = min(time.monotonic() - began, 2 * seconds)
        found: dict[str, str | None] = {}
        for name, (process, pipe, _) in list(self.running.items()):
            hangs = process.is_alive() and self._hangs(name, process, waited)
            if process.is_alive() and not hangs:
                continue
            if hangs:
                process.kill()
            process.join()
            try:
                found[name] = pipe.recv() if pipe.poll() else _died(process.exitcode)
            except EOFError:
                found[name] = _died(process.exitcode)
            if hangs:
                found[name] = f"its process did nothing at all for {clock(_STILL)} and was ended: it hung"
            pipe.close()
            del self.running[name]
            self.still.pop(name, None)
        return found

    def _hangs(self, name: str, process: BaseProcess, waited: float) -> bool:
        worked, (before, still) = _worked(process.pid), self.still.get(name, (None, 0.0))
        still = still + waited if worked is not None and worked == before else 0.0
        self.still[name] = worked, still
        return still >= _STILL

    def stop(self) -> None:
        """End what still runs."""
        for process, *_ in self.running.values():
            process.terminate()
        for process, pipe, _ in self.running.values():
            process.join(_GRACE)
            process.kill()
            process.join()
            pipe.close()
        self.running.clear()


def _in_process(job: Job, pipe: Connection, gpu: str | None) -> None:
    # An interrupt of the terminal reaches everyone: the study decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        outcome = perform(job)
    except Interrupted as interrupted:
        # The study ends: what the run has done is kept.
        sys.exit(interrupted.exit_code)
    with suppress(OSError):
        pipe.send(outcome)


def _end_with_parent(pipe: Connection) -> None:
    with suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)


def _worked(process: int | None) -> float | None:
    """Ticks of the processor that all threads of a process took; None where the system does not say."""
    try:
        # The name of the program, in parentheses, may hold anything.
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return float(words[11]) + float(words[12])
    except (OSError, IndexError, ValueError):
        return None


def _died(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed: most often for want of memory, then give fewer --workers"
    how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
    return f"its process ended with {how}"


class Ray:
    """One task a job, on a Ray of this machine, or on the cluster that RAY_ADDRESS names.

    Every machine needs the same folder for the runs, and this package.

    Args:
        workers: jobs at once; None is as many as the cluster has cores for.
        threads: of a job, reserved for it.
        gpu: whether one is reserved for a job.

    Raises:
        ConfigError: ray is not installed.
    """

    def __init__(self, workers: int | None, threads: int, gpu: bool) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise ConfigError("engine ray needs the extra `cluster`: pip install 'robustill[cluster]'") from None
        self.ray: Any = ray
        here: dict[str, Any] = {}
        if "RAY_ADDRESS" not in os.environ:
            here = {"include_dashboard": False, "num_cpus": workers * threads if workers else None}
        ray.init(log_to_driver=False, logging_level="error", **here)
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        # A killed task is shown as failed; the same command takes it up again.
        self.task = ray.remote(num_cpus=threads, num_gpus=int(gpu), max_retries=0)(perform)
        self.running: dict[Any, str] = {}

    def start(self, name: str, job: Job) -> None:
        """Begin a job."""
        self.running[self.task.remote(job)] = name

    def ended(self, seconds: float) -> dict[str, str | None]:
        """The jobs that ended."""
        done, _ = self.ray.wait(list(self.running), timeout=seconds)
        found: dict[str, str | None] = {}
        for reference in done:
            name = self.running.pop(reference)
            try:
                found[name] = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                found[name] = f"its task ended: {' '.join(str(error).split())[:200]}"
        return found

    def stop(self) -> None:
        """End what still runs."""
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        self.running.clear()
        self.ray.shutdown()
