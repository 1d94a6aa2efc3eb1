"""Where the runs of a study are computed: in processes on this machine, or by the engines of `clusters`."""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal, Protocol

from robustill.core.formatting import clock
from robustill.core.signals import Interrupted
from robustill.studies.clusters import RayEngine, SubmititEngine
from robustill.studies.job import Job, run_job

EngineName = Literal["local", "ray", "submitit"]
# Imported once, before the processes are forked; the first optimizer would import torch._dynamo, which takes seconds.
_PRELOADED = ["robustill.training.loop", "robustill.evaluation.targets", "robustill.studies.job", "torch._dynamo"]
_TERMINATION_SECONDS = 10.0
"""How long a terminated process may take to exit before it is killed."""
_HANG_SECONDS = 600.0
"""A process that has used no CPU time for this long hangs: it has been stopped, or waits in a deadlock."""


def visible_gpus() -> list[str]:
    """Return the GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",") if names else [str(index) for index in range(torch.cuda.device_count())]


class Engine(Protocol):
    """Runs jobs in isolation from one another: a job that crashes does not affect the others."""

    workers: int
    """the largest number of jobs at a time"""

    def start(self, name: str, job: Job) -> None:
        """Start a job; the caller starts no more than `workers` at a time."""

    def wait(self, seconds: float) -> dict[str, str | None]:
        """Wait for a job to end, at most for `seconds`.

        Returns:
            The jobs that have ended since the last call: by name, None or the reason for the failure in one line.
        """

    def stop(self) -> None:
        """Stop all running jobs; their run directories are complete at any moment, so that they can be resumed."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many runs are computed at a time, and where.

    Args:
        count: number of runs at a time; None leaves it to the engine.
        threads: number of threads of each run.
        gpu: whether each run uses a GPU; with Ray, whether it does if the cluster has one.
        engine: "local", "ray" or "submitit".
        gpus_per_run: the share of a GPU that is reserved for each run.
    """

    count: int | None
    threads: int
    gpu: bool
    engine: EngineName
    gpus_per_run: float = 1.0


@contextmanager
def started_engine(workers: Workers, logs: Path) -> Iterator[Engine]:
    """An engine, which is stopped when the context ends.

    Args:
        workers: which engine, and what it reserves for each job.
        logs: the folder for what the engine itself writes.
    """
    gpus = workers.gpus_per_run if workers.gpu else 0.0
    engine: Engine
    if workers.engine == "ray":
        engine = RayEngine(workers.count, workers.threads, gpus)
    elif workers.engine == "submitit":
        engine = SubmititEngine(workers.count, workers.threads, int(gpus), logs / "submitit")
    else:
        engine = LocalEngine(workers.count or 1, workers.gpu)
    try:
        yield engine
    finally:
        engine.stop()


class LocalEngine:
    """One process a job on this machine; all of them end when this process ends, even if it is killed.

    Args:
        workers: number of jobs at a time.
        gpu: whether the jobs use the GPUs in turn.
    """

    def __init__(self, workers: int, gpu: bool) -> None:
        self.workers = workers
        self.gpus = visible_gpus() if gpu else []
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(_PRELOADED)
        self.running: dict[str, tuple[BaseProcess, Connection, int]] = {}
        # The CPU time of each process when it was last checked, and for how many seconds it has not changed.
        self.idle: dict[str, tuple[float | None, float]] = {}

    def start(self, name: str, job: Job) -> None:
        """Start a job in a process of its own."""
        slot = min(set(range(self.workers)) - {slot for *_, slot in self.running.values()})
        parent_end, child_end = self.context.Pipe()
        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
        process = self.context.Process(target=_run_in_process, args=(job, child_end, gpu), name=name)
        process.start()
        child_end.close()
        self.running[name] = process, parent_end, slot

    def wait(self, seconds: float) -> dict[str, str | None]:
        """Wait for a process to end, at most for `seconds`; kill those that hang."""
        start = time.monotonic()
        multiprocessing.connection.wait([process.sentinel for process, *_ in self.running.values()], seconds)
        # At most twice the timeout: while the machine was suspended, no process was idle.
        waited = min(time.monotonic() - start, 2 * seconds)
        ended: dict[str, str | None] = {}
        for name, (process, pipe, _) in list(self.running.items()):
            hangs = process.is_alive() and self._hangs(name, process, waited)
            if process.is_alive() and not hangs:
                continue
            if hangs:
                process.kill()
            process.join()
            try:
                ended[name] = pipe.recv() if pipe.poll() else _exit_reason(process.exitcode)
            except EOFError:
                ended[name] = _exit_reason(process.exitcode)
            if hangs:
                ended[name] = f"its process hung: it used no CPU time for {clock(_HANG_SECONDS)} and was killed"
            pipe.close()
            del self.running[name]
            self.idle.pop(name, None)
        return ended

    def _hangs(self, name: str, process: BaseProcess, waited: float) -> bool:
        cpu_time = _cpu_time(process.pid)
        last_cpu_time, idle_seconds = self.idle.get(name, (None, 0.0))
        unchanged = cpu_time is not None and cpu_time == last_cpu_time
        idle_seconds = idle_seconds + waited if unchanged else 0.0
        self.idle[name] = cpu_time, idle_seconds
        return idle_seconds >= _HANG_SECONDS

    def stop(self) -> None:
        """Terminate all running processes, and kill those that do not exit."""
        for process, *_ in self.running.values():
            process.terminate()
        for process, pipe, _ in self.running.values():
            process.join(_TERMINATION_SECONDS)
            process.kill()
            process.join()
            pipe.close()
        self.running.clear()


def _run_in_process(job: Job, pipe: Connection, gpu: str | None) -> None:
    # Ctrl-C in a terminal sends SIGINT to every process; the parent handles it and stops this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(pipe,), daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        error = run_job(job)
    except Interrupted as interrupted:
        # The study is being stopped; what the run has saved stays on disk.
        sys.exit(interrupted.exit_code)
    with suppress(OSError):
        pipe.send(error)


def _exit_with_parent(pipe: Connection) -> None:
    """Exit when the parent process ends, which closes its end of the pipe."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)


def _cpu_time(pid: int | None) -> float | None:
    """Return the CPU time of all threads of a process, in clock ticks; None if the system does not provide it."""
    try:
        # The program's name comes first, in parentheses, and may contain spaces and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return float(fields[11]) + float(fields[12])
    except (OSError, IndexError, ValueError):
        return None


def _exit_reason(exit_code: int | None) -> str:
    """Describe why a process ended without a result."""
    if exit_code == -signal.SIGKILL:
        return "its process was killed, most often because memory ran out: then give fewer --workers"
    if exit_code is not None and exit_code < 0:
        return f"its process ended with signal {signal.Signals(-exit_code).name}"
    return f"its process ended with exit code {exit_code}"
