"""Verbs of the command line for grids of runs: `study` and `plan`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from robustill.cli.parameters import Overrides, TrustCode
from robustill.core.errors import RobustillError, did_you_mean
from robustill.core.user_code import only_named


def study(
    study: str,
    *overrides: Overrides,
    seeds: int = 3,
    workers: int | None = None,
    runs: Path | None = None,
    recipe: str = "digits_at",
    suite: str = "pgd",
    num_images: int | None = None,
    engine: Literal["local", "ray"] = "local",
    trust_code: TrustCode = None,
) -> None:
    """Run a grid of configurations and seeds with shared teachers; stopped and called again, it goes on.

    Overrides are of the recipe, for teachers and students alike; --method ard and --method.* are the students';
    --teacher.* are the teachers' alone, such as --teacher.model.width 32.

    Parameters
    ----------
    study
        One of `robustill list studies`, or my_pkg.my_mod:my_study.
    seeds
        How many; each has its own split, teachers and students.
    workers
        Runs at once; by default as many as the cores have room for.
    runs
        The folder for its runs and results, runs/STUDY by default; studies of one recipe in one folder share runs.
    recipe
        The baseline, a recipe without teachers or a .yaml file.
    suite
        Of the evaluation at the end of each run, see `robustill list suites`.
    num_images
        How many test images that evaluation takes; by default all.
    engine
        ray: a task a run, on this machine or on the cluster that RAY_ADDRESS names.
    """
    from robustill.cli.study_tables import print_results
    from robustill.studies.scheduler import run_study, study_and_workers

    trust = trust_code or ()
    planned, crew = study_and_workers(study, overrides, seeds, workers, runs, recipe, suite, num_images, engine, trust)
    result = run_study(planned, crew, trust_code=trust)
    print_results(planned, result)
    if any(outcome.error for outcome in result.outcomes.values()):
        sys.exit(1)


def plan(
    name: str,
    *overrides: Overrides,
    seeds: int = 3,
    workers: int | None = None,
    runs: Path | None = None,
    recipe: str = "digits_at",
    suite: str = "pgd",
    num_images: int | None = None,
    trust_code: TrustCode = None,
) -> None:
    """Print what a run or a study will cost on this machine; nothing is trained or written.

    Of a run: passes, floating-point operations, images/s and memory of its own training step, measured, and the hours
    that follow. Of a study: the grid of its runs, what they share, and how long it takes about.

    Parameters
    ----------
    name
        A recipe or a .yaml file for one run; otherwise a study, and all that follows as for `robustill study`.
    """
    from robustill.config.recipes import RECIPES, resolve

    trust = trust_code or ()
    if name in RECIPES or Path(name).suffix in (".yaml", ".yml"):
        from robustill.cli.tables import forecast_table
        from robustill.training.cost import forecast

        forecast_table(name, forecast(resolve(name, overrides, trust_code=trust), trust_code=trust))
        return
    from robustill.cli.study_tables import print_plan
    from robustill.studies import STUDIES
    from robustill.studies.scheduler import study_and_workers

    if name not in STUDIES and ":" not in name:
        known = did_you_mean(name, [*RECIPES, *STUDIES])
        raise RobustillError(f"{name!r} is no recipe, no .yaml file and no study: {known}")
    found = study_and_workers(name, overrides, seeds, workers, runs, recipe, suite, num_images, "local", trust)
    with only_named(*found[0].code, trust=trust):
        print_plan(*found)
