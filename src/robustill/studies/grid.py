"""A grid of runs: their configurations, the evaluation at the end of each, and the runs that each one needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from robustill.config.files import named_code
from robustill.config.schema import Config
from robustill.runs.directory import split_checkpoint
from robustill.studies.design import EvaluationRequest


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Runs in one folder, some of which are the teachers of others.

    Args:
        name: its name in progress bars and files.
        folder: the folder for everything that it writes.
        runs: the configuration of each run by its folder inside `folder`, e.g. "seed-0/teacher-0".
    """

    name: str
    folder: Path
    runs: dict[str, Config]

    def evaluation(self, run: str) -> EvaluationRequest | None:
        """Return the evaluation at the end of a run; None for a run that is only trained."""
        return None

    @cached_property
    def code(self) -> tuple[str, ...]:
        """The import paths that the runs name."""
        return tuple(dict.fromkeys(path for config in self.runs.values() for path in named_code(config)))

    @cached_property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """The runs that must have ended before a run can start: those that its configuration names as `run:`."""
        by_path = {str(self.folder / name): name for name in self.runs}
        return {name: tuple(dict.fromkeys(_required_runs(config, by_path))) for name, config in self.runs.items()}


def _required_runs(config: Config, by_path: Mapping[str, str]) -> Iterator[str]:
    for spec in (*(teacher.spec for teacher in config.teachers), config.initial or ""):
        kind, _, rest = spec.partition(":")
        path = str(Path(split_checkpoint(rest)[0]))
        if kind == "run" and path in by_path:
            yield by_path[path]
