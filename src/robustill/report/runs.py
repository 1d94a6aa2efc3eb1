"""What the page is made of: run directories as they lie on disk, read without calling a model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustill.errors import RobustillError, RunError
from robustill.records import Records, summary
from robustill.run_directory import RunDirectory

# The student as it was chosen comes first; everything else is shown after it.
_CHECKPOINT_ORDER = ("best", "best-ema", "ema-best", "last", "last-ema", "ema-last")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One folder of evaluations/, e.g. test-best."""

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
        """Which images: "test" of test-best."""
        return str(self.conditions.get("split") or self.name.partition("-")[0])

    @property
    def checkpoint(self) -> str:
        """Which weights: "best" of test-best."""
        return self.name.partition("-")[2] or self.name

    @property
    def attack(self) -> str:
        """The suite's name, or its stages."""
        suite = self.conditions.get("suite")
        name = suite.get("name") if isinstance(suite, dict) else suite
        return str(name or " + ".join(self.records.stages) or "no attack")

    @property
    def of_images(self) -> int | None:
        """How many images the split has, where the evaluation wrote it down."""
        value = self.conditions.get("of_images")
        return value if isinstance(value, int) else None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run directory."""

    path: Path
    name: str
    config: dict[str, Any]
    environment: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    best: int | None
    last: int | None
    evaluations: tuple[Evaluation, ...]

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
        return [each for each in self.get("teachers", []) if isinstance(each, dict)]

    @property
    def eps(self) -> float | None:
        """Radius it was trained against."""
        value = self.get("threat.eps")
        return float(value) if isinstance(value, int | float) else None

    @property
    def main(self) -> Evaluation | None:
        """The evaluation that stands for the run: the best checkpoint's where there is one."""
        return self.evaluations[0] if self.evaluations else None

    @property
    def seconds(self) -> float | None:
        """Spent training, over all epochs that recorded it."""
        known = [line["seconds"] for line in self.metrics if "seconds" in line]
        return sum(known) if known else None

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Epochs that have this metric, and its values."""
        lines = [line for line in self.metrics if key in line]
        return [line["epoch"] for line in lines], [line[key] for line in lines]

    def missing(self) -> list[str]:
        """What the page cannot show of this run, and which command would make it."""
        notes = []
        if not self.metrics:
            notes.append(f"{self.name} has no metrics: its training has not finished an epoch, so it has no curves.")
        if not self.evaluations:
            notes.append(f"{self.name} has not been evaluated: run robustill evaluate {self.path}")
        elif self.main is not None and not len(self.main.records.eps_grid):
            notes.append(
                f"{self.name} was evaluated at one radius only: it has no line in robust accuracy against eps."
            )
        if self.evaluations and all(each.records.example_index is None for each in self.evaluations):
            notes.append(f"The evaluation of {self.name} kept no pictures.")
        return notes


def read_runs(paths: Sequence[Path | str]) -> list[Run]:
    """Every run directory, each once, with names that tell them apart.

    Raises:
        RunError: a path is no run directory, or a file in it is damaged.
    """
    unique = list({Path(path).resolve(): Path(path) for path in paths}.values())
    if not unique:
        raise RunError("no run directory given: expected at least one that `robustill train` made")
    names = [path.resolve().name for path in unique]
    return [
        read_run(path, name if names.count(name) == 1 else str(path)) for path, name in zip(unique, names, strict=True)
    ]


def read_run(path: Path, name: str) -> Run:
    """One run directory; whatever has not been made yet is left empty.

    Raises:
        RunError: it is no run directory, or a file in it is damaged.
    """
    directory = RunDirectory.existing(path)
    evaluations = [
        Evaluation(name=folder.name, records=Records.load(folder))
        for folder in sorted((path / "evaluations").glob("*"))
        if (folder / "summary.json").exists()
    ]
    return Run(
        path=path,
        name=name,
        config=directory.config(),
        environment=directory.read_json("environment.json"),
        metrics=read_metrics(path / "metrics.jsonl"),
        best=directory.pointed("best"),
        last=directory.pointed("last"),
        evaluations=tuple(sorted(evaluations, key=_rank)),
    )


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The numbers of each epoch, ascending; a last line that a kill cut off is left out.

    Raises:
        RunError: any other line is damaged.
    """
    if not file.exists():
        return []
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{file} is damaged: {error}") from None
    by_epoch = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            values = json.loads(line)
            by_epoch[int(values["epoch"])] = {key: value for key, value in values.items() if _is_number(value)}
        except (ValueError, KeyError, TypeError):
            if number == text.count("\n") + 1:
                continue
            raise RunError(f"{file}: line {number} is damaged, expected the JSON of an epoch; remove it") from None
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def teacher_eps(spec: str) -> float | None:
    """The radius that a teacher was trained against, if it is a run that is still there."""
    folder = spec.removeprefix("run:").partition("@")[0]
    try:
        value = RunDirectory.existing(folder).config()["threat"]["eps"] if spec.startswith("run:") else None
    except (RobustillError, KeyError, TypeError, OSError):
        return None
    return float(value) if isinstance(value, int | float) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _rank(evaluation: Evaluation) -> tuple[bool, int, str]:
    known = evaluation.checkpoint in _CHECKPOINT_ORDER
    position = _CHECKPOINT_ORDER.index(evaluation.checkpoint) if known else len(_CHECKPOINT_ORDER)
    return evaluation.split != "test", position, evaluation.name
