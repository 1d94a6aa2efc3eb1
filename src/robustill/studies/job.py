"""One run of a study from its beginning to its evaluation, in a process of its own."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from robustill.core.errors import RobustillError, RunError
from robustill.core.user_code import TrustCode, only_named, search_in
from robustill.runs.directory import RunDirectory
from robustill.studies.design import EvaluationRequest

# What a run of a study has done, inside its directory.
_NOTE = "study.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What another process, or another machine with the same files, needs to do a run.

    Args:
        run: its directory.
        config: as plain values.
        asked: its evaluation; None leaves it out.
        log: where everything that it prints goes.
        folder: that paths are relative to.
        trust_code: import paths that its configuration and its files may name, see `only_named`.
    """

    run: str
    config: dict[str, Any]
    asked: EvaluationRequest | None
    log: str
    folder: str
    trust_code: TrustCode = False


def perform(job: Job) -> str | None:
    """Train, evaluate, and note that it is done; what an earlier process did is not done again.

    Returns:
        None, or one line that says what went wrong.
    """
    os.chdir(job.folder)
    # Where my_pkg.my_mod:build lies.
    search_in(job.folder)
    log = Path(job.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", buffering=1, encoding="utf-8") as file, _printed_to(file):
        try:
            with only_named(trust=job.trust_code):
                _perform(job)
        except Exception as error:
            traceback.print_exc()
            line = " ".join(str(error).split())
            return line if isinstance(error, RobustillError) else f"{type(error).__name__}: {line}"
    return None


@contextmanager
def _printed_to(file: TextIO) -> Iterator[None]:
    """Also what libraries print past Python's streams."""
    kept = {number: os.dup(number) for number in (1, 2)}
    try:
        for number in kept:
            os.dup2(file.fileno(), number)
        with redirect_stdout(file), redirect_stderr(file):
            yield
    finally:
        for number, own in kept.items():
            os.dup2(own, number)
            os.close(own)


def _perform(job: Job) -> None:
    from robustill.config.schema import make_config
    from robustill.evaluation.targets import evaluate_run
    from robustill.training.loop import train

    print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {job.run}", file=sys.stderr)
    began, run = time.monotonic(), RunDirectory(job.run)
    train(make_config(job.config), run.path)
    trained = time.monotonic()
    evaluations = _evaluations(run)
    if job.asked is not None:
        for leftover in (run.path / "evaluations").glob("*/.*.tmp"):
            leftover.unlink()
        shown = job.asked.split == "test"
        found = evaluate_run(
            run.path,
            suite=job.asked.suite,
            num_images=job.asked.num_images,
            split=job.asked.split,
            eps_curve=shown,
            pictures=shown,
        )
        evaluations[_noted(job.asked)] = {
            str(records.conditions["checkpoint"]): folder.name for folder, records in found.items()
        }
    took = {"training": round(trained - began, 2), "evaluation": round(time.monotonic() - trained, 2)}
    run.write_json(_NOTE, {"evaluations": evaluations, "last_call_seconds": took})


def evaluated(run: RunDirectory, asked: EvaluationRequest | None) -> dict[str, Path] | None:
    """What was asked for of each checkpoint, in the order of these; None if the run is not done."""
    try:
        note = run.read_json(_NOTE)
    except RunError:
        return None
    if note is None or asked is None:
        return None if note is None else {}
    names = note["evaluations"].get(_noted(asked), {})
    folders = {what: run.path / "evaluations" / name for what, name in names.items()}
    whole = folders and all((folder / "summary.json").is_file() for folder in folders.values())
    return folders if whole else None


def _noted(asked: EvaluationRequest) -> str:
    few = "" if asked.num_images is None else f" of {asked.num_images}"
    return (asked.suite if asked.split == "test" else f"{asked.split} {asked.suite}") + few


def _evaluations(run: RunDirectory) -> dict[str, dict[str, str]]:
    try:
        return dict((run.read_json(_NOTE) or {}).get("evaluations", {}))
    except RunError:
        return {}
