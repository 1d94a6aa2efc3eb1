"""What the page is made of: run directories as they lie on disk, read without calling a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from robustill.analysis.summary import summary
from robustill.core.errors import RobustillError, RunError, printable
from robustill.core.formatting import radius
from robustill.runs.directory import RunDirectory
from robustill.runs.dynamics import Dynamics, has_dynamics, read_dynamics
from robustill.runs.records import Records, is_whole_but_for_its_summary

# The student as it was chosen comes first; everything else is shown after it.
_CHECKPOINT_ORDER = ("best", "best-ema", "best-swa", "last", "last-ema", "last-swa")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One folder of evaluations/, e.g. test-best-pgd."""

    name: str
    records: Records

    @cached_property
    def results(self) -> dict[str, Any]:
        """The numbers, computed from the records and not believed from the file beside them."""
        return summary(self.records)

    @property
    def conditions(self) -> dict[str, Any]:
        """Under which the numbers hold."""
        return self.records.conditions

    @property
    def split(self) -> str:
        """Which images, e.g. "test"."""
        return str(self.conditions.get("split") or self.name.partition("-")[0])

    @property
    def checkpoint(self) -> str:
        """Which weights, e.g. "best"."""
        return str(self.conditions.get("checkpoint") or self.name.partition("-")[2] or self.name)

    @property
    def suite(self) -> dict[str, Any]:
        """Name and stages of the attack, as far as they are recorded."""
        suite = self.conditions.get("suite")
        return suite if isinstance(suite, dict) else {}

    @property
    def attack(self) -> str:
        """The suite's name, or its stages."""
        return str(self.suite.get("name") or " + ".join(self.records.stages) or "no attack")

    @property
    def attack_settings(self) -> str:
        """The suite's name with what each stage does."""
        stages = self.suite.get("stages")
        if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
            return self.attack
        parts = [
            f"{stage.get('name')} {stage['restarts']}×{stage['steps']} steps"
            if {"restarts", "steps"} <= stage.keys()
            else str(stage.get("name"))
            for stage in stages
        ]
        return f"{self.attack} ({', '.join(parts)})"

    @property
    def norm(self) -> str:
        """Of the threat; "unknown norm" if it is not recorded."""
        threat = self.conditions.get("threat")
        return str(threat.get("norm")) if isinstance(threat, dict) else "unknown norm"

    @property
    def threat(self) -> str | None:
        """Norm and radius in words; None if they are not recorded."""
        threat = self.conditions.get("threat")
        if not isinstance(threat, dict) or not _is_number(threat.get("eps")):
            return None
        return f"{self.norm}, eps {radius(self.norm, threat['eps'])}"

    @property
    def of_images(self) -> int | None:
        """How many images the split has, where the evaluation wrote it down."""
        value = self.conditions.get("of_images")
        return value if isinstance(value, int) else None

    @property
    def is_subset(self) -> bool:
        """Whether the split has more images than were evaluated."""
        return self.of_images is not None and len(self.records) < self.of_images

    @property
    def images(self) -> str:
        """How many images of what; a subset is called one."""
        return f"{'a subset of ' if self.is_subset else ''}{len(self.records)} {self.split} images"


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One run directory."""

    path: Path
    name: str
    config: dict[str, Any]
    environment: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    best: int | None
    last: int | None
    evaluations: tuple[Evaluation, ...]
    outdated: tuple[str, ...] = ()
    """names of evaluations of weights that are no longer those of their checkpoint"""

    def get(self, key: str, default: Any = None) -> Any:
        """A configuration value by its dotted key; the default where it is absent or null."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def method(self) -> str:
        """Name of the training objective."""
        return str(self.get("method.name", "unknown method"))

    @property
    def teachers(self) -> list[dict[str, Any]]:
        """As configured: spec, role, weight."""
        teachers = self.get("teachers", [])
        return [each for each in teachers if isinstance(each, dict)] if isinstance(teachers, list) else []

    @property
    def threat(self) -> str | None:
        """Norm and radius that it was trained against, in words."""
        norm = str(self.get("threat.norm"))
        return None if self.eps is None else f"{norm}, eps {radius(norm, self.eps)}"

    @property
    def eps(self) -> float | None:
        """Radius it was trained against."""
        value = self.get("threat.eps")
        return float(value) if _is_number(value) else None

    @property
    def main(self) -> Evaluation | None:
        """The evaluation that stands for the run: of the best checkpoint, under the strongest attack."""
        return self.evaluations[0] if self.evaluations else None

    @property
    def seconds(self) -> float | None:
        """Spent training, over all epochs that recorded it."""
        known = [line["seconds"] for line in self.metrics if "seconds" in line]
        return sum(known) if known else None

    @cached_property
    def dynamics(self) -> Dynamics | None:
        """What was recorded of every training image; None if nothing was, or no epoch is finished.

        Raises:
            RunError: a file of it is damaged.
        """
        return read_dynamics(self.path) if self.metrics and has_dynamics(self.path) else None

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Epochs that have this metric, and its values."""
        lines = [line for line in self.metrics if key in line]
        return [line["epoch"] for line in lines], [line[key] for line in lines]

    def missing(self) -> list[str]:
        """What the page cannot show of this run, and which command would make it."""
        notes = []
        if not self.metrics:
            notes.append(f"{self.name} has no metrics: its training has not finished an epoch, so it has no curves.")
        notes += [
            f"{name} of {self.name} is of an epoch that is no longer that checkpoint, and left out: run "
            f"robustill evaluate {self.path}"
            for name in self.outdated
        ]
        if not self.evaluations:
            notes.append(f"{self.name} has not been evaluated: run robustill evaluate {self.path}")
        elif self.main is not None and not len(self.main.records.eps_grid):
            notes.append(
                f"{self.name} was evaluated at one radius only: it has no line in robust accuracy against eps."
            )
        if self.evaluations and not any(each.records.has_pictures for each in self.evaluations):
            notes.append(f"The evaluation of {self.name} kept no pictures.")
        return notes


def read_runs(paths: Sequence[Path | str]) -> list[FinishedRun]:
    """Every run directory, each once, with names that tell them apart.

    Raises:
        RunError: a path is no run directory, or a file in it is damaged.
    """
    unique: list[Path] = []
    for path in map(Path, paths):
        if path.resolve() not in [each.resolve() for each in unique]:
            unique.append(path)
    if not unique:
        raise RunError("no run directory given: expected at least one that `robustill train` made")
    names = [path.resolve().name for path in unique]
    return [
        read_run(path, printable(name if names.count(name) == 1 else str(path)))
        for path, name in zip(unique, names, strict=True)
    ]


def read_run(path: Path, name: str) -> FinishedRun:
    """One run directory; whatever has not been made yet is left empty.

    Raises:
        RunError: it is no run directory, or a file in it is damaged.
    """
    directory = RunDirectory.existing(path)
    run = FinishedRun(
        path=path,
        name=name,
        config=directory.config(),
        environment=directory.read_json("environment.json"),
        metrics=[{key: value for key, value in line.items() if _is_number(value)} for line in directory.metrics()],
        best=directory.pointed("best"),
        last=directory.pointed("last"),
        evaluations=(),
    )
    evaluations = [
        Evaluation(name=folder.name, records=Records.load(folder))
        for folder in sorted((path / "evaluations").glob("*"))
        if (folder / "summary.json").exists() or is_whole_but_for_its_summary(folder)
    ]
    now = [each for each in evaluations if _is_current(directory, each)]
    return replace(
        run,
        evaluations=tuple(sorted(now, key=lambda each: _rank(run, each))),
        outdated=tuple(each.name for each in evaluations if each not in now),
    )


def _is_current(directory: RunDirectory, evaluation: Evaluation) -> bool:
    """Whether its checkpoint is still the epoch that was evaluated; a run that went on may have another best one."""
    epoch = evaluation.conditions.get("epoch")
    try:
        return epoch is None or directory.resolve(str(evaluation.conditions.get("checkpoint")))[0] == epoch
    except RunError:
        # A checkpoint that was deleted since.
        return True


def teacher_eps(spec: str) -> float | None:
    """The radius that a teacher was trained against, if it is a run that is still there."""
    folder = spec.removeprefix("run:").partition("@")[0]
    try:
        value = RunDirectory.existing(folder).config()["threat"]["eps"] if spec.startswith("run:") else None
    except (RobustillError, KeyError, TypeError, OSError):
        return None
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> TypeGuard[int | float]:
    # A whole number of hundreds of digits is no float.
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _rank(run: FinishedRun, evaluation: Evaluation) -> tuple[bool, bool, int, float, str]:
    """Test images before others, the run's own threat before others, best before last, the strongest attack first."""
    known = evaluation.checkpoint in _CHECKPOINT_ORDER
    position = _CHECKPOINT_ORDER.index(evaluation.checkpoint) if known else len(_CHECKPOINT_ORDER)
    robust = evaluation.results["robust_accuracy"]
    return evaluation.split != "test", evaluation.threat != run.threat, position, robust, evaluation.name
