"""`robustill quickstart`: weak teachers, students without and with them, one table and one page, on bundled digits."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from robustill.cli.tables import comparison_table
from robustill.config.recipes import digits_akd, digits_at, digits_teacher
from robustill.config.schema import Config, make_config
from robustill.core.errors import RunError
from robustill.core.formatting import clock
from robustill.evaluation.targets import evaluate_run
from robustill.report import report
from robustill.studies.grid import Grid
from robustill.studies.scheduler import make_workers, run_grid

NUM_TEACHERS = 3
EMA_DECAY = 0.99
STUDENTS = {"PGD-AT": "at", "PGD-AT + EMA": "at-ema", "AKD": "akd"}
"""The folders of the students by their names. Averaged weights are the baseline that needs no teacher."""


def configurations(seed: int, folder: Path) -> dict[str, Config]:
    """Return the configuration of every run by the name of its folder, in the order in which they are trained.

    Args:
        seed: the seed of the split, the noisy labels and the students; the seeds of the teachers follow from it.
        folder: the folder of the runs, where the student finds its teachers.
    """
    split = {"split_seed": seed}
    runs = {
        f"teacher-{number}": _replace(digits_teacher(), seed=1000 + NUM_TEACHERS * seed + number, data=split)
        for number in range(NUM_TEACHERS)
    }
    teachers = [f"run:{folder / name}@best" for name in runs]
    runs["at"] = _replace(digits_at(), seed=seed, data=split)
    runs["at-ema"] = _replace(digits_at(), seed=seed, data=split, optim={"ema": EMA_DECAY})
    runs["akd"] = _replace(digits_akd(), seed=seed, data=split, teachers=teachers)
    return runs


def _replace(config: Config, **values: Any) -> Config:
    """Return the configuration with other values; those of a section replace only the settings that they name."""
    old = config.model_dump(mode="json")
    new = {key: {**old[key], **value} if isinstance(value, dict) else value for key, value in values.items()}
    return make_config({**old, **new})


def quickstart(folder: Path, *, seed: int = 0) -> Path:
    """Train the teachers and the students, evaluate the students, print one table and write one page.

    Each core of the processor trains a network of its own. The same call resumes what was interrupted.

    Args:
        folder: the folder for the run directories and the page.
        seed: the seed of the students; the seeds of the teachers follow from it.

    Returns:
        The page.

    Raises:
        RunError: the folder holds something else, or a training fails.
    """
    start = time.monotonic()
    runs = configurations(seed, folder)
    threat = runs["akd"].threat.build()
    print(
        f"digits, {threat}: {NUM_TEACHERS} weakly trained robust teachers, then students trained with PGD-AT, with "
        "PGD-AT and averaged weights (EMA), and with AKD from the teachers",
        file=sys.stderr,
    )
    grid = Grid(name="quickstart", folder=folder, runs=runs)
    outcomes = run_grid(grid, make_workers(grid, workers=None))
    for name, outcome in outcomes.items():
        if outcome.error is not None:
            log = "" if outcome.log is None else f" (log: {outcome.log})"
            raise RunError(f"{name}: {outcome.error}{log}")
    records = {}
    for student, name in STUDENTS.items():
        average = "" if runs[name].optim.ema is None else "-ema"
        records[student] = evaluate_run(folder / name, checkpoints=[f"best{average}", f"last{average}"])
    comparison_table(records)
    page = report([folder / name for name in STUDENTS.values()], folder / "report.html")
    elapsed = clock(time.monotonic() - start)
    print(f"{elapsed} · open {page}")
    return page
