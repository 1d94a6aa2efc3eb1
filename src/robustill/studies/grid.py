"""A grid of runs: their configurations, the evaluation at the end of each, and the runs that each one needs."""

from __future__ import annotations

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

    def named_run(self, spec: str) -> str | None:
        """Return the run of the grid that a specification names as `run:`; None for anything else."""
        kind, _, rest = spec.partition(":")
        return self._by_path.get(Path(split_checkpoint(rest)[0])) if kind == "run" else None

    @cached_property
    def _by_path(self) -> dict[Path, str]:
        return {self.folder / name: name for name in self.runs}

    @cached_property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """The runs that must have ended before a run can start: those that its configuration names as `run:`."""
        return {
            name: tuple(dict.fromkeys(run for spec in _specs(config) if (run := self.named_run(spec)) is not None))
            for name, config in self.runs.items()
        }


def _specs(config: Config) -> list[str]:
    """Return what a configuration names: its teachers, and the network that its training starts from."""
    initial = [] if config.initial is None else [config.initial]
    return [*(teacher.spec for teacher in config.teachers), *initial]
