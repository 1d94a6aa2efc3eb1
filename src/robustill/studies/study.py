"""A study from its name: which runs, and which rows of a table they fill."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from robustill.core.user_code import TrustCode, import_user_module, only_named
from robustill.studies.builtin import OF_NO_METHOD, STUDIES
from robustill.studies.design import Design, EvaluationRequest, Row, StudyRuns

# What a study gives to each run itself.
_GIVEN = {
    "seed": "--seeds",
    "data.split_seed": "--seeds",
    "data.folds": "the study memorisation",
    "data.fold": "the study memorisation",
    "teachers": "--teacher.model, --teacher.optim ...",
}
POOL = EvaluationRequest(suite="pgd-20", split="pool")
"""Of the runs on a part of the training images: one attack, for there are many of them."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of runs and the table that they fill: data alone, a pure function of what was asked for.

    Args:
        name: of its results, e.g. "teacher-eps-rslad".
        what: in one line.
        design: its rows.
        folder: for everything that it writes.
        seeds: each has its own split, wrong labels, teachers and students.
        runs: by their folder inside `folder`, e.g. "seed-0/teacher-0".
        suite: of the evaluation at the end of each run that is a row.
        num_images: how many test images that evaluation takes, of every class the same share; None for all.
        command: that repeats it.
    """

    name: str
    what: str
    design: Design
    folder: Path
    seeds: tuple[int, ...]
    runs: dict[str, Config]
    suite: str
    num_images: int | None
    command: str

    @cached_property
    def rows(self) -> frozenset[str]:
        """The runs that are a row of the table: students and baselines, not teachers."""
        return frozenset(self.run_of(seed, row) for seed in self.seeds for row in self.design.rows)

    @cached_property
    def subsets(self) -> frozenset[str]:
        """The runs on a part of the training images, from which memorisation is read."""
        runs = {run for each in self.design.subsets for run in each.runs}
        return frozenset(f"{seed_folder(seed)}/{run}" for seed in self.seeds for run in runs)

    @cached_property
    def code(self) -> tuple[str, ...]:
        """The import paths that its runs name."""
        return tuple(dict.fromkeys(path for config in self.runs.values() for path in named_code(config)))

    def asked(self, run: str) -> EvaluationRequest | None:
        """The evaluation at the end of a run; None for a teacher."""
        if run in self.subsets:
            return POOL
        return EvaluationRequest(suite=self.suite, num_images=self.num_images) if run in self.rows else None

    def run_of(self, seed: int, row: Row) -> str:
        """The run of a row."""
        return f"{seed_folder(seed)}/{row.run}"

    @cached_property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """The runs that must be there before a run can begin, found in its specifications `run:`."""
        by_path = {str(self.folder / name): name for name in self.runs}
        return {name: tuple(dict.fromkeys(_needed(config, by_path))) for name, config in self.runs.items()}


def _check(name: str, design: Any, runs: StudyRuns) -> None:
    """Whether a study's rows are runs that it made, before hours are spent."""
    if not isinstance(design, Design) or not design.rows:
        raise ConfigError(f"study {name} gives {design!r}: expected a Design with at least one Row")
    labels = [row.label for row in design.rows]
    for row in design.rows:
        if row.run not in runs.found:
            raise ConfigError(
                f"study {name}: row {row.label!r} is run {row.run!r}, which it did not make: expected what "
                "runs.baseline(), runs.teacher() or runs.student() gave"
            )
        if row.against is not None and row.against not in labels:
            raise ConfigError(f"study {name}: row {row.label!r} is compared with {row.against!r}, which is no row")


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
    """A ready study, or one's own.

    Args:
        name: a key of STUDIES, or "my_pkg.my_mod:my_study", a function from Runs to a Design.
        folder: for everything that it writes.
        seeds: how many, from 0.
        recipe: the baseline: a recipe without teachers, or a .yaml file.
        overrides: of the recipe, for teachers and students alike; --method and --method.* are the students';
            --teacher.* are the teachers' alone, such as --teacher.model.width 32; --study.* are the study's own.
        suite: of the evaluation.
        num_images: how many test images it takes; None for all.
        trust_code: import paths that a .yaml file of the recipe may name; True is all of them.

    Raises:
        ConfigError: something of it does not exist or cannot be.
    """
    function, parts = _function(name), _parted(overrides)
    if function in OF_NO_METHOD and parts["method"]:
        raise ConfigError(f"study {name} is about no single method: leave --method out")
    base = resolve(recipe, parts[""], trust_code=trust_code)
    if base.teachers:
        raise ConfigError(f"recipe {recipe} has teachers, which a study chooses: give one without, such as digits_at")
    find_suite(suite)
    if num_images is not None and num_images < 1:
        raise ConfigError(f"--num-images is {num_images}: expected at least 1")
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}: expected at least 1")
    values = base.model_dump(mode="json")
    teacher = make_config(apply_overrides(values, parts["teacher"])).model_dump(mode="json")
    method = apply_overrides({"method": {"name": "akd"}}, parts["method"])["method"]
    settings = _settings(name, function, parts["study"])
    runs: dict[str, Config] = {}
    for seed in range(seeds):
        place = folder / seed_folder(seed)
        of_seed = StudyRuns(values, teacher, method, seed, place)
        # What a function of the user's names is named by the user.
        with only_named(trust=True) if ":" in name else nullcontext():
            design = function(of_seed, **settings)
        _check(name, design, of_seed)
        runs |= {f"{seed_folder(seed)}/{run}": config for run, config in of_seed.found.items()}
    few = "" if num_images is None else f" --num-images {num_images}"
    asked = f" --seeds {seeds} --recipe {recipe} --suite {suite}{few} --runs {folder}"
    return Study(
        name=_named(name) + ("" if function in OF_NO_METHOD else f"-{_named(method['name'])}"),
        what=(inspect.getdoc(function) or "").partition("\n")[0],
        design=design,
        folder=folder,
        seeds=tuple(range(seeds)),
        runs=runs,
        suite=suite,
        num_images=num_images,
        command=f"robustill study {name}{asked} {shlex.join(overrides)}".strip(),
    )


def seed_folder(seed: int) -> str:
    """Where the runs of a seed lie inside the folder of a study."""
    return f"seed-{seed}"


def default_folder(name: str) -> Path:
    """Where a study lies if nothing else is said: one folder for each of STUDIES, whatever the method."""
    return Path("runs") / _named(name)


def _function(name: str) -> Callable[..., Design]:
    if name in STUDIES:
        return STUDIES[name]
    if ":" not in name:
        raise ConfigError(f"study {name!r} is unknown: {did_you_mean(name, STUDIES)}")
    try:
        found = getattr(import_user_module(name), name.partition(":")[2])
    except RobustillError:
        raise
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"study {name!r} cannot be imported: {error}") from None
    if not callable(found):
        raise ConfigError(f"study {name!r} is a {type(found).__name__}, expected a function from Runs to a Design")
    return found  # type: ignore[no-any-return]


def _settings(name: str, function: Callable[..., Design], tokens: Sequence[str]) -> dict[str, int]:
    """--study.KEY NUMBER, for what a study's function takes by name beside its runs."""
    given: Mapping[str, Any] = apply_overrides({}, tokens).get("study", {})
    known = [each.name for each in inspect.signature(function).parameters.values() if each.kind is each.KEYWORD_ONLY]
    for key, value in given.items():
        if key not in known:
            hint = did_you_mean(key, known) if known else "it has none of its own"
            raise ConfigError(f"study {name} has no setting {key!r}: {hint}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"--study.{key} is {value}: expected a whole number above 0")
    return dict(given)


def _parted(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Overrides of the recipe, of the students' method, of the teachers alone, and settings of the study."""
    parts: dict[str, list[str]] = {"": [], "method": [], "teacher": [], "study": []}
    group = ""
    for token in overrides:
        if token.startswith("--"):
            key = token[2:].partition("=")[0].replace("-", "_")
            group = key.partition(".")[0]
            group = group if group in parts else ""
            if group == "teacher":
                key, token = key.removeprefix("teacher."), token.replace("--teacher.", "--", 1)
            if key in _GIVEN:
                raise ConfigError(f"a study sets {key} itself: leave --{key} out, and see {_GIVEN[key]}")
        parts[group].append(token)
    return parts


def _named(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name.rpartition(":")[2])


def _needed(config: Config, by_path: Mapping[str, str]) -> Iterator[str]:
    for spec in (*(teacher.spec for teacher in config.teachers), config.initial or ""):
        kind, _, rest = spec.partition(":")
        path = str(Path(rest.partition("@")[0]))
        if kind == "run" and path in by_path:
            yield by_path[path]
