"""Running a study: start what is missing, in the order of what each run needs, and write the results."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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
from robustill.studies.cost import RunCost, check_teachers, run_costs
from robustill.studies.engines import Engine, EngineName, Workers, started_engine, visible_gpus
from robustill.studies.grid import Grid
from robustill.studies.job import Job, finished_evaluations, finished_files
from robustill.studies.memorisation import MemorisationResult, measure_memorisation
from robustill.studies.parts import Part
from robustill.studies.shipped import ShippedRow, tabulate_shipped
from robustill.studies.study import Study
from robustill.studies.table import Table, tabulate
from robustill.studies.writing import write_results
from robustill.training.provenance import start_run

_LOCK = "study.lock"
_LOGS = "logs"
_POLL_SECONDS = 1.0


def make_workers(
    grid: Grid,
    *,
    workers: int | None,
    engine: EngineName = "local",
    gpus_per_run: float = 1.0,
    threads_given: bool = False,
) -> Workers:
    """Divide the CPU cores, or the GPUs, among the runs of a grid.

    Args:
        grid: the runs, whose recipe may set the number of threads.
        workers: number of runs at a time; None for as many as the cores or GPUs allow.
        engine: "local"; or "ray" or "submitit", where the cluster knows its own cores.
        gpus_per_run: the share of a GPU for each run, so that several small students train on one.
        threads_given: whether the user gave --compute.threads, and so may exceed the number of cores.

    Raises:
        ConfigError: the workers need more threads than there are cores, the share of a GPU is impossible, or the runs
            name one GPU.
    """
    import torch

    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is {workers}: expected at least 1")
    if not 0 < gpus_per_run <= 1:
        raise ConfigError(f"--gpus-per-run is {gpus_per_run:g}: expected a share above 0 and at most 1, such as 0.25")
    if engine == "submitit" and gpus_per_run < 1:
        raise ConfigError("--gpus-per-run: SLURM gives a job whole GPUs: leave it out, or use --engine ray")
    compute = [config.compute for config in grid.runs.values()]
    for device in {each.device for each in compute if each.device.startswith("cuda:")} - {"cuda:0"}:
        number = device.removeprefix("cuda:")
        raise ConfigError(
            f"--compute.device {device}: each of several runs gets a GPU of its own: give --compute.device cuda, and "
            f"choose the GPUs by CUDA_VISIBLE_DEVICES={number}"
        )
    threads = max((each.threads or 0 for each in compute), default=0)
    # The machine that starts the tasks of Ray may have no GPU; the engine asks the cluster.
    has_gpu = engine == "ray" or torch.cuda.is_available()
    gpu = any(each.device.startswith("cuda") or (each.device == "auto" and has_gpu) for each in compute)
    if engine != "local":
        return Workers(count=workers, threads=threads or 1, gpu=gpu, engine=engine, gpus_per_run=gpus_per_run)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers is None:
        available = int(len(visible_gpus()) / gpus_per_run) if gpu else cores // (threads or 1)
        workers = max(1, min(available, len(grid.runs)))
    threads = threads or max(1, cores // workers)
    if workers * threads > cores and not threads_given:
        allowed = max(1, cores // threads)
        raise ConfigError(
            f"{workers} workers × {threads} threads are more than the {cores} cores: "
            f"give --workers {allowed}, or insist with --compute.threads {threads}"
        )
    return Workers(count=workers, threads=threads, gpu=gpu, engine=engine, gpus_per_run=gpus_per_run)


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
        files: the files of results; none for a part of a study whose other parts have not ended.
        memorisation: the measured memorisation; None for a study that does not measure it.
        shipped: the files of the runs as they are shipped; none for a study that does not ship them.
        lacking: for each run that was left out, the runs of other parts that it needs.
    """

    table: Table
    outcomes: dict[str, RunOutcome]
    files: list[Path]
    memorisation: MemorisationResult | None = None
    shipped: tuple[ShippedRow, ...] = ()
    lacking: dict[str, tuple[str, ...]] = field(default_factory=dict)


def run_study(
    study: Study,
    workers: Workers,
    *,
    part: Part | None = None,
    progress: bool = True,
    trust_code: TrustCode = False,
) -> StudyResult:
    """Run every run of a study that has not been finished, and write the results.

    If the process is killed, the same call resumes the study; runs that failed are tried again.

    A part runs its own runs alone, beside the other parts. Those whose teachers another part has not finished in the
    meantime are left out, see `StudyResult.lacking`. The part after which every run is finished writes the results.

    Raises:
        RobustillError: before anything is written, if the folder holds something else or is in use, if a run there
            has another configuration, or if data is missing.
    """
    with only_named(*study.code, trust=trust_code):
        if part is None:
            return _run_study(study, workers, progress)
        return _run_part(study, part, workers, progress)


def run_grid(grid: Grid, workers: Workers, *, progress: bool = True) -> dict[str, RunOutcome]:
    """Run every run of a grid that has not been finished, and return how each ended, by its name.

    Raises:
        RobustillError: as for `run_study`.
    """
    check_folder(grid)
    costs = run_costs(grid)
    with locked(grid.folder), interruptible():
        scheduler = _Scheduler(grid, workers, costs, progress)
        scheduler.run()
        return scheduler.outcomes


def _run_study(study: Study, workers: Workers, progress: bool) -> StudyResult:
    check_folder(study)
    costs = run_costs(study)
    check_teachers(study)
    with locked(study.folder), interruptible():
        scheduler = _Scheduler(study, workers, costs, progress)
        scheduler.run()
        return _write_results(study, scheduler.outcomes)


def _run_part(study: Study, part: Part, workers: Workers, progress: bool) -> StudyResult:
    check_folder(study)
    costs = run_costs(study)
    check_teachers(study)
    study.folder.mkdir(parents=True, exist_ok=True)
    # What makes it the folder of a study; held by a whole study alone. No run is trained twice, since runs have locks.
    refuse_link(study.folder / _LOCK)
    (study.folder / _LOCK).touch()
    lock = study.folder / f"{part.file_name}.lock"
    refusal = f"part {part} of {study.folder} is being run by another process: wait for it"
    with exclusive_lock(lock, refusal), interruptible():
        scheduler = _Scheduler(study, workers, costs, progress, part.runs(study))
        scheduler.run()
    if all(is_finished(study, name) for name in study.runs):
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(study.folder))
            except RunError:  # Another part holds the lock: it has seen the same and writes the same results.
                pass
            else:
                return _write_results(study, scheduler.outcomes)
    return StudyResult(table=tabulate(study), outcomes=scheduler.outcomes, files=[], lacking=scheduler.lacking)


def _write_results(study: Study, outcomes: dict[str, RunOutcome]) -> StudyResult:
    """Write the results of the runs that are finished; the caller holds the lock of the study."""
    remove_temporary_files(study.folder)
    table, memorisation, shipped = tabulate(study), measure_memorisation(study), tabulate_shipped(study)
    failed = {name: each.error for name, each in outcomes.items() if each.error}
    files = write_results(study, table, failed, memorisation, shipped)
    return StudyResult(table=table, outcomes=outcomes, files=files, memorisation=memorisation, shipped=shipped)


class _Scheduler:
    """The runs of a study that wait, that are running, and that have ended."""

    def __init__(
        self,
        grid: Grid,
        workers: Workers,
        costs: Mapping[str, RunCost],
        progress: bool,
        names: Sequence[str] | None = None,
    ) -> None:
        names = list(grid.runs) if names is None else names
        self.grid = grid
        self.workers = workers
        self.costs = {name: cost for name, cost in costs.items() if name in names}
        self.progress = progress
        self.outcomes: dict[str, RunOutcome] = {name: RunOutcome() for name in names if is_finished(grid, name)}
        self.waiting = [name for name in names if name not in self.outcomes]
        # The runs that others compute: those of the other parts of a study.
        self.elsewhere = set(grid.runs) - set(names)
        # The runs that were left out, and what each lacks.
        self.lacking: dict[str, tuple[str, ...]] = {}
        # The time at which each running run was started.
        self.running: dict[str, float] = {}

    def run(self) -> None:
        """Start runs as workers become free, until all have ended."""
        if self.waiting:
            with started_engine(self.workers, self.grid.folder / _LOGS) as engine:
                self._run(engine)

    def _run(self, engine: Engine) -> None:
        total = round(sum(cost.total for cost in self.costs.values()))
        num_runs = len(self.outcomes) + len(self.waiting)
        label = f"{self.grid.name}, {num_runs} runs"
        with Progress(label, total=total, done=self._completed_passes(), unit="passes", shown=self.progress) as bar:
            while self.waiting or self.running:
                num_waiting = len(self.waiting)
                self._start_ready_runs(engine)
                if not self.running:
                    self._leave_out_lacking_runs()
                    # Every run of this round lacks a run that failed; its own dependants may come earlier in the list.
                    # Or another part has just finished what it needs.
                    assert self.elsewhere or len(self.waiting) < num_waiting, "runs that wait for each other"
                    continue
                ended = engine.wait(_POLL_SECONDS)
                for name, error in ended.items():
                    self._finish(name, error)
                passes = self._completed_passes() - bar.done
                # A log gets a line where something has been done.
                if ended or passes or sys.stderr.isatty():
                    bar.advance(passes, f"{len(self.outcomes)} of {num_runs} runs")
            bar.advance(total - bar.done)

    def _start_ready_runs(self, engine: Engine) -> None:
        """Start the runs whose requirements have ended, and give up those whose requirements have failed."""
        for name in list(self.waiting):
            needs = self.grid.needs[name]
            failed = [need for need in needs if need in self.outcomes and self.outcomes[need].error]
            if failed:
                self.waiting.remove(name)
                reason = "failed" if self.outcomes[failed[0]].log else "was not run"
                self._finish(name, f"not run: it needs {failed[0]}, which {reason}")
            elif len(self.running) < engine.workers and all(self._has_ended(need) for need in needs):
                self.waiting.remove(name)
                self.running[name] = time.monotonic()
                engine.start(name, self._job(name))

    def _has_ended(self, name: str) -> bool:
        return name in self.outcomes or (name in self.elsewhere and is_finished(self.grid, name))

    def _leave_out_lacking_runs(self) -> None:
        """Leave out the runs that need a run of another part, directly or not, when there is nothing else to do."""
        while True:
            absent = {*self.lacking, *(name for name in self.elsewhere if not is_finished(self.grid, name))}
            found = {name: tuple(n for n in self.grid.needs[name] if n in absent) for name in self.waiting}
            left_out = {name: lacks for name, lacks in found.items() if lacks}
            if not left_out:
                return
            self.lacking |= left_out
            self.waiting = [name for name in self.waiting if name not in left_out]

    def _finish(self, name: str, error: str | None) -> None:
        """Record how a run ended, and print it."""
        start = self.running.pop(name, None)
        log = None if start is None or error is None else log_file(self.grid, name)
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
        config = self.grid.runs[name]
        compute = config.compute.model_copy(update={"threads": self.workers.threads})
        return Job(
            run=str(self.grid.folder / name),
            config=config.model_copy(update={"compute": compute}).model_dump(mode="json"),
            evaluation=self.grid.evaluation(name),
            log=str(log_file(self.grid, name)),
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
                passes += cost.epoch * _count_epochs(self.grid.folder / name / "metrics.jsonl")
        return round(passes)


def check_folder(grid: Grid) -> None:
    """Check that a study can start or resume in its folder, without writing anything.

    Raises:
        RunError: the folder holds something else, or runs of another configuration.
    """
    _check_content(grid.folder)
    refuse_link(grid.folder / _LOGS)
    for name, config in grid.runs.items():
        refuse_link(log_file(grid, name))
        if (grid.folder / name / "config.yaml").exists():
            start_run(RunDirectory(grid.folder / name), dump_config(config))


def log_file(grid: Grid, name: str) -> Path:
    """Return the file for everything that a run prints; outside its directory, which a failed run may not have."""
    return grid.folder / _LOGS / f"{name}.log"


def is_finished(grid: Grid, name: str) -> bool:
    """Return whether a run has been trained and, if the study evaluates or ships it, evaluated and shipped."""
    run, request = RunDirectory(grid.folder / name), grid.evaluation(name)
    if request is not None and request.ship and finished_files(run, request) is None:
        return False
    return finished_evaluations(run, request) is not None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a study's folder, so that only one study at a time runs in it.

    Raises:
        RunError: another study holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder / _LOCK, f"{folder} is in use by another study: wait for it, or use another folder"):
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
        raise RunError(f"{folder} is a file: give the name of a folder")
    if not folder.is_dir() or (folder / _LOCK).is_file():
        return
    others = sorted(each.name for each in folder.iterdir())
    if others:
        raise RunError(f"{folder} is not empty and holds no study (it holds {others[0]}): use another folder")


def _count_epochs(metrics: Path) -> int:
    try:
        return metrics.read_bytes().count(b"\n")
    except OSError:
        return 0
