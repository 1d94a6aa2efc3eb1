"""A study as data: its runs, what they need, and the rows of the table that they fill."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustill.attacks.suites import find_suite
from robustill.config.files import named_code
from robustill.config.overrides import apply_overrides
from robustill.config.recipes import resolve
from robustill.config.schema import Config, make_config
from robustill.core.errors import ConfigError, RobustillError, did_you_mean
from robustill.core.formatting import slug
from robustill.core.user_code import TrustCode, describe_failure, import_user_module, only_named, trusted_paths
from robustill.models.onnx import require
from robustill.studies.builtin import STUDIES, WITHOUT_METHOD
from robustill.studies.design import Design, EvaluationRequest, Row, StudyRuns
from robustill.studies.grid import Grid

# Settings that the study sets for each run, and the option to use in their place.
_SET_BY_STUDY = {
    "seed": "--seeds",
    "data.split_seed": "--seeds",
    "data.folds": "the study memorisation",
    "data.fold": "the study memorisation",
    "teachers": "--teacher.model, --teacher.optim ...",
}
POOL_EVALUATION = EvaluationRequest(suite="pgd-20", split="pool")
"""The evaluation of a run on a subset of the training images: a single attack, since there are many such runs."""


@dataclass(frozen=True, kw_only=True)
class Study(Grid):
    """A grid of runs and the table that they fill; plain data, which depends on the arguments of `make_study` alone.

    Args:
        name: the name of its files of results, e.g. "teacher-eps-rslad".
        description: one sentence.
        design: its rows.
        folder: the folder for everything that it writes.
        seeds: the seeds; each has its own data split, noisy labels, teachers and students.
        runs: the configuration of each run by its folder inside `folder`, e.g. "seed-0/teacher-0".
        suite: the attacks of the evaluation at the end of each run that is a row.
        num_images: number of test images in that evaluation, class-balanced; None for all.
        command: the command line that repeats the study.
        checkpoints: those that are evaluated; None for the best and the last epoch, and their averages.
    """

    description: str
    design: Design
    seeds: tuple[int, ...]
    suite: str
    num_images: int | None
    command: str
    checkpoints: tuple[str, ...] | None = None

    @cached_property
    def rows(self) -> frozenset[str]:
        """The runs that are a row of the table: students and baselines, not teachers."""
        return frozenset(self.run_of(seed, row) for seed in self.seeds for row in self.design.rows)

    @cached_property
    def subsets(self) -> frozenset[str]:
        """The runs on subsets of the training images, which measure memorisation."""
        runs = {run for each in self.design.subsets for run in each.runs}
        return frozenset(f"{seed_folder(seed)}/{run}" for seed in self.seeds for run in runs)

    @cached_property
    def cannot_ship(self) -> str | None:
        """Why the runs of a design with `ship` are not exported here, in one line; None if they are."""
        try:
            require("onnx", "onnxscript", "onnxruntime")
        except ConfigError as error:
            return f"not measured and attacked as they are shipped: {error}"
        return None

    def evaluation(self, run: str) -> EvaluationRequest | None:
        """Return the evaluation at the end of a run; None for a teacher."""
        if run in self.subsets:
            return POOL_EVALUATION
        if run not in self.rows:
            return None
        ship = self.design.ship and self.cannot_ship is None
        return EvaluationRequest(suite=self.suite, num_images=self.num_images, ship=ship, checkpoints=self.checkpoints)

    def run_of(self, seed: int, row: Row) -> str:
        """Return the name of a row's run of one seed."""
        return f"{seed_folder(seed)}/{row.run}"


def _check_design(name: str, design: Any, runs: StudyRuns) -> None:
    """Check, before any training, that every row and every teacher is a run that the study added.

    Raises:
        ConfigError: one is not, two rows have one label, or the function returned no design.
    """
    if not isinstance(design, Design) or not design.rows:
        raise ConfigError(f"study {name} returned {design!r}: expected a Design with at least one Row")
    labels = [row.label for row in design.rows]
    for row in design.rows:
        if labels.count(row.label) > 1:
            raise ConfigError(f"study {name} has two rows {row.label!r}: give each its own label")
        if row.run not in runs.configs:
            raise ConfigError(
                f"study {name}: row {row.label!r} is run {row.run!r}, which it did not add: expected a name that "
                "runs.baseline(), runs.teacher() or runs.student() returned"
            )
        if row.against is not None and row.against not in labels:
            raise ConfigError(f"study {name}: row {row.label!r} is compared with {row.against!r}, which is no row")
    for run in runs.configs:
        for missing in runs.teachers_of(run) - runs.configs.keys():
            raise ConfigError(f"study {name}: run {run!r} learns from {missing!r}, which the study did not add")


def make_study(
    name: str,
    *,
    folder: Path,
    seeds: int = 3,
    recipe: str = "digits_at",
    overrides: Sequence[str] = (),
    suite: str = "pgd",
    num_images: int | None = None,
    trust_code: TrustCode = False,
) -> Study:
    """Build a study: one of STUDIES, or your own.

    Args:
        name: a key of STUDIES, or "my_pkg.my_mod:my_study", a function from StudyRuns to a Design.
        folder: the folder for everything that the study writes.
        seeds: number of seeds, counted from 0.
        recipe: the configuration of the baseline: a recipe without teachers, or a .yaml file.
        overrides: settings of the recipe, for teachers and students; --method and --method.* hold for the students
            alone, --teacher.* for the teachers alone, such as --teacher.model.width 32; --study.* are options of the
            study itself.
        suite: the attacks of the evaluation at the end of each run.
        num_images: number of test images in that evaluation; None for all.
        trust_code: import paths that a .yaml file of the recipe may name; True is all of them.

    Raises:
        ConfigError: a name is unknown, or a setting is impossible.
    """
    function = _study_function(name)
    parts = _split_overrides(overrides)
    takes_method = function not in WITHOUT_METHOD
    if parts["method"] and not takes_method:
        raise ConfigError(f"study {name} has its own methods: leave --method out")
    base = resolve(recipe, parts[""], trust_code=trust_code)
    if base.teachers:
        raise ConfigError(
            f"recipe {recipe} has teachers, but a study chooses them: give a recipe without, such as digits_at"
        )
    find_suite(suite)
    if num_images is not None and num_images < 1:
        raise ConfigError(f"--num-images is {num_images}: expected at least 1")
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}: expected at least 1")
    values = base.model_dump(mode="json")
    teacher = make_config(apply_overrides(values, parts["teacher"])).model_dump(mode="json")
    method = apply_overrides({"method": {"name": "akd"}}, parts["method"])["method"]
    options = _study_options(name, function, parts["study"])
    runs: dict[str, Config] = {}
    for seed in range(seeds):
        seed_runs = StudyRuns(values, teacher, method, seed, folder / seed_folder(seed))
        # The user named the function, and with it everything that the function names.
        with only_named(trust=True) if ":" in name else nullcontext():
            design = _design(name, function, seed_runs, options)
        _check_design(name, design, seed_runs)
        runs |= {f"{seed_folder(seed)}/{run}": config for run, config in seed_runs.configs.items()}
    words = [name, "--seeds", str(seeds), "--recipe", recipe, "--suite", suite]
    if num_images is not None:
        words += ["--num-images", str(num_images)]
    words += ["--runs", str(folder), *overrides]
    trusted = named_code(base) if trust_code is True else trusted_paths(trust_code)
    if trusted:
        words += ["--trust-code", ",".join(trusted)]
    return Study(
        name=f"{_short_name(name)}-{_short_name(method['name'])}" if takes_method else _short_name(name),
        description=(inspect.getdoc(function) or "").partition("\n")[0],
        design=design,
        folder=folder,
        seeds=tuple(range(seeds)),
        runs=runs,
        suite=suite,
        num_images=num_images,
        command=f"robustill study {shlex.join(words)}",
    )


def seed_folder(seed: int) -> str:
    """Return the name of the folder of a seed's runs, inside the folder of the study."""
    return f"seed-{seed}"


def default_folder(name: str) -> Path:
    """Return the default folder of a study, which does not depend on the method."""
    return Path("runs") / _short_name(name)


def _study_function(name: str) -> Callable[..., Design]:
    if name in STUDIES:
        return STUDIES[name]
    if ":" not in name:
        raise ConfigError(f"study {name!r} is unknown: {did_you_mean(name, STUDIES)}")
    module, _, function_name = name.partition(":")
    try:
        function = getattr(import_user_module(name), function_name, None)
    except ImportError as error:
        raise ConfigError(f"study {name!r} cannot be imported: {error}") from None
    if function is None:
        raise ConfigError(f"study {name!r} cannot be imported: {module} has no function {function_name!r}")
    if not callable(function):
        raise ConfigError(
            f"study {name!r} is a {type(function).__name__}: expected a function from StudyRuns to a Design"
        )
    return function  # type: ignore[no-any-return]


def _design(name: str, function: Callable[..., Design], runs: StudyRuns, options: Mapping[str, Any]) -> Design:
    """Call the function of a study.

    Raises:
        ConfigError: it fails.
    """
    try:
        return function(runs, **options)
    except RobustillError:
        raise
    except Exception as error:  # A user's function can raise anything.
        raise ConfigError(f"study {name} failed: {describe_failure(error)}") from error


def _study_options(name: str, function: Callable[..., Design], tokens: Sequence[str]) -> dict[str, Any]:
    """Read --study.KEY VALUE: the keyword-only arguments of a study's function, which checks their values.

    Raises:
        ConfigError: the study has no such option, or lacks one without a default.
    """
    options: Mapping[str, Any] = apply_overrides({}, tokens).get("study", {})
    parameters = inspect.signature(function).parameters.values()
    keywords = [each for each in parameters if each.kind is each.KEYWORD_ONLY]
    names = [each.name for each in keywords]
    for key in options:
        if key not in names:
            hint = did_you_mean(key, names) if names else "it has no options of its own"
            raise ConfigError(f"study {name} has no option {key!r}: {hint}")
    for each in keywords:
        if each.default is each.empty and each.name not in options:
            raise ConfigError(f"study {name} needs a value of {each.name}: give --study.{each.name}")
    return dict(options)


def _split_overrides(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Split the overrides into those of the recipe (""), of the students' method, of the teachers, and of the study.

    Raises:
        ConfigError: one of them is a setting that the study sets itself.
    """
    parts: dict[str, list[str]] = {"": [], "method": [], "teacher": [], "study": []}
    group = ""
    for token in overrides:
        if token.startswith("--"):
            key = token[2:].partition("=")[0].replace("-", "_")
            group = key.partition(".")[0]
            if group not in parts:
                group = ""
            if group == "teacher":
                key = key.removeprefix("teacher.")
                token = token.replace("--teacher.", "--", 1)
            if key in _SET_BY_STUDY:
                raise ConfigError(f"a study sets {key} itself: leave --{key} out, and see {_SET_BY_STUDY[key]}")
        parts[group].append(token)
    return parts


def _short_name(name: str) -> str:
    """Return the name of a study or method without its module, as part of a file name."""
    return slug(name.rpartition(":")[2])
