"""What is known of every name that other commands take, from the tables of methods, models, data sets, recipes ...

`python docs/make_reference.py` writes it to names.json, from which `robustill list` reads it.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Sequence

from robustill.attacks.suites import SUITES
from robustill.config.recipes import RECIPES
from robustill.data import DATASETS
from robustill.methods import METHODS, Method, build_method, method_options
from robustill.methods.base import SELF
from robustill.models import MODELS
from robustill.models.robustbench import ZOO
from robustill.studies import STUDIES
from robustill.training.cost import count_passes

PASSES_STEPS = 10
"""The number of steps of PGD for which the passes of a method are counted."""


def names_text() -> str:
    """Return the content of names.json: the rows of each kind, one a line."""
    kinds = []
    for kind, rows in LISTS.items():
        lines = ",\n".join(json.dumps([each for each in row if each], ensure_ascii=False) for row in rows())
        kinds.append(f"{json.dumps(kind)}: [\n{lines}\n]")
    return "{\n" + ",\n".join(kinds) + "\n}\n"


def _methods() -> Iterable[Sequence[str]]:
    for name, method in METHODS.items():
        facts = [
            "learns from the average of its own weights, optim.ema" if SELF in method.roles else "",
            f"passes with {PASSES_STEPS} attack steps: {_passes(name)}",
            ", ".join(f"{key}={_short(each.default)}" for key, each in method_options(name).items()),
            method.reference or "",
        ]
        # The first line of the module says in words what the first line of the class says as a formula.
        _, _, words = _first_line(sys.modules[method.__module__]).partition(": ")
        doc = inspect.getdoc(method) or ""
        yield name, words.removesuffix("."), _teachers(method), doc, " · ".join(fact for fact in facts if fact)


def _teachers(method: type[Method]) -> str:
    """Return which teachers the user must give to a method."""
    given = [f"a {role}" for role in method.roles if role != SELF]
    return f"with {' and '.join(given)} teacher" if given else "without a teacher"


def _passes(name: str) -> str:
    """Return the passes of a step, of the student and of the other networks together."""
    counts = count_passes(build_method(name), PASSES_STEPS)
    student = f"student {counts.student_forward} forward {counts.student_backward} backward"
    if counts.teacher_forward == 0:
        return student
    roles = METHODS[name].roles
    other = "average" if roles == (SELF,) else "teacher" if roles else "network beside it"
    return f"{student}, {other} {counts.teacher_forward} forward {counts.teacher_backward} backward"


def _models() -> Iterable[Sequence[str]]:
    for name, entry in MODELS.items():
        yield name, entry.description, ", ".join(f"{key}={_short(value)}" for key, value in entry.options.items())


def _data() -> Iterable[Sequence[str]]:
    for name, entry in DATASETS.items():
        yield name, entry.description


def _recipes() -> Iterable[Sequence[str]]:
    for name, recipe in RECIPES.items():
        yield name, _first_line(recipe)


def _studies() -> Iterable[Sequence[str]]:
    for name, study in STUDIES.items():
        yield name, _first_line(study)


def _suites() -> Iterable[Sequence[str]]:
    for name, suite in SUITES.items():
        yield name, str(suite)


def _robustbench() -> Iterable[Sequence[str]]:
    for entry in ZOO:
        options = " ".join(f"{key}={value}" for key, value in entry.options.items() if key not in ("mean", "std"))
        # The accuracies of RobustBench's leaderboard.
        accuracies = f"clean {entry.clean:.2f} %, AutoAttack {entry.autoattack:.2f} %"
        yield f"robustbench:{entry.data}/{entry.norm}/{entry.name}", f"{accuracies}; {entry.model} {options}".strip()


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


LISTS: dict[str, Callable[[], Iterable[Sequence[str]]]] = {
    "methods": _methods,
    "models": _models,
    "data": _data,
    "recipes": _recipes,
    "studies": _studies,
    "suites": _suites,
    "robustbench": _robustbench,
}
"""The kinds of names that `robustill list` prints: functions that yield a name and lines that describe it."""
