"""The run on disk: it is the run's identity, and the same command on the same directory continues it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from robustill import atomic
from robustill.errors import CheckpointError, RunError

FORMAT = 1

# Where the numbers are computed and where the files lie do not change what a run is.
_FREE_KEYS = frozenset({"compute.device", "compute.threads", "data.root", "data.download"})


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What one epoch left behind.

    Args:
        epoch: counted from 1.
        model: the student's state.
        ema: its moving average's, if there is one.
        state: everything else that the loop needs to continue: optimizer, method.
        metrics: the line of this epoch.
    """

    epoch: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    state: dict[str, Any]
    metrics: dict[str, Any]


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
        if not (run.path / "config.yaml").is_file():
            raise RunError(
                f"{run.path} is no run directory (it has no config.yaml): give one that `robustill train` made"
            )
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time works on a run.

        Raises:
            RunError: another one does.
        """
        import fcntl

        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{self.path} is in use by another process: wait for it, or use another --run") from None
            yield

    def start(self, config: str) -> None:
        """Write the resolved configuration, or check that the run was made by the same one.

        Raises:
            RunError: the directory holds something else, or a run of another configuration.
        """
        file = self.path / "config.yaml"
        if file.is_file():
            difference = _difference(self.config(), yaml.safe_load(config))
            if difference is not None:
                key, there, here = difference
                raise RunError(
                    f"{self.path} was made by another configuration: {key} is {there!r} there and {here!r} here; "
                    "use another --run, or the configuration it was made by"
                )
            return
        others = [each.name for each in self.path.iterdir() if each.name != "lock"] if self.path.is_dir() else []
        if others:
            raise RunError(f"{self.path} is not empty and no run directory (it holds {others[0]}): use another --run")
        atomic.write_text(file, config)

    def config(self) -> dict[str, Any]:
        """The resolved configuration, as plain values."""
        try:
            values = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RunError(f"{self.path / 'config.yaml'} is damaged: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise RunError(f"{self.path / 'config.yaml'} is damaged: it holds no keys and values")
        return values

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """A small file such as environment.json."""
        atomic.write_text(self.path / name, json.dumps({"format": FORMAT, **value}, indent=1) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A small file's value; None if it is not there.

        Raises:
            RunError: it is damaged, or of a later format.
        """
        file = self.path / name
        if not file.exists():
            return None
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{file} is damaged: {error}") from None
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise RunError(f"{file} has another format than {FORMAT}: it was written by another version of robustill")
        return value

    # --- metrics: one line an epoch

    def metrics(self) -> list[dict[str, Any]]:
        """The lines so far, in order of their epochs; a last line that a kill cut off is left out."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        parsed = []
        for line in lines:
            with contextlib.suppress(ValueError):
                parsed.append(json.loads(line))
        return parsed

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add an epoch's line."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    # --- checkpoints

    def save(self, checkpoint: Checkpoint) -> None:
        """Write checkpoints/epoch-NNNN, whole or not at all, with the checksums of its files."""
        state = io.BytesIO()
        torch.save({**checkpoint.state, "epoch": checkpoint.epoch}, state)
        files = {
            "model.safetensors": save_safetensors(_dense(checkpoint.model)),
            "state.pt": state.getvalue(),
            "metrics.json": json.dumps(checkpoint.metrics).encode(),
        }
        if checkpoint.ema is not None:
            files["ema.safetensors"] = save_safetensors(_dense(checkpoint.ema))
        with atomic.new_folder(self.folder(checkpoint.epoch)) as folder:
            for name, content in files.items():
                (folder / name).write_bytes(content)
            sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            (folder / "checksums.json").write_text(json.dumps({"format": FORMAT, "sha256": sums}, indent=1))
        self.point("last", checkpoint.epoch)

    def folder(self, epoch: int) -> Path:
        """Where an epoch's checkpoint lies."""
        return self.path / "checkpoints" / f"epoch-{epoch:04d}"

    def epochs(self) -> list[int]:
        """The epochs whose checkpoints are kept, ascending."""
        names = (each.name for each in (self.path / "checkpoints").glob("epoch-*"))
        return sorted(int(name[6:]) for name in names if name[6:].isdigit())

    def point(self, name: str, epoch: int) -> None:
        """Let a name such as "best" mean an epoch."""
        atomic.write_text(self.path / "checkpoints" / name, f"epoch-{epoch:04d}\n")

    def pointed(self, name: str) -> int | None:
        """The epoch that a name means; None if nothing has that name."""
        file = self.path / "checkpoints" / name
        text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
        return int(text[6:]) if text.startswith("epoch-") and text[6:].isdigit() else None

    def resolve(self, what: str) -> tuple[int, str]:
        """An epoch and its file of weights, from "best", "last", "best-ema", "last-ema", "epoch-20" or "epoch-20-ema".

        Raises:
            RunError: nothing of that name is kept.
        """
        name = what.removesuffix("-ema")
        epoch = self.pointed("best-ema") if what == "best-ema" else self.pointed(name)
        if epoch is None and name.startswith("epoch-") and name[6:].isdigit():
            epoch = int(name[6:])
        file = "ema.safetensors" if what.endswith("-ema") else "model.safetensors"
        if epoch is None or not (self.folder(epoch) / file).is_file():
            kept = ", ".join(f"epoch-{each}" for each in self.epochs()) or "none"
            raise RunError(f"{self.path} has no checkpoint {what!r}: expected best, last or one of: {kept}")
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
        content = self._verified(epoch, file)
        return _tensors(content, self.folder(epoch) / file), hashlib.sha256(content).hexdigest()

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; damaged ones are passed over with a warning. None if there is none."""
        for epoch in reversed(self.epochs()):
            try:
                return self._checkpoint(epoch)
            except CheckpointError as error:
                warnings.warn(f"{error}; using the checkpoint before it", stacklevel=2)
        return None

    def rewind(self, checkpoint: Checkpoint) -> None:
        """Bring metrics and names back to a checkpoint: what a kill left half done after it is forgotten."""
        before = [line for line in self.metrics() if line["epoch"] < checkpoint.epoch]
        lines = [*before, checkpoint.metrics]
        atomic.write_text(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        self.point("last", checkpoint.epoch)
        for name in ("best", "best-ema"):
            if (self.pointed(name) or 0) > checkpoint.epoch:
                (self.path / "checkpoints" / name).unlink()

    def choose(self, *, keep_every: int | None) -> None:
        """Name the best epochs by robust accuracy on the held-out part, and remove what no setting asks to keep.

        Kept are `last` and the one before it (in case it is damaged), `best`, `best-ema`, and every k-th.
        """
        kept = self.epochs()
        for name, key in (("best", "validation_robust_accuracy"), ("best-ema", "ema_validation_robust_accuracy")):
            looks = [line for line in self.metrics() if key in line and line["epoch"] in kept]
            if looks:
                # Of equals the earliest.
                self.point(name, max(looks, key=lambda line: (line[key], -line["epoch"]))["epoch"])
        named = {self.pointed("best"), self.pointed("best-ema"), *kept[-2:]}
        every = {epoch for epoch in kept if keep_every is not None and epoch % keep_every == 0}
        self.keep_only({epoch for epoch in named if epoch is not None} | every)

    def keep_only(self, epochs: Collection[int]) -> None:
        """Remove the checkpoints of all other epochs, and what killed writes left behind."""
        for epoch in set(self.epochs()) - set(epochs):
            shutil.rmtree(self.folder(epoch))
        for leftover in (self.path / "checkpoints").glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _checkpoint(self, epoch: int) -> Checkpoint:
        folder = self.folder(epoch)
        try:
            # weights_only: nothing in the file can run code, whoever put it there.
            state = torch.load(io.BytesIO(self._verified(epoch, "state.pt")), weights_only=True, map_location="cpu")
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(f"{folder / 'state.pt'} is damaged: {str(error).splitlines()[0]}") from None
        ema = folder / "ema.safetensors"
        return Checkpoint(
            epoch=epoch,
            model=_tensors(self._verified(epoch, "model.safetensors"), folder / "model.safetensors"),
            ema=_tensors(self._verified(epoch, "ema.safetensors"), ema) if ema.exists() else None,
            state=state,
            metrics=json.loads(self._verified(epoch, "metrics.json")),
        )

    def _verified(self, epoch: int, name: str) -> bytes:
        file = self.folder(epoch) / name
        try:
            sums = json.loads((file.parent / "checksums.json").read_text(encoding="utf-8"))
            content, expected = file.read_bytes(), sums["sha256"][name]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"checkpoint {file.parent} is damaged: {error}") from None
        if hashlib.sha256(content).hexdigest() != expected:
            raise CheckpointError(f"{file} is damaged: its checksum is not the one it was written with")
        return content


def _dense(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Cloned: the file must not depend on memory formats, nor on tensors that share their storage.
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def _tensors(content: bytes, file: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(content)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    a, b = _flat(there), _flat(here)
    for key in list(b) + [key for key in a if key not in b]:
        if key not in _FREE_KEYS and a.get(key) != b.get(key):
            return key, a.get(key), b.get(key)
    return None
