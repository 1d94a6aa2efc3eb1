"""The run on disk: it is the run's identity, and the same command on the same directory continues it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from robustill.core.checksums import (
    FORMAT,
    parse_checksummed,
    read_checksummed_file,
    read_checksummed_state,
    sha256,
    unknown_format_message,
    with_checksum,
    write_checksummed_folder,
)
from robustill.core.errors import CheckpointError, ConfigError, RunError
from robustill.core.files import exclusive_lock, write_text
from robustill.core.links import refuse_link, refuse_special_files
from robustill.core.yaml import parse_yaml
from robustill.runs import checkpoints as unfinished
from robustill.runs.checkpoints import Checkpoint, _dense, _pointer, _tensors

_SEAL = f"# format {FORMAT}, sha256 of the lines below: "
# The first word was not written before there was a second file with it.
_SEALED = re.compile(r"# (?:format ([0-9]+), )?sha256 of the lines below: (.*)")
_AVERAGES = ("ema", "swa")
_NAMES = ("best", "best-ema", "best-swa", "last")


class RunDirectory:
    """Reads and writes one run directory; every file is there whole or not at all.

    Args:
        path: the directory; it need not exist before the first write.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

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
        refuse_special_files(run.path)
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time works on a run.

        Raises:
            RunError: another one does, or the folder holds something else than a run.
        """
        self._refuse_other_content()
        _refuse_links(self.path)
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
        others = [each.name for each in self.path.iterdir() if each.name != "lock" and not _is_leftover(each)]
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
        last = self.pointed("last") if file.exists() else None
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

    # --- checkpoints

    def save(self, checkpoint: Checkpoint) -> None:
        """Write checkpoints/epoch-NNNN, whole or not at all, with the checksums of its files."""
        state = io.BytesIO()
        averages = {kind: getattr(checkpoint, kind) for kind in _AVERAGES}
        has = {f"has_{kind}": average is not None for kind, average in averages.items()}
        torch.save({**checkpoint.state, "epoch": checkpoint.epoch, **has}, state)
        files = {
            "model.safetensors": save_safetensors(_dense(checkpoint.model)),
            "state.pt": state.getvalue(),
            "metrics.json": json.dumps(checkpoint.metrics).encode(),
        }
        for kind, average in averages.items():
            if average is not None:
                files[f"{kind}.safetensors"] = save_safetensors(_dense(average))
        write_checksummed_folder(self.folder(checkpoint.epoch), files)
        self.point("last", checkpoint.epoch)
        unfinished.forget(self.path)

    def folder(self, epoch: int) -> Path:
        """Where an epoch's checkpoint lies."""
        return self.path / "checkpoints" / f"epoch-{epoch:04d}"

    def epochs(self) -> list[int]:
        """The epochs whose checkpoints are kept, ascending."""
        found = (re.fullmatch(r"epoch-([0-9]{4,9})", each.name) for each in (self.path / "checkpoints").glob("epoch-*"))
        return sorted(int(each[1]) for each in found if each)

    def point(self, name: str, epoch: int) -> None:
        """Let "best", "best-ema", "best-swa" or "last" mean an epoch."""
        write_text(self.path / "checkpoints" / name, f"{_pointer(epoch)}\n")

    def pointed(self, name: str) -> int | None:
        """The epoch that "best", "best-ema", "best-swa" or "last" means; None if there is none yet.

        Raises:
            RunError: the file that says so is damaged.
        """
        file = self.path / "checkpoints" / name
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
        if text is None:
            return None
        found = re.fullmatch(r"epoch-([0-9]{4,9})( [0-9a-f]{8})?\n", text)
        if not found or (found[2] and text != f"{_pointer(int(found[1]))}\n"):
            raise RunError(f"{file} is damaged: run the same training command to restore it")
        return int(found[1])

    def resolve(self, what: str) -> tuple[int, str]:
        """An epoch and its file of weights, from "best", "last" or "epoch-20", each also with "-ema" or "-swa".

        Raises:
            RunError: nothing of that name is kept.
        """
        kind = next((kind for kind in _AVERAGES if what.endswith(f"-{kind}")), "model")
        name = what.removesuffix(f"-{kind}")
        number = re.fullmatch(r"epoch-([0-9]{1,9})", name)
        epoch = int(number[1]) if number else None
        if name in _NAMES:
            epoch = self.pointed(what if what in _NAMES else name)
        file = f"{kind}.safetensors"
        if epoch is None or not (self.folder(epoch) / file).is_file():
            kept = ", ".join(f"epoch-{each}" for each in self.epochs()) or "no epoch"
            raise RunError(f"{self.path} has no checkpoint {what!r}: expected best, last, or one of those kept: {kept}")
        return epoch, file

    def weights(self, what: str) -> tuple[dict[str, Tensor], str]:
        """The weights of a checkpoint and their sha256.

        Args:
            what: as `resolve` takes it.

        Raises:
            RunError: nothing of that name is kept.
            CheckpointError: its file is damaged.
        """
        epoch, file = self.resolve(what)
        content = read_checksummed_file(self.folder(epoch), file)
        return _tensors(content, self.folder(epoch) / file), sha256(content)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; damaged ones are passed over with a warning. None if there is none."""
        kept = self.epochs()
        for epoch in reversed(kept):
            try:
                return self.checkpoint(epoch)
            except CheckpointError as error:
                instead = "going on from an earlier one" if epoch != kept[0] else "starting over"
                warnings.warn(f"{error}; {instead}", stacklevel=2)
        return None

    def rewind(self, checkpoint: Checkpoint | None) -> None:
        """Bring metrics and names back to a checkpoint, or to the very start: what came after it is forgotten."""
        lines = [] if checkpoint is None else checkpoint.metrics
        write_text(self.path / "metrics.jsonl", "".join(map(_line, lines)))
        for name in _NAMES:
            (self.path / "checkpoints" / name).unlink(missing_ok=True)
        if checkpoint is not None:
            self.point("last", checkpoint.epoch)

    def forget_after(self, epoch: int) -> None:
        """Remove all that was kept of later epochs, the newest first: at any moment what is left is a run."""
        unfinished.forget(self.path)
        for later in reversed(self.epochs()):
            if later > epoch:
                shutil.rmtree(self.folder(later))

    def choose(self, *, keep_every: int | None) -> None:
        """Name the best epochs by robust accuracy on the held-out part, and remove what no setting asks to keep.

        Kept are `last` and the one before it (in case it is damaged), `best` (also of averages), and every k-th.
        """
        lines, kept = self.metrics(), self.epochs()
        done = len(lines)
        named = set()
        for name, prefix in (("best", ""), *((f"best-{kind}", f"{kind}_") for kind in _AVERAGES)):
            key = f"{prefix}validation_robust_accuracy"
            looks = [line for line in lines if key in line]
            if not looks:
                continue
            # Of equals the earliest.
            best = max(looks, key=lambda line: (line[key], -line["epoch"]))["epoch"]
            if best not in kept:
                warnings.warn(f"{self.path}: the checkpoint of its best epoch, {best}, is missing", stacklevel=2)
            self.point(name, best)
            named.add(best)
        # Later ones than the last that is whole are damaged; they are replaced when their epoch is trained again.
        later = [epoch for epoch in kept if epoch > done]
        recent = [epoch for epoch in kept if epoch <= done][-2:]
        every = [epoch for epoch in kept if keep_every is not None and epoch % keep_every == 0]
        self.keep_only({*named, *recent, *every, *later})

    def keep_only(self, epochs: Collection[int]) -> None:
        """Remove the checkpoints of all other epochs, and what killed writes left behind."""
        for epoch in set(self.epochs()) - set(epochs):
            shutil.rmtree(self.folder(epoch))
        for folder in (self.path, self.path / "checkpoints", self.path / "dynamics"):
            for leftover in filter(_is_leftover, folder.glob(".*")):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def checkpoint(self, epoch: int) -> Checkpoint:
        """All that an epoch left behind, every file of it against its checksum.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        folder = self.folder(epoch)
        state = read_checksummed_state(folder, "state.pt")
        try:
            written, has = state["epoch"], [kind for kind in _AVERAGES if state.get(f"has_{kind}") is True]
            metrics = json.loads(read_checksummed_file(folder, "metrics.json"))
        except (ValueError, KeyError, RecursionError) as error:
            raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from None
        if not isinstance(metrics, list) or not all(isinstance(line, dict) for line in metrics):
            raise CheckpointError(f"checkpoint {folder} is damaged: its metrics.json is no list of lines")
        if type(written) is not int or written != epoch or len(metrics) != epoch:
            raise CheckpointError(f"checkpoint {folder} is of another epoch than its name says")
        files = {kind: f"{kind}.safetensors" for kind in ("model", *has)}
        weights = {kind: _tensors(read_checksummed_file(folder, name), folder / name) for kind, name in files.items()}
        return Checkpoint(**{"ema": None, **weights}, epoch=epoch, state=state, metrics=metrics)  # type: ignore[arg-type]


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps({**values, "check": _check(values)}) + "\n"


def _check(values: Mapping[str, Any]) -> str:
    return sha256(json.dumps(values).encode())[:8]


def _refuse_links(run: Path) -> None:
    """Check that training writes and removes nothing outside the directory, which may come from somebody else."""
    refuse_link(run / "metrics.jsonl")
    for name in ("checkpoints", "dynamics", "evaluations"):
        refuse_link(run / name)
        for entry in (run / name).glob("*"):
            refuse_link(entry)


def _is_leftover(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")
