"""Finished runs: run directories and their evaluations, read from disk for the report without calling a model."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from robustill.analysis.summary import summary
from robustill.core.errors import RobustillError, RunError, printable
from robustill.core.formatting import radius
from robustill.runs.directory import RunDirectory, split_checkpoint
from robustill.runs.dynamics import Dynamics, has_dynamics, read_dynamics
from robustill.runs.records import Records, has_lost_its_summary

# The checkpoint that was selected comes first; the others follow in this order.
_CHECKPOINT_ORDER = ("best", "best-ema", "best-swa", "last", "last-ema", "last-swa")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of a run: a folder of evaluations/, e.g. test-best-pgd."""

    name: str
    records: Records

    @cached_property
    def results(self) -> dict[str, Any]:
        """The numbers, computed from the records; those of summary.json are not used."""
        return summary(self.records)

    @property
    def conditions(self) -> dict[str, Any]:
        """The conditions under which the numbers hold."""
        return self.records.conditions

    @property
    def split(self) -> str:
        """The split of the images, e.g. "test"."""
        return str(self.conditions.get("split") or self.name.partition("-")[0])

    @property
    def checkpoint(self) -> str:
        """The checkpoint of the weights, e.g. "best"."""
        return str(self.conditions.get("checkpoint") or self.name.partition("-")[2] or self.name)

    @property
    def suite(self) -> dict[str, Any]:
        """Name and stages of the suite; empty if they are not recorded."""
        suite = self.conditions.get("suite")
        return suite if isinstance(suite, dict) else {}

    @property
    def attack(self) -> str:
        """The suite's name, or its stages if the name is not recorded."""
        return str(self.suite.get("name") or " + ".join(self.records.stages) or "no attack")

    @property
    def attack_settings(self) -> str:
        """The suite's name with the restarts and steps of each stage."""
        stages = self.suite.get("stages")
        if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
            return self.attack
        parts = []
        for stage in stages:
            part = str(stage.get("name"))
            if "restarts" in stage and "steps" in stage:
                part += f" {stage['restarts']}×{stage['steps']} steps"
            parts.append(part)
        return f"{self.attack} ({', '.join(parts)})"

    @property
    def norm(self) -> str:
        """The norm of the threat; "unknown norm" if it is not recorded."""
        threat = self.conditions.get("threat")
        return str(threat.get("norm")) if isinstance(threat, dict) else "unknown norm"

    @property
    def threat(self) -> str | None:
        """Norm and radius as text; None if they are not recorded."""
        threat = self.conditions.get("threat")
        if not isinstance(threat, dict) or not _is_number(threat.get("eps")):
            return None
        return f"{self.norm}, eps {radius(self.norm, threat['eps'])}"

    @property
    def of_images(self) -> int | None:
        """Number of images in the split; None if it is not recorded."""
        value = self.conditions.get("of_images")
        return value if isinstance(value, int) else None

    @cached_property
    def kind(self) -> tuple[Any, ...]:
        """The attack and the images: evaluations of one kind may stand in one figure."""
        suite = json.dumps(self.suite.get("name")), self.records.stages
        ids = np.sort(self.records.index).tobytes()
        return self.split, self.conditions.get("data_fingerprint"), suite, ids

    @property
    def is_subset(self) -> bool:
        """Whether the split has more images than were evaluated."""
        return self.of_images is not None and len(self.records) < self.of_images

    @property
    def images(self) -> str:
        """Number and split of the images as text, which calls a subset a subset."""
        text = f"{len(self.records)} {self.split} images"
        return f"a subset of {text}" if self.is_subset else text


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The content of one run directory; what the run has not written yet is empty or None."""

    path: Path
    name: str
    """The name of the run in the report, unique among its runs."""
    config: dict[str, Any]
    environment: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    """one dict an epoch, with the finite numbers of its line"""
    best: int | None
    """epoch of the checkpoint best"""
    last: int | None
    """epoch of the checkpoint last"""
    evaluations: tuple[Evaluation, ...]
    """the most important first"""
    outdated: tuple[str, ...] = ()
    """names of evaluations of weights that are no longer those of their checkpoint"""

    def get(self, key: str, default: Any = None) -> Any:
        """Return a configuration value by its dotted key; the default if it is absent or null."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.get("method.name", "unknown method"))

    @property
    def teachers(self) -> list[dict[str, Any]]:
        """The configured teachers: spec, role and weight of each."""
        teachers = self.get("teachers", [])
        return [each for each in teachers if isinstance(each, dict)] if isinstance(teachers, list) else []

    @property
    def threat(self) -> str | None:
        """Norm and radius of the threat it was trained against, as text."""
        norm = str(self.get("threat.norm"))
        return None if self.eps is None else f"{norm}, eps {radius(norm, self.eps)}"

    @property
    def eps(self) -> float | None:
        """Radius of the threat it was trained against."""
        value = self.get("threat.eps")
        return float(value) if _is_number(value) else None

    @property
    def main(self) -> Evaluation | None:
        """The evaluation that represents the run: of the best checkpoint, under the strongest attack."""
        return self.evaluations[0] if self.evaluations else None

    @property
    def seconds(self) -> float | None:
        """Training time in seconds, over all epochs that recorded it; None if none did."""
        seconds = [line["seconds"] for line in self.metrics if "seconds" in line]
        return sum(seconds) if seconds else None

    @cached_property
    def dynamics(self) -> Dynamics | None:
        """The training dynamics; None if they were not recorded, or no epoch is finished.

        Raises:
            RunError: a file of the dynamics is damaged.
        """
        return read_dynamics(self.path) if self.metrics and has_dynamics(self.path) else None

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the epochs that have this metric, and its values."""
        lines = [line for line in self.metrics if key in line]
        return [line["epoch"] for line in lines], [line[key] for line in lines]

    def missing(self) -> list[str]:
        """Return notes on what the report cannot show of this run, and the command that would add it."""
        notes = []
        if not self.metrics:
            notes.append(f"{self.name} has no metrics: its training has not finished an epoch, so it has no curves.")
        for name in self.outdated:
            notes.append(
                f"{name} of {self.name} is of an epoch that is no longer that checkpoint, and left out: run "
                f"robustill evaluate {shlex.quote(str(self.path))}"
            )
        if not self.evaluations:
            notes.append(f"{self.name} has not been evaluated: run robustill evaluate {shlex.quote(str(self.path))}")
        elif self.main is not None and not len(self.main.records.eps_grid):
            notes.append(
                f"{self.name} was evaluated at one radius only: it has no curve of robust accuracy against eps."
            )
        if self.evaluations and not any(each.records.has_pictures for each in self.evaluations):
            notes.append(f"The evaluation of {self.name} has no pictures.")
        return notes


def read_runs(paths: Sequence[Path | str]) -> list[FinishedRun]:
    """Read run directories, each once, and give them unique names.

    Raises:
        RunError: a path is not a run directory, or a file in it is damaged.
    """
    unique: list[Path] = []
    for path in map(Path, paths):
        if path.resolve() not in [each.resolve() for each in unique]:
            unique.append(path)
    if not unique:
        raise RunError("no run directory given: expected at least one that `robustill train` made")
    names = [path.resolve().name for path in unique]
    runs = []
    for path, name in zip(unique, names, strict=True):
        is_unique = names.count(name) == 1
        runs.append(read_run(path, printable(name if is_unique else str(path))))
    return runs


def read_run(path: Path, name: str) -> FinishedRun:
    """Read one run directory.

    Args:
        path: the directory.
        name: its name in the report.

    Raises:
        RunError: the path is not a run directory, or a file in it is damaged.
    """
    directory = RunDirectory.existing(path)
    run = FinishedRun(
        path=path,
        name=name,
        config=directory.config(),
        environment=directory.read_json("environment.json"),
        metrics=[_numbers(line) for line in directory.metrics()],
        best=directory.checkpoints.pointed("best"),
        last=directory.checkpoints.pointed("last"),
        evaluations=(),
    )
    evaluations = [
        Evaluation(name=folder.name, records=Records.load(folder))
        for folder in sorted((path / "evaluations").glob("*"))
        if (folder / "summary.json").exists() or has_lost_its_summary(folder)
    ]
    current = [each for each in evaluations if _is_current(directory, each)]
    return replace(
        run,
        evaluations=tuple(sorted(current, key=lambda each: _sort_key(run, each))),
        outdated=tuple(each.name for each in evaluations if each not in current),
    )


def _is_current(directory: RunDirectory, evaluation: Evaluation) -> bool:
    """Return whether the checkpoint is still the epoch that was evaluated; a resumed run may have a new best epoch."""
    epoch = evaluation.conditions.get("epoch")
    if epoch is None:
        return True
    try:
        return bool(directory.checkpoints.resolve(str(evaluation.conditions.get("checkpoint")))[0] == epoch)
    except RunError:
        # The checkpoint was deleted after the evaluation.
        return True


def with_common_evaluations(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Return the runs with evaluations of the same attack on the same images first, where they have such.

    Of those evaluations that are of a run's main split, threat and checkpoint, every run takes the kind that most runs
    have, so that a page shows those that can be compared rather than the strongest of each run.
    """
    kinds = [{each.kind for each in _main_candidates(run)} for run in runs]
    # A run's strongest evaluation decides between kinds that equally many runs have.
    ordered = [each.kind for run in runs for each in _main_candidates(run)]
    if not ordered:
        return list(runs)
    common = max(ordered, key=lambda kind: sum(kind in each for each in kinds))
    return [_with_kind_first(run, common) for run in runs]


def _main_candidates(run: FinishedRun) -> list[Evaluation]:
    """Return the evaluations of a run that differ from its main one in the attack or the number of images alone."""
    main = run.main
    if main is None:
        return []
    same = (main.split, main.threat, main.checkpoint)
    return [each for each in run.evaluations if (each.split, each.threat, each.checkpoint) == same]


def _with_kind_first(run: FinishedRun, kind: tuple[Any, ...]) -> FinishedRun:
    chosen = [each for each in _main_candidates(run) if each.kind == kind]
    if not chosen:
        return run
    others = tuple(each for each in run.evaluations if each is not chosen[0])
    return replace(run, evaluations=(chosen[0], *others))


def teacher_eps(spec: str) -> float | None:
    """Return the radius that a teacher was trained against; None if it is not an existing run."""
    if not spec.startswith("run:"):
        return None
    folder, _ = split_checkpoint(spec.removeprefix("run:"))
    try:
        value = RunDirectory.existing(folder).config()["threat"]["eps"]
    except (RobustillError, KeyError, TypeError, OSError):
        return None
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> TypeGuard[int | float]:
    # An int of hundreds of digits does not fit in a float. Written so that nan fails too.
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if _is_number(value)}


def _sort_key(run: FinishedRun, evaluation: Evaluation) -> tuple[bool, bool, int, float, str]:
    """Return a key that puts first the test images, then the run's own threat, the checkpoint, the strongest attack."""
    position = len(_CHECKPOINT_ORDER)
    if evaluation.checkpoint in _CHECKPOINT_ORDER:
        position = _CHECKPOINT_ORDER.index(evaluation.checkpoint)
    robust = evaluation.results["robust_accuracy"]
    return evaluation.split != "test", evaluation.threat != run.threat, position, robust, evaluation.name
