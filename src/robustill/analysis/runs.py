"""Finished runs and networks of somebody else, read from disk for the report without calling a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from robustill.analysis.evaluations import Evaluation, is_number
from robustill.analysis.method_names import average_of, method_name
from robustill.core.errors import RobustillError, printable
from robustill.core.formatting import radius
from robustill.runs.directory import RunDirectory, split_checkpoint
from robustill.runs.dynamics import Dynamics, has_dynamics, read_dynamics
from robustill.runs.records import Records, has_lost_its_summary, read_summary

# The checkpoint that was selected comes first; the others follow in this order.
_CHECKPOINT_ORDER = ("best", "best-ema", "best-swa", "last", "last-ema", "last-swa")
_AVERAGES = ("ema", "swa")


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """The row of a study's table that a run belongs to."""

    study: str
    """the name of the study"""
    label: str
    """the name of the row"""
    against: str | None
    """the label of the row that it is compared with; None for a baseline"""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The content of one run directory, or the evaluations of a network without one; what is missing is None."""

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
    best_averaged: Mapping[str, int] = field(default_factory=dict)
    """epoch of the checkpoints best-ema and best-swa, by "ema" and "swa" """
    outdated: tuple[str, ...] = ()
    """names of evaluations of weights that are no longer those of their checkpoint"""
    is_network: bool = False
    """whether it is a network of which only evaluations are known, and no training"""
    row: StudyRow | None = None

    def get(self, key: str, default: Any = None) -> Any:
        """Return a configuration value by its dotted key; the default if it is absent or null."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def method(self) -> str:
        """Name of the method in the configuration."""
        return str(self.get("method.name", "unknown method"))

    @property
    def average(self) -> str | None:
        """The kind of averaged weights that represent the run, "ema" or "swa"; None for the weights themselves."""
        if self.main is not None:
            return self.main.average if not self.is_network else None
        return next((kind for kind in _AVERAGES if self.get(f"optim.{kind}") is not None), None)

    @property
    def method_name(self) -> str:
        """The usual name of its method, such as PGD-AT + EMA; for a network without a run, the name of its file."""
        return self.name if self.is_network else method_name(self.config, self.average)

    @property
    def best_epoch(self) -> int | None:
        """The epoch that was chosen on validation images, of the weights that represent the run."""
        return self.best_averaged.get(self.average or "", self.best)

    @property
    def seed(self) -> Any:
        """The seed of its training."""
        return self.get("seed")

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
        return float(value) if is_number(value) else None

    @property
    def main(self) -> Evaluation | None:
        """The evaluation that represents the run: of the best checkpoint, under the strongest attack."""
        return self.evaluations[0] if self.evaluations else None

    @property
    def at_last(self) -> Evaluation | None:
        """The evaluation of the last epoch that corresponds to the main one; None without it."""
        if self.main is None or self.is_network or not self.main.checkpoint.startswith("best"):
            return None
        wanted = self.last_checkpoint, self.main.kind
        return next((each for each in self.evaluations if (each.checkpoint, each.kind) == wanted), None)

    @property
    def last_checkpoint(self) -> str:
        """The name of the checkpoint of the last epoch that corresponds to the main evaluation's."""
        return "last" if self.average is None else f"last-{self.average}"

    @property
    def seconds(self) -> float | None:
        """Training time in seconds, over all epochs that recorded it; None if none did."""
        return training_seconds(self.metrics)

    @cached_property
    def dynamics(self) -> Dynamics | None:
        """The training dynamics; None if they were not recorded, or no epoch is finished.

        Raises:
            RunError: a file of the dynamics is damaged.
        """
        return read_dynamics(self.path) if self.metrics and has_dynamics(self.path) else None

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the epochs that have this metric, and its values; a validation metric is of the averaged weights."""
        if key.startswith("validation_"):
            key = self.validation_key(key)
        lines = [line for line in self.metrics if key in line]
        return [line["epoch"] for line in lines], [line[key] for line in lines]

    def validation_key(self, key: str) -> str:
        """Return the name of a validation metric for the weights that represent the run."""
        averaged = f"{self.average}_{key}"
        return averaged if any(averaged in line for line in self.metrics) else key


def read_run(path: Path, name: str, row: StudyRow | None = None) -> FinishedRun:
    """Read one run directory.

    Args:
        path: the directory.
        name: its name in the report.
        row: the row of a study that it belongs to.

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
        best_averaged={kind: epoch for kind in _AVERAGES if (epoch := directory.checkpoints.pointed(f"best-{kind}"))},
        evaluations=(),
        row=row,
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


def read_network(folders: Sequence[Path]) -> FinishedRun:
    """Read the evaluations of one network that has no run directory, see `network_identity`.

    Raises:
        RunError: an evaluation is damaged.
    """
    evaluations = [Evaluation(name=folder.name, records=Records.load(folder)) for folder in folders]
    conditions = evaluations[0].conditions
    run = FinishedRun(
        path=folders[0],
        name=_network_name(evaluations[0]),
        config={"data": {"name": conditions.get("data")}, "model": {"name": conditions.get("architecture")}},
        environment=None,
        metrics=[],
        best=None,
        last=None,
        evaluations=(),
        is_network=True,
    )
    return replace(run, evaluations=tuple(sorted(evaluations, key=lambda each: _sort_key(run, each))))


def network_identity(folder: Path) -> tuple[str, object]:
    """Return what all evaluations of one network have in common: a text, and the network's fingerprint as it is stored.

    The texts of one network are equal. Their fingerprints are of other images and other machines, so that they can only
    be compared; they tell apart networks of the same weights in other code.

    Raises:
        RunError: summary.json of the evaluation is missing or damaged.
    """
    conditions = read_summary(folder)["conditions"]
    keys = ("run", "checkpoint", "checkpoint_sha256", "architecture", "normalisation")
    return json.dumps([conditions.get(key) for key in keys], sort_keys=True), conditions.get("fingerprint")


def _network_name(evaluation: Evaluation) -> str:
    """Return the name of a network's file without its suffix, or its specification."""
    checkpoint, run = evaluation.checkpoint, evaluation.conditions.get("run")
    if run is not None:
        return printable(f"{run}, {checkpoint}")
    name = Path(checkpoint)
    return printable(name.stem if name.suffix in (".pt", ".pth", ".pt2", ".safetensors") else checkpoint)


def _is_current(directory: RunDirectory, evaluation: Evaluation) -> bool:
    """Return whether the checkpoint is still the epoch that was evaluated; a resumed run may have a new best epoch."""
    epoch = evaluation.conditions.get("epoch")
    if epoch is None:
        return True
    try:
        return bool(directory.checkpoints.resolve(str(evaluation.conditions.get("checkpoint")))[0] == epoch)
    except RobustillError:
        # The checkpoint was deleted after the evaluation.
        return True


def with_common_evaluations(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Return the runs with evaluations of the same attack on the same images first, where they have such.

    Every run takes the kind of evaluation that most runs have, so that a page shows those that can be compared rather
    than the strongest of each run. The strongest of the runs named first decides between kinds that equally many have.
    Teachers, which may have another threat, have no vote where their students have been evaluated.
    """
    teachers = teacher_paths(runs)
    voters = [run for run in runs if run.path not in teachers and run.evaluations] or runs
    evaluations = [each for run in voters for each in run.evaluations]
    tested = [each for each in evaluations if each.split == "test"] or evaluations
    if not tested:
        return list(runs)
    kinds = [{each.kind for each in run.evaluations} for run in voters]
    common = max((each.kind for each in tested), key=lambda kind: sum(kind in each for each in kinds))
    return [_with_kind_first(run, common) for run in runs]


def _with_kind_first(run: FinishedRun, kind: tuple[Any, ...]) -> FinishedRun:
    chosen = [each for each in run.evaluations if each.kind == kind]
    chosen.sort(key=lambda each: _checkpoint_position(run, each))
    if not chosen:
        return run
    others = tuple(each for each in run.evaluations if each is not chosen[0])
    return replace(run, evaluations=(chosen[0], *others))


def teacher_paths(runs: Sequence[FinishedRun]) -> set[Path]:
    """Return the paths of the runs that are teachers of others among them.

    A teacher is found under the path that its student names or, if both were moved, beside its student.
    """
    named: set[Path] = set()
    for run in runs:
        for teacher in run.teachers:
            kind, _, rest = str(teacher.get("spec", "")).partition(":")
            if kind == "run":
                folder = Path(split_checkpoint(rest)[0])
                named |= {folder.resolve(), (run.path.parent / folder.name).resolve()}
    return {run.path for run in runs if run.path.resolve() in named}


@dataclass(frozen=True, kw_only=True)
class TeacherRun:
    """What the report says of a teacher that is a run."""

    config: dict[str, Any]
    seconds: float | None
    """The training time in seconds; None if it was not recorded."""

    @property
    def eps(self) -> float | None:
        """The radius that it was trained against; None if the configuration has none."""
        threat = self.config.get("threat")
        value = threat.get("eps") if isinstance(threat, dict) else None
        return float(value) if is_number(value) else None


def find_teacher(spec: str, *, beside: Path | None = None) -> TeacherRun | None:
    """Return the teacher of a specification run:DIR@CHECKPOINT; None if it is not an existing run.

    Args:
        spec: the specification.
        beside: the directory of its student. If both were moved, the teacher is found beside it.
    """
    if not spec.startswith("run:"):
        return None
    folder = Path(split_checkpoint(spec.removeprefix("run:"))[0])
    for place in [folder] if beside is None else [folder, beside.parent / folder.name]:
        try:
            directory = RunDirectory.existing(place)
            metrics = [_numbers(line) for line in directory.metrics()]
            return TeacherRun(config=directory.config(), seconds=training_seconds(metrics))
        except (RobustillError, OSError):
            continue
    return None


def training_seconds(metrics: Sequence[dict[str, Any]]) -> float | None:
    """Return the sum over all epochs that recorded their time; None if none did."""
    seconds = [line["seconds"] for line in metrics if "seconds" in line]
    return sum(seconds) if seconds else None


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if is_number(value)}


def _checkpoint_position(run: FinishedRun, evaluation: Evaluation) -> int:
    """Return the rank of a checkpoint; where a run averages its weights, the average comes before the weights."""
    checkpoint = evaluation.checkpoint
    if checkpoint not in _CHECKPOINT_ORDER:
        return len(_CHECKPOINT_ORDER)
    average = average_of(checkpoint)
    if average is not None and run.get(f"optim.{average}") is not None:
        return _CHECKPOINT_ORDER.index(checkpoint.removesuffix(f"-{average}")) - 1
    return _CHECKPOINT_ORDER.index(checkpoint)


def _sort_key(run: FinishedRun, evaluation: Evaluation) -> tuple[bool, bool, int, float, str]:
    """Return a key that puts first the test images, then the run's own threat, the checkpoint, the strongest attack."""
    position = _checkpoint_position(run, evaluation)
    robust = evaluation.results["robust_accuracy"]
    return evaluation.split != "test", evaluation.threat != run.threat, position, robust, evaluation.name
