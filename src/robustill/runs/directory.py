"""The run on disk: it is the run's identity, and the same command on the same directory continues it."""

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
from robustill.core.yaml import parse_yaml
from robustill.runs.checkpoints import Checkpoint, Checkpoints

_SEAL = f"# format {FORMAT}, sha256 of the lines below: "
# The first word was not written before there was a second file with it.
_SEALED = re.compile(r"# (?:format ([0-9]+), )?sha256 of the lines below: (.*)")


class RunDirectory:
    """Reads and writes one run directory; every file is there whole or not at all.

    Args:
        path: the directory; it need not exist before the first write.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path)

    @classmethod
    def existing(cls, path: Path | str) -> RunDirectory:
        """A run directory that is there.

        Raises:
            RunError: there is none.
        """
        run = cls(path)
        if not run.path.exists():
            raise RunError(f"{run.path} is no run directory, it does not exist: give one that `robustill train` made")
        if not (run.path / "config.yaml").is_file():
            raise RunError(
                f"{run.path} is no run directory (it has no config.yaml): give one that `robustill train` made"
            )
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time works on a run.

        Raises:
            RunError: another one does, or the folder holds something else than a run.
        """
        self._refuse_other_content()
        self.path.mkdir(parents=True, exist_ok=True)
        refusal = f"{self.path} is in use by another process: wait for it, or use another --run"
        with exclusive_lock(self.path / "lock", refusal):
            yield

    def start(self, config: str) -> None:
        """Write the resolved configuration, or check that the run was made by the same one.

        Raises:
            RunError: the directory holds something else, or a run of another configuration.
        """
        self._refuse_other_content()
        file = self.path / "config.yaml"
        if not file.is_file():
            write_text(file, f"{_SEAL}{sha256(config.encode())}\n{config}")
            return

    def _refuse_other_content(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file: give the name of a folder as --run")
        if not self.path.is_dir() or (self.path / "config.yaml").is_file():
            return
        # What a killed start leaves behind is no content.
        others = [each.name for each in self.path.iterdir() if each.name != "lock" and not is_temporary(each)]
        if others:
            raise RunError(f"{self.path} is not empty and no run directory (it holds {others[0]}): use another --run")

    def config(self) -> dict[str, Any]:
        """The resolved configuration, as plain values.

        Raises:
            RunError: it is missing, damaged, or has been changed since the run began.
        """
        file = self.path / "config.yaml"
        try:
            text = file.read_bytes().decode()
            values = parse_yaml(text, str(file))
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            raise RunError(f"{file} is damaged: {error}") from None
        first, _, content = text.partition("\n")
        seal = _SEALED.fullmatch(first)
        if seal and seal[1] not in (None, str(FORMAT)):
            raise RunError(f"{file}: {unknown_format_message(int(seal[1]))}")
        if not isinstance(values, dict) or (seal and seal[2] != sha256(content.encode())):
            raise RunError(f"{file} is damaged, or was changed after the run began: restore it, or use another --run")
        return values

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """A small file such as environment.json, with a checksum of what it says."""
        write_text(self.path / name, json.dumps(with_checksum(value), indent=1) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A small file's value; None if it is not there.

        Raises:
            RunError: it is damaged, or of a later format.
        """
        file = self.path / name
        if not file.exists():
            return None
        mend = "restore it, or remove it and train again"
        try:
            content = file.read_bytes()
        except OSError as error:
            raise RunError(f"{file} cannot be read ({error.strerror}): {mend}") from None
        return parse_checksummed(content, file, mend)

    # --- metrics: one line an epoch

    def metrics(self) -> list[dict[str, Any]]:
        """The lines so far, in order of their epochs; a last line that a kill cut off is left out.

        Raises:
            RunError: another line is damaged, or lines of epochs that are kept are missing.
        """
        file = self.path / "metrics.jsonl"
        content = file.read_bytes() if file.exists() else b""
        lines = content.split(b"\n")
        parsed: list[dict[str, Any]] = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                parsed.append(json.loads(line))
                check = parsed[-1].pop("check", None)
                # A line missing or doubled is damage, too; lines of before there were checksums have none.
                whole = parsed[-1]["epoch"] == number and check in (None, _check(parsed[-1]))
                # A word is a checksum whose name has changed; by accuracies the best epoch is chosen.
                told = [each for key, each in parsed[-1].items() if isinstance(each, str) or key.endswith("_accuracy")]
                whole = whole and all(isinstance(each, int | float) for each in told)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                whole = False
            if not whole:
                raise RunError(f"{file} is damaged in line {number}: run the same training command to restore it")
        last = self.checkpoints.pointed("last") if file.exists() else None
        if last is not None and last > len(parsed):
            raise RunError(
                f"{file} has {len(parsed)} of {last} lines: run the same training command to restore the others"
            )
        return parsed

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add an epoch's line."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(_line(line))
            file.flush()
            os.fsync(file.fileno())

    def rewind(self, checkpoint: Checkpoint | None) -> None:
        """Return metrics.jsonl and the names of checkpoints to a checkpoint; None starts the run over."""
        metrics = [] if checkpoint is None else checkpoint.metrics
        write_text(self.path / "metrics.jsonl", "".join(map(_line, metrics)))
        self.checkpoints.rewind(None if checkpoint is None else checkpoint.epoch)


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps({**values, "check": _check(values)}) + "\n"


def _check(values: Mapping[str, Any]) -> str:
    return sha256(json.dumps(values).encode())[:8]
