"""Engines for several machines: Ray tasks, and jobs of SLURM by submitit; both need the extra `cluster`."""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from robustill.core.errors import ConfigError
from robustill.studies.job import Job, run_job

_RETRIES = 3
"""How often a job is started again after its machine or process was lost; it continues from its last checkpoint."""
_MINUTES = 24 * 60
"""The time limit of a SLURM job, which SBATCH_TIMELIMIT replaces; a job that reaches it is queued again."""
_POLL_SECONDS = 0.1
_TERMINATION_SECONDS = 10.0
"""How long a cancelled job may take to end before it is left to its cluster."""


class RayEngine:
    """One Ray task a job, on this machine or on the cluster that the environment variable RAY_ADDRESS names.

    Every machine needs the same folder for the runs, and this package. A task whose machine is lost is started again.

    Args:
        workers: number of jobs at a time; None for as many as the cluster has CPU cores and GPUs for.
        threads: number of threads of each job, whose cores are reserved for it.
        gpus: the GPUs, or the share of one, that are reserved for each job if the cluster has any; Ray sets
            CUDA_VISIBLE_DEVICES accordingly.

    Raises:
        ConfigError: Ray is not installed, or does not reach the cluster.
    """

    def __init__(self, workers: int | None, threads: int, gpus: float) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self.ray = _import_cluster("ray")
        local: dict[str, Any] = {}
        if "RAY_ADDRESS" not in os.environ:
            # Without an address Ray looks for a cluster that was once started on this machine.
            cores = workers * threads if workers else None
            local = {"address": "local", "include_dashboard": False, "num_cpus": cores}
        try:
            self.ray.init(log_to_driver=False, logging_level="error", **local)
        except ConnectionError as error:
            raise ConfigError(
                f"engine ray: {_one_line(error)}: check RAY_ADDRESS, and that the cluster has the same "
                "versions of Ray and Python, and the same RAY_AUTH_MODE"
            ) from error
        # This machine may have no GPU while others of the cluster have.
        resources = self.ray.cluster_resources()
        gpus = gpus if resources.get("GPU", 0) > 0 else 0.0
        self.workers = workers or _fitting_jobs(resources, threads, gpus)
        self.task = self.ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=_RETRIES)(run_job)
        self.running: dict[Any, str] = {}

    def start(self, name: str, job: Job) -> None:
        """Submit a job as a task."""
        self.running[self.task.remote(job)] = name

    def wait(self, seconds: float) -> dict[str, str | None]:
        """Wait for a task to end, at most for `seconds`."""
        references, _ = self.ray.wait(list(self.running), timeout=seconds)
        ended: dict[str, str | None] = {}
        for reference in references:
            name = self.running.pop(reference)
            try:
                ended[name] = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                ended[name] = f"its task ended: {_one_line(error)}"
        return ended

    def stop(self) -> None:
        """Cancel all running tasks."""
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        self.running.clear()
        self.ray.shutdown()


def _fitting_jobs(resources: dict[str, float], threads: int, gpus: float) -> int:
    """Return the number of jobs that the resources of a cluster suffice for, at least 1."""
    jobs = int(resources.get("CPU", 1)) // threads
    if gpus:
        jobs = min(jobs, int(resources["GPU"] / gpus))
    return max(1, jobs)


class SubmititEngine:
    """One SLURM job a job, by submitit; on a machine without SLURM, one process a job.

    Every machine needs the same folder for the runs, and this package. Partition, account and time limit are those of
    sbatch's environment variables, such as SBATCH_PARTITION. A job that is preempted or reaches its time limit is
    queued again and continues.

    Args:
        workers: number of jobs in the queue at a time; None for all of them.
        threads: number of CPU cores of each job.
        gpus: number of GPUs of each job.
        folder: for submitit's own files.

    Raises:
        ConfigError: submitit is not installed.
    """

    def __init__(self, workers: int | None, threads: int, gpus: int, folder: Path) -> None:
        self.submitit = _import_cluster("submitit")
        self.workers = workers or sys.maxsize
        self.executor = self.submitit.AutoExecutor(folder=folder, slurm_max_num_timeout=_RETRIES)
        self.executor.update_parameters(
            name="robustill", timeout_min=_MINUTES, cpus_per_task=threads, gpus_per_node=gpus, nodes=1, tasks_per_node=1
        )
        self.running: dict[str, Any] = {}

    def start(self, name: str, job: Job) -> None:
        """Submit a job."""
        self.running[name] = self.executor.submit(_ResumableJob(), job)

    def wait(self, seconds: float) -> dict[str, str | None]:
        """Wait for a job to end, at most for `seconds`."""
        end = time.monotonic() + seconds
        while not (done := [name for name, job in self.running.items() if job.done()]) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        return {name: self._result(self.running.pop(name)) for name in done}

    def _result(self, job: Any) -> str | None:
        try:
            return job.result()  # type: ignore[no-any-return]
        except self.submitit.core.utils.UncompletedJobError as error:
            return f"its job ended: {_one_line(error)}"

    def stop(self) -> None:
        """Cancel all jobs that are queued or running."""
        for job in self.running.values():
            job.cancel()
        # Those on this machine release the locks of their runs.
        end = time.monotonic() + _TERMINATION_SECONDS
        while not all(job.done() for job in self.running.values()) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        self.running.clear()


class _ResumableJob:
    """`run_job`, which submitit queues again when SLURM stops it: it continues from its last checkpoint."""

    def __call__(self, job: Job) -> str | None:
        return run_job(job)

    def checkpoint(self, job: Job) -> Any:
        """Return what is to be queued again."""
        return importlib.import_module("submitit").helpers.DelayedSubmission(self, job)


def _import_cluster(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"engine {name} needs the extra `cluster`: pip install 'robustill[cluster]'") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
