"""The main job on bundled images, in minutes: weak teachers, students without and with them, a table, a page."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from robustill.cli.tables import comparison_table
from robustill.config.recipes import digits_akd, digits_at, digits_teacher
from robustill.config.schema import Config, make_config
from robustill.core.formatting import clock
from robustill.evaluation.targets import evaluate_run
from robustill.report import report
from robustill.training.loop import train

NUM_TEACHERS = 3


def configurations(seed: int, folder: Path) -> dict[str, Config]:
    """Every run of the quickstart, by its folder's name, in the order in which they must be trained.

    Args:
        seed: of the split, the wrong labels and the students; the teachers' seeds follow from it.
        folder: where the runs lie, so that the student finds its teachers.
    """
    split = {"split_seed": seed}
    runs = {
        f"teacher-{number}": _changed(digits_teacher(), seed=1000 + NUM_TEACHERS * seed + number, data=split)
        for number in range(NUM_TEACHERS)
    }
    teachers = [f"run:{folder / name}@best" for name in runs]
    runs["at"] = _changed(digits_at(), seed=seed, data=split)
    runs["akd"] = _changed(digits_akd(), seed=seed, data=split, teachers=teachers)
    return runs


def _changed(config: Config, *, data: dict[str, Any], **values: Any) -> Config:
    plain = config.model_dump(mode="json")
    return make_config({**plain, **values, "data": {**plain["data"], **data}})


def quickstart(folder: Path, *, seed: int = 0) -> Path:
    """Train, evaluate, print one table and write one page.

    Args:
        folder: for the run directories and the page.
        seed: of the students; the teachers' seeds follow from it.

    Returns:
        The page.
    """
    began = time.monotonic()
    runs = configurations(seed, folder)
    say = f"{NUM_TEACHERS} weakly adversarially trained teachers, then the same student by PGD-AT and by AKD"
    print(f"digits, {runs['akd'].threat.build()}: {say}", file=sys.stderr)
    for name, config in runs.items():
        train(config, folder / name)
    students = [folder / "at", folder / "akd"]
    comparison_table({student.name: evaluate_run(student) for student in students})
    page = report(students, folder / "report.html")
    print(f"{clock(time.monotonic() - began)} · look at {page}")
    return page
