"""One run of a study as a job for another process: its training, its evaluation, and its files as they are shipped."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from robustill.core.errors import RobustillError, RunError
from robustill.core.user_code import TrustCode, only_named, search_in
from robustill.runs.directory import RunDirectory
from robustill.studies.design import EvaluationRequest

# The file in a run directory that records which evaluations have been finished.
_RECORD = "study.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that another process, or another machine with the same files, needs to run one run of a study.

    Args:
        run: the run directory.
        config: the configuration, as plain values.
        evaluation: the evaluation after the training; None for none.
        log: the file for everything that the job prints.
        folder: the working directory, which relative paths refer to.
        trust_code: import paths that the configuration and the files of the run may name, see `only_named`.
    """

    run: str
    config: dict[str, Any]
    evaluation: EvaluationRequest | None
    log: str
    folder: str
    trust_code: TrustCode = False


def run_job(job: Job) -> str | None:
    """Train, evaluate, and record that it is done; what an earlier process has finished is not repeated.

    Returns:
        None, or the reason for the failure in one line.
    """
    os.chdir(job.folder)
    # A user's own module, such as my_pkg.my_mod, usually lies there.
    search_in(job.folder)
    log = Path(job.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", buffering=1, encoding="utf-8") as file, _output_redirected_to(file):
        try:
            with only_named(trust=job.trust_code):
                _train_and_evaluate(job)
        except Exception as error:
            traceback.print_exc()
            line = " ".join(str(error).split())
            return line if isinstance(error, RobustillError) else f"{type(error).__name__}: {line}"
    return None


@contextmanager
def _output_redirected_to(file: TextIO) -> Iterator[None]:
    """Redirect stdout and stderr to a file, both Python's streams and the file descriptors that libraries write to."""
    saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    try:
        for descriptor in saved:
            os.dup2(file.fileno(), descriptor)
        with redirect_stdout(file), redirect_stderr(file):
            yield
    finally:
        for descriptor, original in saved.items():
            os.dup2(original, descriptor)
            os.close(original)


def _train_and_evaluate(job: Job) -> None:
    from robustill.config.schema import make_config
    from robustill.evaluation.targets import evaluate_run
    from robustill.studies.shipping import ship
    from robustill.training.loop import train

    print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {job.run}", file=sys.stderr)
    run = RunDirectory(job.run)
    start = time.monotonic()
    train(make_config(job.config), run.path)
    trained = time.monotonic()
    evaluations, shipped = _recorded(run, "evaluations"), _recorded(run, "shipped")
    if job.evaluation is not None:
        for leftover in (run.path / "evaluations").glob("*/.*.tmp"):
            leftover.unlink()
        is_test = job.evaluation.split == "test"
        results = evaluate_run(
            run.path,
            suite=job.evaluation.suite,
            num_images=job.evaluation.num_images,
            checkpoints=job.evaluation.checkpoints,
            split=job.evaluation.split,
            eps_curve=is_test,
            pictures=is_test,
        )
        evaluations[_record_key(job.evaluation)] = {
            str(records.conditions["checkpoint"]): folder.name for folder, records in results.items()
        }
    seconds = {"training": round(trained - start, 2), "evaluation": round(time.monotonic() - trained, 2)}
    record = {"evaluations": evaluations, "shipped": shipped, "last_call_seconds": seconds}
    run.write_json(_RECORD, record)
    if job.evaluation is not None and job.evaluation.ship:
        number = job.evaluation.num_shipped_images
        run.write_json(_RECORD, {**record, "shipped": {**shipped, str(number): ship(run, number)}})


def finished_evaluations(run: RunDirectory, request: EvaluationRequest | None) -> dict[str, Path] | None:
    """Return the folder of the requested evaluation for each checkpoint; None if the run has not been finished.

    Without a request the result is empty once the training has been finished.
    """
    try:
        record = run.read_json(_RECORD)
    except RunError:
        return None
    if record is None:
        return None
    if request is None:
        return {}
    names = record["evaluations"].get(_record_key(request), {})
    folders = {checkpoint: run.path / "evaluations" / name for checkpoint, name in names.items()}
    return folders if _are_evaluations(folders) else None


def finished_files(run: RunDirectory, request: EvaluationRequest) -> dict[str, Path] | None:
    """Return the folder of the records of each file of a run as it is shipped; None if it has not been shipped."""
    names = _recorded(run, "shipped").get(str(request.num_shipped_images), {})
    folders = {file: run.path / name for file, name in names.items()}
    return folders if _are_evaluations(folders) else None


def _are_evaluations(folders: Mapping[str, Path]) -> bool:
    return bool(folders) and all((folder / "summary.json").is_file() for folder in folders.values())


def _record_key(request: EvaluationRequest) -> str:
    """Return the key of an evaluation in study.json."""
    key = request.suite if request.split == "test" else f"{request.split} {request.suite}"
    if request.num_images is not None:
        key = f"{key} of {request.num_images}"
    return key if request.checkpoints is None else f"{key} at {', '.join(request.checkpoints)}"


def _recorded(run: RunDirectory, key: str) -> dict[str, dict[str, str]]:
    """Return what study.json records under a key: folders by their names, of each request."""
    try:
        return dict((run.read_json(_RECORD) or {}).get(key, {}))
    except RunError:
        return {}
