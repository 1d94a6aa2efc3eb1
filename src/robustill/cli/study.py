"""The commands for grids of runs: `study` and `plan`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts

from robustill.cli.parameters import Overrides, TrustCode, check_options, completing
from robustill.core.errors import RobustillError, did_you_mean
from robustill.core.user_code import only_named

if TYPE_CHECKING:
    from robustill.studies import Study
    from robustill.studies.engines import EngineName, Workers


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """The options that `study` and `plan` share; the text of a field is its help on the command line."""

    seeds: int = 3
    """Number of seeds, counted from 0. Each has its own data split, teachers and students."""
    workers: int | None = None
    """Number of runs at a time; by default as many as the CPU cores or GPUs allow."""
    runs: Annotated[
        Path | None,
        cyclopts.Parameter(
            help="Folder for the runs and the results; by default runs/STUDY. Studies of the same recipe in the same "
            "folder share the runs that they have in common."
        ),
    ] = None
    recipe: Annotated[str, cyclopts.Parameter(completer=completing("recipes"))] = "digits_at"
    """Configuration of the baseline: a recipe without teachers, or a .yaml file."""
    suite: Annotated[str, cyclopts.Parameter(completer=completing("suites"))] = "pgd"
    """Attacks of the evaluation at the end of each run; see `robustill list suites`."""
    num_images: int | None = None
    """Number of test images in that evaluation, class-balanced; by default all."""
    trust_code: TrustCode = None


def study(
    study: Annotated[str, cyclopts.Parameter(completer=completing("studies"))],
    *overrides: Overrides,
    options: StudyOptions = StudyOptions(),
    engine: Annotated[
        Literal["local", "ray", "submitit"],
        cyclopts.Parameter(
            help="local: one process a run on this machine. ray: one task a run, on this machine or on the cluster "
            "that the environment variable RAY_ADDRESS names. submitit: one SLURM job a run, with the partition, "
            "account and time limit of SBATCH_PARTITION, SBATCH_ACCOUNT and SBATCH_TIMELIMIT, and a GPU with "
            "--compute.device cuda or if this machine has one; processes here if there is no SLURM."
        ),
    ] = "local",
    gpus_per_run: Annotated[
        float,
        cyclopts.Parameter(
            help="Share of a GPU for each run, so that several small students train on one: 0.25. Each run uses one "
            "GPU if the machine or the Ray cluster has any."
        ),
    ] = 1.0,
    part: Annotated[
        str | None,
        cyclopts.Parameter(
            help="i/n, such as 2/8: only the i-th of n parts, for job arrays. The runs are dealt out to the parts in "
            "turn, those that need no other run first. A part leaves out the runs whose teachers another part has not "
            "finished, and prints the command that finishes them; the part that ends last writes the table."
        ),
    ] = None,
) -> None:
    """Run a grid of configurations and seeds with shared teachers, and write one table; the same command resumes it.

    Settings that follow hold for the teachers and the students, except for
      --method NAME, --method.OPTION   the method of the students
      --teacher.GROUP.KEY              the teachers alone: --teacher.model.width 32
      --study.KEY                      options of the study itself

    Parameters
    ----------
    study
        A study of `robustill list studies`, or your own function: my_pkg.my_mod:my_study.
    """
    from robustill.cli.study_tables import print_part, print_results
    from robustill.studies.parts import Part
    from robustill.studies.scheduler import run_study

    chosen = None if part is None else Part.parse(part)
    planned, workers = _study_and_workers(study, overrides, options, engine, gpus_per_run)
    result = run_study(planned, workers, part=chosen, trust_code=options.trust_code or ())
    if chosen is None or result.files:
        print_results(planned, result)
    else:
        print_part(planned, chosen, result)
    if any(outcome.error for outcome in result.outcomes.values()):
        sys.exit(1)


def plan(
    name: Annotated[str, cyclopts.Parameter(completer=completing("recipes", "studies"))],
    *overrides: Overrides,
    options: StudyOptions = StudyOptions(),
    device_profile: Literal["v100", "a100", "h100", "h200", "rtx4090"] | None = None,
) -> None:
    """Print what a run or a study will cost on this machine; nothing is trained or written.

    For a run: its passes, floating-point operations, images/s and memory,
    measured on a few training steps, and the hours that follow from them.
    With --device-profile, its hours on a GPU that is not here, a rough
    forecast from counted operations and an assumed share of its peak.
    For a study: its runs, what they share, and the estimated time.

    Parameters
    ----------
    name
        A recipe or a .yaml file, for the cost of one run; or a study, with the options of `robustill study`.
    device_profile
        A GPU, for a forecast without a measurement.
    """
    from robustill.config.recipes import RECIPES, resolve

    trust = options.trust_code or ()
    if name in RECIPES or Path(name).suffix in (".yaml", ".yml"):
        from robustill.cli.tables import forecast_table, profile_table
        from robustill.training.cost import forecast
        from robustill.training.device_profiles import forecast_on

        config = resolve(name, overrides, trust_code=trust)
        if device_profile is None:
            forecast_table(name, forecast(config, trust_code=trust))
        else:
            profile_table(name, forecast_on(config, device_profile, trust_code=trust))
        return
    if device_profile is not None:
        raise RobustillError(f"--device-profile is for one run, and {name} is a study: give a recipe or a .yaml file")
    from robustill.cli.study_tables import print_plan
    from robustill.studies import STUDIES

    if name not in STUDIES and ":" not in name:
        hint = did_you_mean(name, [*RECIPES, *STUDIES])
        raise RobustillError(f"{name!r} is no recipe, no .yaml file and no study: {hint}")
    planned, workers = _study_and_workers(name, overrides, options)
    with only_named(*planned.code, trust=trust):
        print_plan(planned, workers)


def _study_and_workers(
    name: str,
    overrides: Sequence[str],
    options: StudyOptions,
    engine: EngineName = "local",
    gpus_per_run: float = 1.0,
) -> tuple[Study, Workers]:
    """Build the study and its workers from the arguments of the command line."""
    check_options(overrides, [*(each.name for each in fields(StudyOptions)), "engine", "gpus_per_run", "part"])
    from robustill.studies import default_folder, make_study
    from robustill.studies.scheduler import make_workers

    planned = make_study(
        name,
        folder=default_folder(name) if options.runs is None else options.runs,
        seeds=options.seeds,
        recipe=options.recipe,
        overrides=overrides,
        suite=options.suite,
        num_images=options.num_images,
        trust_code=options.trust_code or (),
    )
    threads_given = any(token.partition("=")[0] == "--compute.threads" for token in overrides)
    return planned, make_workers(
        planned,
        workers=options.workers,
        engine=engine,
        gpus_per_run=gpus_per_run,
        threads_given=threads_given,
    )
