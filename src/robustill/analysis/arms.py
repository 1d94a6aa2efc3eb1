"""The arms of a comparison: runs that differ in their seed alone are one arm, and have one name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from robustill.analysis.method_names import method_name
from robustill.analysis.runs import FinishedRun, teacher_paths
from robustill.core.errors import printable

_OTHER_KEYS = ("seed", "teachers", "compute", "keep_every", "dynamics")
"""Parts of a configuration in which the runs of one arm may differ; their teachers are compared by name."""
_OTHER_DATA_KEYS = ("split_seed", "root", "download")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Runs of one configuration with different seeds, or a single network."""

    name: str
    runs: tuple[FinishedRun, ...]
    is_teacher: bool = False
    """whether its runs are teachers of other runs"""

    @property
    def evaluated(self) -> tuple[FinishedRun, ...]:
        """The runs that have an evaluation."""
        return tuple(run for run in self.runs if run.main is not None)

    def evaluated_as(self, kind: tuple[object, ...] | None) -> tuple[FinishedRun, ...]:
        """Return the runs whose main evaluation is of this kind."""
        return tuple(run for run in self.runs if run.main is not None and run.main.kind == kind)


def common_kind(arms: Sequence[Arm]) -> tuple[object, ...] | None:
    """Return the kind of main evaluation that most arms have, then most runs, then the first has; None without any."""
    kinds = [run.main.kind for arm in arms for run in arm.runs if run.main is not None]

    def frequency(kind: tuple[object, ...]) -> tuple[int, int]:
        return sum(bool(arm.evaluated_as(kind)) for arm in arms), kinds.count(kind)

    return max(dict.fromkeys(kinds), key=frequency, default=None)


def make_arms(runs: Sequence[FinishedRun]) -> list[Arm]:
    """Group runs into arms, in the order of their first runs, and give both unique names.

    An arm has the usual name of its method, or that and the label of its row in a study. Arms that would have the same
    name are told apart by the folder of their first run.
    """
    teachers = teacher_paths(runs)
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(_configuration(run), []).append(run)
    split = [part for group in groups.values() for part in _without_repetition(group)]
    names = _unique_names([(_base_name(group[0], teachers), group[0].path) for group in split])
    return [
        Arm(
            name=name,
            runs=tuple(replace(run, name=_run_name(name, run, len(group))) for run in group),
            is_teacher=group[0].path in teachers,
        )
        for name, group in zip(names, split, strict=True)
    ]


def _without_repetition(runs: list[FinishedRun]) -> list[list[FinishedRun]]:
    """Split runs of one configuration that have a seed twice: by the names of their folders, or else one by one.

    The same seed twice is no repetition: such runs differ in something that the configuration does not say.
    """

    def has_repetition(group: list[FinishedRun]) -> bool:
        return len({str(run.seed) for run in group}) < len(group)

    if not has_repetition(runs):
        return [runs]
    by_name: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_name.setdefault(run.path.resolve().name, []).append(run)
    return [
        part for group in by_name.values() for part in ([[run] for run in group] if has_repetition(group) else [group])
    ]


def _configuration(run: FinishedRun) -> str:
    """Return a text that is the same for runs of one configuration."""
    if run.is_network:
        return f"network {run.path}"
    values = {key: value for key, value in run.config.items() if key not in _OTHER_KEYS}
    if isinstance(values.get("data"), Mapping):
        values["data"] = {key: value for key, value in values["data"].items() if key not in _OTHER_DATA_KEYS}
    # The teachers of another seed have the same name in another folder.
    teachers = [{**each, "spec": str(each.get("spec")).rpartition("/")[2]} for each in run.teachers]
    label = None if run.row is None else (run.row.study, run.row.label)
    return json.dumps([values, teachers, run.average, label], sort_keys=True, default=str)


def _base_name(run: FinishedRun, teachers: set[Path]) -> str:
    name = printable(run.method_name)
    if run.row is None:
        return f"{name} teacher" if run.path in teachers else name
    label = run.row.label
    rest = label.removeprefix(run.method)
    if rest != label and rest[:1] in ("", ",", " "):
        return f"{name}{rest}"
    # A label of the user's own, such as "TRADES" or "TRADES with AWP", says the method already.
    words, method = label.casefold(), method_name(run.config, None).casefold()
    return label if method in words or words in name.casefold() else f"{name}, {label}"


def _unique_names(names: Sequence[tuple[str, Path]]) -> list[str]:
    """Return names that are all different: with the folder where two are the same, with the path where that is."""
    plain = [name for name, _ in names]
    with_folder = [f"{name} ({printable(path.resolve().name)})" for name, path in names]
    chosen = []
    for (name, path), longer in zip(names, with_folder, strict=True):
        if plain.count(name) == 1:
            chosen.append(name)
        else:
            chosen.append(longer if with_folder.count(longer) == 1 else f"{name} ({printable(str(path))})")
    return chosen


def _run_name(arm: str, run: FinishedRun, num_runs: int) -> str:
    return arm if num_runs == 1 else f"{arm}, seed {printable(str(run.seed))}"


def same_task(a: FinishedRun, b: FinishedRun) -> bool:
    """Return whether two runs train the same network on the same data against the same threat.

    Networks without a run have the same task if they were evaluated on the same data.
    """
    keys = ("data.name",) if a.is_network and b.is_network else ("data.name", "model", "threat")
    return a.is_network == b.is_network and all(a.get(key) == b.get(key) for key in keys)
