"""Running a study: what is missing is done, what fails is shown and stops nothing else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from robustill.config.files import dump_config
from robustill.core.errors import ConfigError, RunError
from robustill.core.files import exclusive_lock
from robustill.core.formatting import clock
from robustill.core.links import refuse_link
from robustill.core.progress import Progress
from robustill.core.signals import raised
from robustill.core.user_code import TrustCode, current_trust, only_named
from robustill.runs.directory import RunDirectory
from robustill.studies.cost import Cost, costs
from robustill.studies.engines import Engine, EngineName, engine, visible_gpus
from robustill.studies.job import Job, evaluated
from robustill.studies.memorisation import Influence, influence
from robustill.studies.study import Study, default_folder, make_study
from robustill.studies.table import Table, tabulate
from robustill.studies.writing import write_results
from robustill.training.provenance import start_run

_LOCK = "study.lock"
_LOGS = "logs"
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who does the work.

    Args:
        workers: runs at once; None leaves it to the engine.
        threads: of each.
        gpu: whether each takes one.
        engine: "local" or "ray".
    """

    workers: int | None
    threads: int
    gpu: bool
    engine: EngineName


def make_workers(
    study: Study, *, workers: int | None, engine: EngineName = "local", asked_threads: bool = False
) -> Workers:
    """As many workers as there is room for, or those asked for, and the threads that are then left for each.

    Args:
        study: whose recipe may say how many threads.
        workers: asked for; None is as many as fit.
        engine: on Ray the cluster knows how many cores there are.
        asked_threads: whether --compute.threads was given: then more than the cores may be used.

    Raises:
        ConfigError: workers times threads exceed the cores, and nobody asked for that.
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
        return Workers(workers=workers, threads=threads or 1, gpu=gpu, engine=engine)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers is None:
        workers = max(1, min(len(visible_gpus()) if gpu else cores // (threads or 1), len(study.runs)))
    threads = threads or max(1, cores // workers)
    if workers * threads > cores and not asked_threads:
        raise ConfigError(
            f"{workers} workers × {threads} threads are more than the {cores} cores: "
            f"give --workers {max(1, cores // threads)}, or ask for it with --compute.threads {threads}"
        )
    return Workers(workers=workers, threads=threads, gpu=gpu, engine=engine)


def study_and_workers(
    name: str,
    overrides: Sequence[str],
    seeds: int,
    workers: int | None,
    runs: Path | None,
    recipe: str,
    suite: str,
    num_images: int | None,
    engine: EngineName,
    trust_code: TrustCode = False,
) -> tuple[Study, Workers]:
    """What the words of the command line ask for.

    Raises:
        ConfigError: something that cannot be.
    """
    folder = default_folder(name) if runs is None else runs
    planned = make_study(
        name,
        folder=folder,
        seeds=seeds,
        recipe=recipe,
        overrides=overrides,
        suite=suite,
        num_images=num_images,
        trust_code=trust_code,
    )
    asked = any(token.partition("=")[0] == "--compute.threads" for token in overrides)
    return planned, make_workers(planned, workers=workers, engine=engine, asked_threads=asked)


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """How a run of a study ended.

    Args:
        error: one line; None is a run that is done.
        log: where all that it printed lies; None if it was not begun.
    """

    error: str | None = None
    log: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a study found.

    Args:
        table: of the runs that are done.
        outcomes: how each run ended, by its name.
        files: of results.
        known: what it says of memorisation; None where that was not asked.
    """

    table: Table
    outcomes: dict[str, RunOutcome]
    files: list[Path]
    known: Influence | None = None


def run_study(study: Study, make_workers: Workers, *, progress: bool = True, trust_code: TrustCode = False) -> Result:
    """Do every run of a study that is not done yet, and write the results.

    Killed at any moment and called again, it goes on; a failed run is tried again.

    Raises:
        RobustillError: before anything is written: a folder of something else or in use, a run there of another
            configuration, data that is missing.
    """
    with only_named(*study.code, trust=trust_code):
        return _run_study(study, make_workers, progress)


def _run_study(study: Study, make_workers: Workers, progress: bool) -> Result:
    check_folder(study)
    planned = costs(study)
    with locked(study.folder), raised():
        clear_leftovers(study.folder)
        work = _Scheduler(study, make_workers, planned, progress)
        if work.waiting:
            with engine(make_workers.engine, make_workers.workers, make_workers.threads, make_workers.gpu) as made:
                work.all(made)
        table, known = tabulate(study), influence(study)
        failed = {name: each.error for name, each in work.outcomes.items() if each.error}
        files = write_results(study, table, failed, known)
        return Result(table=table, outcomes=work.outcomes, files=files, known=known)


class _Scheduler:
    """What waits, what runs, and how the rest ended."""

    def __init__(self, study: Study, make_workers: Workers, planned: Mapping[str, Cost], progress: bool) -> None:
        self.study, self.make_workers, self.planned, self.progress = study, make_workers, planned, progress
        self.outcomes: dict[str, RunOutcome] = {name: RunOutcome() for name in study.runs if done(study, name)}
        self.waiting = [name for name in study.runs if name not in self.outcomes]
        self.running: dict[str, float] = {}

    def all(self, engine: Engine) -> None:
        """Until nothing waits and nothing runs."""
        total = round(sum(cost.total for cost in self.planned.values()))
        label = f"{self.study.name}, {len(self.study.runs)} runs"
        with Progress(label, total=total, done=self._passes(), unit="passes", shown=self.progress) as bar:
            while self.waiting or self.running:
                waited = len(self.waiting)
                self._begin(engine)
                if not self.running:
                    # All that was looked at lacks what it needs, and so may others that come before it.
                    assert len(self.waiting) < waited, "runs that wait for each other"
                    continue
                ended = engine.ended(_LOOK_SECONDS)
                for name, error in ended.items():
                    self._end(name, error)
                if ended or sys.stderr.isatty():
                    bar.advance(self._passes() - bar.done, f"{len(self.outcomes)} of {len(self.study.runs)} runs")
            bar.advance(total - bar.done)

    def _begin(self, engine: Engine) -> None:
        for name in list(self.waiting):
            needs = self.study.needs[name]
            lacking = next((need for need in needs if need in self.outcomes and self.outcomes[need].error), None)
            if lacking is not None:
                self.waiting.remove(name)
                self._end(name, f"not run: it needs {lacking}, which {_how(self.outcomes[lacking])}")
            elif len(self.running) < engine.workers and all(need in self.outcomes for need in needs):
                self.waiting.remove(name)
                self.running[name] = time.monotonic()
                engine.start(name, self._job(name))

    def _end(self, name: str, error: str | None) -> None:
        began = self.running.pop(name, None)
        log = None if began is None or error is None else log_of(self.study, name)
        self.outcomes[name] = RunOutcome(error=error, log=log)
        took = "" if began is None else f" in {clock(time.monotonic() - began)}"
        if self.progress:
            where = "" if log is None else f" (log: {log})"
            line = f"{name}: done{took}" if error is None else f"{name}: {'failed: ' if log else ''}{error}{where}"
            # On a terminal the bar stands in this line.
            print(f"\r{line}\033[K" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)

    def _job(self, name: str) -> Job:
        config = self.study.runs[name]
        compute = config.compute.model_copy(update={"threads": self.make_workers.threads})
        return Job(
            run=str(self.study.folder / name),
            config=config.model_copy(update={"compute": compute}).model_dump(mode="json"),
            asked=self.study.asked(name),
            log=str(log_of(self.study, name)),
            folder=str(Path.cwd()),
            trust_code=current_trust(),
        )

    def _passes(self) -> int:
        """Those of the runs that ended, and of the epochs of the others."""
        passes = 0.0
        for name, cost in self.planned.items():
            ended = name in self.outcomes
            passes += cost.total if ended else cost.epoch * _epochs(self.study.folder / name / "metrics.jsonl")
        return round(passes)


def check_folder(study: Study) -> None:
    """Whether a study can begin or go on in its folder; writes nothing.

    Raises:
        RunError: the folder holds something else, or runs of another configuration.
    """
    _refuse_other_content(study.folder)
    refuse_link(study.folder / _LOGS)
    for name, config in study.runs.items():
        refuse_link(log_of(study, name))
        if (study.folder / name / "config.yaml").exists():
            start_run(RunDirectory(study.folder / name), dump_config(config))


def log_of(study: Study, name: str) -> Path:
    """Where everything that a run prints is kept; not inside its directory, which a run that failed may not have."""
    return study.folder / _LOGS / f"{name}.log"


def done(study: Study, name: str) -> bool:
    """Whether a run has been trained, and evaluated if the study asks for that."""
    return evaluated(RunDirectory(study.folder / name), study.asked(name)) is not None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one study at a time works in a folder.

    Raises:
        RunError: another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder / _LOCK, f"{folder} is in use by another study: wait for it, or use another --runs"):
        yield


def clear_leftovers(folder: Path) -> None:
    """Remove what killed writes of results left behind."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()


def _refuse_other_content(folder: Path) -> None:
    if "@" in str(folder):
        raise RunError(f"{folder} has an @ in its name, which marks checkpoints of teachers: use another --runs")
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: give the name of a folder as --runs")
    if not folder.is_dir() or (folder / _LOCK).is_file():
        return
    others = sorted(each.name for each in folder.iterdir())
    if others:
        raise RunError(f"{folder} is not empty and holds no study (it holds {others[0]}): use another --runs")


def _epochs(metrics: Path) -> int:
    try:
        return metrics.read_bytes().count(b"\n")
    except OSError:
        return 0


def _how(outcome: RunOutcome) -> str:
    return "failed" if outcome.log else "was not run"
