"""The directory of a run, which is the run's identity: the same command on the same directory continues the run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustill.core.checksums import FORMAT, parse_checksummed, sha256, unknown_format_message, with_checksum
from robustill.core.errors import ConfigError, RunError
from robustill.core.files import exclusive_lock, is_temporary, write_text
from robustill.core.links import read_regular_file, refuse_link, refuse_special_files
from robustill.core.yaml import parse_yaml
from robustill.runs.checkpoints import Checkpoint, Checkpoints

RETIRED_SETTINGS = {
    "compute": {"cuda_graphs": "it had no effect on any number"},
}
"""Settings of earlier versions, by group, and why they may be left out; a stored configuration may have them."""

# The first line of config.yaml; earlier versions wrote it without the format.
_CHECKSUM_LINE = f"# format {FORMAT}, sha256 of the lines below: "
_CHECKPOINT_NAME = re.compile(r"(best|last|epoch-[0-9]+)(-ema|-swa)?")
_CHECKSUM_PATTERN = re.compile(r"# (?:format ([0-9]+), )?sha256 of the lines below: (.*)")


def split_checkpoint(source: str) -> tuple[str, str | None]:
    """Split DIR@CHECKPOINT at its last @ into the folder of a run and the name of a checkpoint, None if there is none.

    The name of a folder may have an @, too: an existing folder of the whole name is meant, unless what follows the last
    @ is the name of a checkpoint and the folder before it exists as well.

    Args:
        source: a specification without "run:".

    Example:
        >>> split_checkpoint("user@lab/student@best"), split_checkpoint("user@lab/student")
        (('user@lab/student', 'best'), ('user@lab/student', None))
    """
    folder, at, checkpoint = source.rpartition("@")
    if not at or "/" in checkpoint or os.sep in checkpoint:
        return source, None
    is_name = _CHECKPOINT_NAME.fullmatch(checkpoint) is not None
    if Path(source).is_dir() and not (is_name and Path(folder).is_dir()):
        return source, None
    return folder, checkpoint


def drop_retired(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a stored configuration without settings that no longer exist, and the names of those it had.

    Example:
        >>> drop_retired({"compute": {"threads": 1, "cuda_graphs": True}})
        ({'compute': {'threads': 1}}, ['compute.cuda_graphs'])
    """
    kept, dropped = dict(values), []
    for group, retired in RETIRED_SETTINGS.items():
        own = kept.get(group)
        if isinstance(own, Mapping) and not retired.keys().isdisjoint(own):
            kept[group] = {key: value for key, value in own.items() if key not in retired}
            dropped += [f"{group}.{key}" for key in own if key in retired]
    return kept, dropped


class RunDirectory:
    """The directory of one run: its configuration, its metrics, its small JSON files and its checkpoints.

    Every file is written atomically: it is complete or not there.

    Args:
        path: the directory; it need not exist before the first write.

    Attributes:
        checkpoints: the checkpoints of the run.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path)

    @classmethod
    def existing(cls, path: Path | str) -> RunDirectory:
        """Return a run directory that exists.

        Raises:
            RunError: there is no run in `path`.
        """
        run = cls(path)
        if not run.path.exists():
            raise RunError(f"{run.path} is no run directory, it does not exist: give one that `robustill train` made")
        if not (run.path / "config.yaml").is_file():
            raise RunError(
                f"{run.path} is no run directory (it has no config.yaml): give one that `robustill train` made"
            )
        refuse_special_files(run.path)
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the run, so that only one process at a time works on it.

        Raises:
            RunError: another process works on it, or the folder holds something other than a run.
        """
        self._refuse_other_content()
        _refuse_links(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        refusal = f"{self.path} is in use by another process: wait for it, or use another --run"
        with exclusive_lock(self.path / "lock", refusal):
            yield

    def start(self, config: str) -> None:
        """Write the resolved configuration to config.yaml, unless the run has one already.

        Args:
            config: the configuration as YAML.

        Raises:
            RunError: the directory holds something other than a run.
        """
        self._refuse_other_content()
        file = self.path / "config.yaml"
        if not file.is_file():
            write_text(file, f"{_CHECKSUM_LINE}{sha256(config.encode())}\n{config}")

    def _refuse_other_content(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file: give the name of a folder as --run")
        if not self.path.is_dir() or (self.path / "config.yaml").is_file():
            return
        # A start that was killed leaves these behind.
        others = [each.name for each in self.path.iterdir() if each.name != "lock" and not is_temporary(each)]
        if others:
            raise RunError(f"{self.path} is not empty and no run directory (it holds {others[0]}): use another --run")

    def config(self) -> dict[str, Any]:
        """Read the resolved configuration as plain values, without settings that no longer exist.

        Raises:
            RunError: config.yaml is missing, damaged, or was changed after the run began.
        """
        file = self.path / "config.yaml"
        try:
            text = read_regular_file(file).decode()
            values = parse_yaml(text, str(file))
        except OSError as error:
            raise RunError(f"{file} cannot be read ({error.strerror}): restore it, or use another --run") from None
        except (UnicodeDecodeError, ConfigError) as error:
            raise RunError(f"{file} is damaged: {error}") from None
        first_line, _, content = text.partition("\n")
        checksum = _CHECKSUM_PATTERN.fullmatch(first_line)
        if checksum and checksum[1] not in (None, str(FORMAT)):
            raise RunError(f"{file}: {unknown_format_message(int(checksum[1]))}")
        if not isinstance(values, dict) or (checksum and checksum[2] != sha256(content.encode())):
            raise RunError(f"{file} is damaged, or was changed after the run began: restore it, or use another --run")
        return drop_retired(values)[0]

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a small file such as environment.json, with a checksum of its content."""
        write_text(self.path / name, json.dumps(with_checksum(value), indent=1) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a small file that `write_json` wrote; None if there is none.

        Raises:
            RunError: the file is damaged, or of another format.
        """
        file = self.path / name
        mend = "restore it, or remove it and train again"
        try:
            content = read_regular_file(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{file} cannot be read ({error.strerror}): {mend}") from None
        return parse_checksummed(content, file, mend)

    # --- metrics: one line per epoch

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics of all epochs so far, in order; a last line that was cut off by a kill is left out.

        Raises:
            RunError: another line is damaged, or lines of epochs that have a checkpoint are missing.
        """
        file = self.path / "metrics.jsonl"
        try:
            content = read_regular_file(file)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"{file} cannot be read ({error.strerror}): restore it, or use another --run") from None
        metrics: list[dict[str, Any]] = []
        # Behind the last line end is nothing, or a line that was cut off.
        for epoch, text in enumerate(content.split(b"\n")[:-1], start=1):
            line = _parse_line(text, epoch)
            if line is None:
                raise RunError(f"{file} is damaged in line {epoch}: run the same training command to restore it")
            metrics.append(line)
        last = self.checkpoints.pointed("last")
        if last is not None and last > len(metrics):
            raise RunError(
                f"{file} has {len(metrics)} of {last} lines: run the same training command to restore the others"
            )
        return metrics

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Append the metrics of an epoch to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(_format_line(line))
            file.flush()
            os.fsync(file.fileno())

    def rewind(self, checkpoint: Checkpoint | None) -> None:
        """Return metrics.jsonl and the names of checkpoints to a checkpoint; None starts the run over."""
        metrics = [] if checkpoint is None else checkpoint.metrics
        write_text(self.path / "metrics.jsonl", "".join(map(_format_line, metrics)))
        self.checkpoints.rewind(None if checkpoint is None else checkpoint.epoch)


def _format_line(values: Mapping[str, Any]) -> str:
    return json.dumps({**values, "check": _check(values)}) + "\n"


def _parse_line(text: bytes, epoch: int) -> dict[str, Any] | None:
    """Return the metrics of a line; None if it is damaged, or of another epoch."""
    try:
        line: dict[str, Any] = json.loads(text)
        check = line.pop("check", None)
        # Lines of earlier versions have no checksum.
        if line["epoch"] != epoch or check not in (None, _check(line)):
            return None
        # Without a checksum: a string is a checksum whose key was damaged, and accuracies choose the best epoch.
        checked = [value for key, value in line.items() if isinstance(value, str) or key.endswith("_accuracy")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return line if all(isinstance(value, int | float) for value in checked) else None


def _check(values: Mapping[str, Any]) -> str:
    return sha256(json.dumps(values).encode())[:8]


def _refuse_links(run: Path) -> None:
    """Check that training writes and removes nothing outside the directory, which may come from someone else."""
    refuse_link(run / "metrics.jsonl")
    for name in ("checkpoints", "dynamics", "evaluations"):
        refuse_link(run / name)
        for entry in (run / name).glob("*"):
            refuse_link(entry)
