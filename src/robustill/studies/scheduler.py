"""Running a study: start what is missing, in the order of what each run needs, and write the results."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from robustill.config.files import dump_config
from robustill.core.errors import ConfigError, RunError
from robustill.core.files import exclusive_lock
from robustill.core.formatting import clock
from robustill.core.links import refuse_link
from robustill.core.progress import Progress
from robustill.core.signals import interruptible
from robustill.core.user_code import TrustCode, current_trust, only_named
from robustill.runs.directory import RunDirectory
from robustill.studies.cost import RunCost, run_costs
from robustill.studies.engines import Engine, EngineName, started_engine, visible_gpus
from robustill.studies.job import Job, finished_evaluations
from robustill.studies.memorisation import MemorisationResult, measure_memorisation
from robustill.studies.study import Study
from robustill.studies.table import Table, tabulate
from robustill.studies.writing import write_results
from robustill.training.provenance import start_run

_LOCK = "study.lock"
_LOGS = "logs"
_POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many runs are computed at a time, and where.

    Args:
        count: number of runs at a time; None leaves it to the engine.
        threads: number of threads of each run.
        gpu: whether each run uses a GPU.
        engine: "local" or "ray".
    """

    count: int | None
    threads: int
    gpu: bool
    engine: EngineName


def make_workers(
    study: Study, *, workers: int | None, engine: EngineName = "local", threads_given: bool = False
) -> Workers:
    """Divide the CPU cores, or the GPUs, among the runs of a study.

    Args:
        study: the study, whose recipe may set the number of threads.
        workers: number of runs at a time; None for as many as the cores or GPUs allow.
        engine: "local" or "ray", where the cluster knows its own cores.
        threads_given: whether the user gave --compute.threads, and so may exceed the number of cores.

    Raises:
        ConfigError: the workers need more threads than there are cores.
    """
    import torch

    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is {workers}: expected at least 1")
    compute = [config.compute for config in study.runs.values()]
    threads = max((each.threads or 0 for each in compute), default=0)
    gpu = any(
        each.device.startswith("cuda") or (each.device == "auto" and torch.cuda.is_available()) for each in compute
    )
    if engine == "ray":
        return Workers(count=workers, threads=threads or 1, gpu=gpu, engine=engine)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers is None:
        available = len(visible_gpus()) if gpu else cores // (threads or 1)
        workers = max(1, min(available, len(study.runs)))
    threads = threads or max(1, cores // workers)
    if workers * threads > cores and not threads_given:
        allowed = max(1, cores // threads)
        raise ConfigError(
            f"{workers} workers × {threads} threads are more than the {cores} cores: "
            f"give --workers {allowed}, or insist with --compute.threads {threads}"
        )
    return Workers(count=workers, threads=threads, gpu=gpu, engine=engine)


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """How one run of a study ended.

    Args:
        error: the reason for its failure in one line; None if it succeeded.
        log: the file with everything that it printed; None if it was not started.
    """

    error: str | None = None
    log: Path | None = None


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """The result of a study.

    Args:
        table: the table of the runs that have been finished.
        outcomes: how each run ended, by its name.
        files: the files of results.
        memorisation: the measured memorisation; None for a study that does not measure it.
    """

    table: Table
    outcomes: dict[str, RunOutcome]
    files: list[Path]
    memorisation: MemorisationResult | None = None


def run_study(study: Study, workers: Workers, *, progress: bool = True, trust_code: TrustCode = False) -> StudyResult:
    """Run every run of a study that has not been finished, and write the results.

    If the process is killed, the same call resumes the study; runs that failed are tried again.

    Raises:
        RobustillError: before anything is written, if the folder holds something else or is in use, if a run there
            has another configuration, or if data is missing.
    """
    with only_named(*study.code, trust=trust_code):
        return _run_study(study, workers, progress)


def _run_study(study: Study, workers: Workers, progress: bool) -> StudyResult:
    check_folder(study)
    costs = run_costs(study)
    with locked(study.folder), interruptible():
        remove_temporary_files(study.folder)
        scheduler = _Scheduler(study, workers, costs, progress)
        if scheduler.waiting:
            with started_engine(workers.engine, workers.count, workers.threads, workers.gpu) as engine:
                scheduler.run(engine)
        table, memorisation = tabulate(study), measure_memorisation(study)
        failed = {name: each.error for name, each in scheduler.outcomes.items() if each.error}
        files = write_results(study, table, failed, memorisation)
        return StudyResult(table=table, outcomes=scheduler.outcomes, files=files, memorisation=memorisation)


class _Scheduler:
    """The runs of a study that wait, that are running, and that have ended."""

    def __init__(self, study: Study, workers: Workers, costs: Mapping[str, RunCost], progress: bool) -> None:
        self.study = study
        self.workers = workers
        self.costs = costs
        self.progress = progress
        self.outcomes: dict[str, RunOutcome] = {name: RunOutcome() for name in study.runs if is_finished(study, name)}
        self.waiting = [name for name in study.runs if name not in self.outcomes]
        # The time at which each running run was started.
        self.running: dict[str, float] = {}

    def run(self, engine: Engine) -> None:
        """Start runs as workers become free, until all have ended."""
        total = round(sum(cost.total for cost in self.costs.values()))
        num_runs = len(self.study.runs)
        label = f"{self.study.name}, {num_runs} runs"
        with Progress(label, total=total, done=self._completed_passes(), unit="passes", shown=self.progress) as bar:
            while self.waiting or self.running:
                num_waiting = len(self.waiting)
                self._start_ready_runs(engine)
                if not self.running:
                    # Every run of this round lacks a run that failed; its own dependants may come earlier in the list.
                    assert len(self.waiting) < num_waiting, "runs that wait for each other"
                    continue
                ended = engine.wait(_POLL_SECONDS)
                for name, error in ended.items():
                    self._finish(name, error)
                if ended or sys.stderr.isatty():
                    passes = self._completed_passes() - bar.done
                    bar.advance(passes, f"{len(self.outcomes)} of {num_runs} runs")
            bar.advance(total - bar.done)

    def _start_ready_runs(self, engine: Engine) -> None:
        """Start the runs whose requirements have ended, and give up those whose requirements have failed."""
        for name in list(self.waiting):
            needs = self.study.needs[name]
            failed = [need for need in needs if need in self.outcomes and self.outcomes[need].error]
            if failed:
                self.waiting.remove(name)
                reason = "failed" if self.outcomes[failed[0]].log else "was not run"
                self._finish(name, f"not run: it needs {failed[0]}, which {reason}")
            elif len(self.running) < engine.workers and all(need in self.outcomes for need in needs):
                self.waiting.remove(name)
                self.running[name] = time.monotonic()
                engine.start(name, self._job(name))

    def _finish(self, name: str, error: str | None) -> None:
        """Record how a run ended, and print it."""
        start = self.running.pop(name, None)
        log = None if start is None or error is None else log_file(self.study, name)
        self.outcomes[name] = RunOutcome(error=error, log=log)
        if not self.progress:
            return
        if error is None:
            line = f"{name}: done"
            if start is not None:
                line += f" in {clock(time.monotonic() - start)}"
        elif log is None:
            line = f"{name}: {error}"
        else:
            line = f"{name}: failed: {error} (log: {log})"
        if sys.stderr.isatty():
            # The progress bar is in this line of the terminal.
            line = f"\r{line}\033[K"
        print(line, file=sys.stderr, flush=True)

    def _job(self, name: str) -> Job:
        config = self.study.runs[name]
        compute = config.compute.model_copy(update={"threads": self.workers.threads})
        return Job(
            run=str(self.study.folder / name),
            config=config.model_copy(update={"compute": compute}).model_dump(mode="json"),
            evaluation=self.study.evaluation(name),
            log=str(log_file(self.study, name)),
            folder=str(Path.cwd()),
            trust_code=current_trust(),
        )

    def _completed_passes(self) -> int:
        """Count the passes of the runs that have ended, and of the finished epochs of all others."""
        passes = 0.0
        for name, cost in self.costs.items():
            if name in self.outcomes:
                passes += cost.total
            else:
                passes += cost.epoch * _count_epochs(self.study.folder / name / "metrics.jsonl")
        return round(passes)


def check_folder(study: Study) -> None:
    """Check that a study can start or resume in its folder, without writing anything.

    Raises:
        RunError: the folder holds something else, or runs of another configuration.
    """
    _check_content(study.folder)
    refuse_link(study.folder / _LOGS)
    for name, config in study.runs.items():
        refuse_link(log_file(study, name))
        if (study.folder / name / "config.yaml").exists():
            start_run(RunDirectory(study.folder / name), dump_config(config))


def log_file(study: Study, name: str) -> Path:
    """Return the file for everything that a run prints; outside its directory, which a failed run may not have."""
    return study.folder / _LOGS / f"{name}.log"


def is_finished(study: Study, name: str) -> bool:
    """Return whether a run has been trained and, if the study evaluates it, evaluated."""
    return finished_evaluations(RunDirectory(study.folder / name), study.evaluation(name)) is not None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a study's folder, so that only one study at a time runs in it.

    Raises:
        RunError: another study holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder / _LOCK, f"{folder} is in use by another study: wait for it, or use another --runs"):
        yield


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of results whose writing was interrupted."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()


def _check_content(folder: Path) -> None:
    """Check that a folder is new, empty, or the folder of a study.

    Raises:
        RunError: it is not.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: give the name of a folder as --runs")
    if not folder.is_dir() or (folder / _LOCK).is_file():
        return
    others = sorted(each.name for each in folder.iterdir())
    if others:
        raise RunError(f"{folder} is not empty and holds no study (it holds {others[0]}): use another --runs")


def _count_epochs(metrics: Path) -> int:
    try:
        return metrics.read_bytes().count(b"\n")
    except OSError:
        return 0
