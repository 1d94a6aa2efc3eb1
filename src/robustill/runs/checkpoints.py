"""The checkpoints of a run: a folder for each epoch, files that name the best and the last one, an unfinished epoch."""

from __future__ import annotations

import io
import json
import re
import shutil
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustill.core.checksums import read_checksummed_file, read_checksummed_state, sha256, write_checksummed_folder
from robustill.core.errors import CheckpointError, RunError
from robustill.core.files import is_temporary, write_text
from robustill.core.links import read_regular_file

# Reading which checkpoint is the best one, as a page does, needs no tensors.
if TYPE_CHECKING:
    from torch import Tensor

_AVERAGES = ("ema", "swa")
_NAMES = ("best", "best-ema", "best-swa", "last")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run at the end of an epoch.

    Args:
        epoch: the epoch, counted from 1.
        model: the student's state_dict.
        ema: the state_dict of its exponential moving average, if there is one.
        swa: the state_dict of its stochastic weight average, if there is one.
        state: everything else that training needs to continue: the state of the optimizer and of the method.
        metrics: the metrics of all epochs up to this one, so that training can continue without any other file.
    """

    epoch: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    state: dict[str, Any]
    metrics: list[dict[str, Any]]
    swa: dict[str, Tensor] | None = None


class Checkpoints:
    """The checkpoints of one run, in RUN/checkpoints.

    Args:
        run: the run directory.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / "checkpoints"

    # --- one folder an epoch

    def folder(self, epoch: int) -> Path:
        """Return the folder of an epoch's checkpoint."""
        return self.path / f"epoch-{epoch:04d}"

    def epochs(self) -> list[int]:
        """Return the epochs that have a checkpoint, in ascending order."""
        matches = [re.fullmatch(r"epoch-([0-9]{4,9})", each.name) for each in self.path.glob("epoch-*")]
        return sorted(int(match[1]) for match in matches if match)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write checkpoints/epoch-NNNN with the checksums of its files, name it "last", and drop the unfinished epoch.

        The folder appears under its name only when all of it is on disk.
        """
        import torch
        from safetensors.torch import save as save_safetensors

        averages = {kind: getattr(checkpoint, kind) for kind in _AVERAGES}
        has = {f"has_{kind}": average is not None for kind, average in averages.items()}
        state = io.BytesIO()
        torch.save({**checkpoint.state, "epoch": checkpoint.epoch, **has}, state)
        files = {
            "model.safetensors": save_safetensors(_contiguous(checkpoint.model)),
            "state.pt": state.getvalue(),
            "metrics.json": json.dumps(checkpoint.metrics).encode(),
        }
        for kind, average in averages.items():
            if average is not None:
                files[f"{kind}.safetensors"] = save_safetensors(_contiguous(average))
        write_checksummed_folder(self.folder(checkpoint.epoch), files)
        self.point("last", checkpoint.epoch)
        self.forget_unfinished()

    def read(self, epoch: int) -> Checkpoint:
        """Read an epoch's checkpoint and check every file against its checksum.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        folder = self.folder(epoch)
        state = read_checksummed_state(folder, "state.pt")
        try:
            state_epoch = state["epoch"]
            metrics = json.loads(read_checksummed_file(folder, "metrics.json"))
        except (ValueError, KeyError, RecursionError) as error:
            raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from None
        if not isinstance(metrics, list) or not all(isinstance(line, dict) for line in metrics):
            raise CheckpointError(f"checkpoint {folder} is damaged: its metrics.json is no list of lines")
        if type(state_epoch) is not int or state_epoch != epoch or len(metrics) != epoch:
            raise CheckpointError(f"checkpoint {folder} is of another epoch than its name says")
        model = self._read_tensors(epoch, "model")
        averages = {kind: self._read_tensors(epoch, kind) for kind in _AVERAGES if state.get(f"has_{kind}") is True}
        return Checkpoint(
            epoch=epoch,
            model=model,
            ema=averages.get("ema"),
            swa=averages.get("swa"),
            state=state,
            metrics=metrics,
        )

    def _read_tensors(self, epoch: int, kind: str) -> dict[str, Tensor]:
        folder, name = self.folder(epoch), f"{kind}.safetensors"
        return _parse_tensors(read_checksummed_file(folder, name), folder / name)

    def latest(self) -> Checkpoint | None:
        """Return the newest undamaged checkpoint, or None; warn about each damaged one that is skipped."""
        epochs = self.epochs()
        for epoch in reversed(epochs):
            try:
                return self.read(epoch)
            except CheckpointError as error:
                consequence = "starting over" if epoch == epochs[0] else "going on from an earlier one"
                warnings.warn(f"{error}; {consequence}", stacklevel=2)
        return None

    def keep_only(self, epochs: Collection[int]) -> None:
        """Remove the checkpoints of all other epochs, and the temporary files of writes that were killed."""
        for epoch in set(self.epochs()) - set(epochs):
            shutil.rmtree(self.folder(epoch))
        for folder in (self.run, self.path, self.run / "dynamics"):
            for temporary in filter(is_temporary, folder.glob(".*")):
                if temporary.is_dir():
                    shutil.rmtree(temporary)
                else:
                    temporary.unlink()

    def forget_after(self, epoch: int) -> None:
        """Remove the unfinished epoch and all checkpoints after an epoch, the newest first.

        In this order the run can be continued even if the process is killed between two removals.
        """
        self.forget_unfinished()
        for later in reversed(self.epochs()):
            if later > epoch:
                shutil.rmtree(self.folder(later))

    # --- names: "best", "best-ema", "best-swa" and "last"

    def point(self, name: str, epoch: int) -> None:
        """Let a name ("best", "best-ema", "best-swa" or "last") mean an epoch."""
        write_text(self.path / name, f"{_pointer_text(epoch)}\n")

    def pointed(self, name: str) -> int | None:
        """Return the epoch that a name ("best", "best-ema", "best-swa" or "last") means; None if it is not set.

        Raises:
            RunError: the name's file is damaged.
        """
        file = self.path / name
        try:
            text = read_regular_file(file).decode(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RunError(f"{file} cannot be read ({error.strerror}): restore it, or use another --run") from None
        # Runs of earlier versions have no checksum behind the epoch.
        match = re.fullmatch(r"epoch-([0-9]{4,9})( [0-9a-f]{8})?\n", text)
        if not match or (match[2] and text != f"{_pointer_text(int(match[1]))}\n"):
            raise RunError(f"{file} is damaged: run the same training command to restore it")
        return int(match[1])

    def resolve(self, name: str) -> tuple[int, str]:
        """Return the epoch that a name means, and the name of its file of weights.

        Args:
            name: "best", "last" or "epoch-20"; for the weights of an average, followed by "-ema" or "-swa".

        Raises:
            RunError: there is no such checkpoint.
        """
        kind = "model"
        for average in _AVERAGES:
            if name.endswith(f"-{average}"):
                kind = average
        base = name.removesuffix(f"-{kind}")
        number = re.fullmatch(r"epoch-([0-9]{1,9})", base)
        epoch = int(number[1]) if number else None
        if base in _NAMES:
            # "best-ema" has an epoch of its own, "last-ema" is the average of the last epoch.
            epoch = self.pointed(name if name in _NAMES else base)
        file = f"{kind}.safetensors"
        if epoch is None or not (self.folder(epoch) / file).is_file():
            available = ", ".join(f"epoch-{each}" for each in self.epochs()) or "no epoch"
            raise RunError(
                f"{self.run} has no checkpoint {name!r}: expected best, last, or one of those kept: {available}"
            )
        return epoch, file

    def weights(self, name: str) -> tuple[dict[str, Tensor], str]:
        """Read the weights of a checkpoint; return them and the sha256 of their file.

        Args:
            name: as `resolve` takes it.

        Raises:
            RunError: there is no such checkpoint.
            CheckpointError: its file is damaged.
        """
        epoch, file = self.resolve(name)
        content = read_checksummed_file(self.folder(epoch), file)
        return _parse_tensors(content, self.folder(epoch) / file), sha256(content)

    def rewind(self, epoch: int | None) -> None:
        """Remove all names and let "last" mean an epoch; None for a run that starts over.

        Args:
            epoch: the epoch to continue from, counted from 1.
        """
        for name in _NAMES:
            (self.path / name).unlink(missing_ok=True)
        if epoch is not None:
            self.point("last", epoch)

    def choose(self, metrics: list[dict[str, Any]], *, keep_every: int | None) -> None:
        """Name the epochs of the best robust accuracy on the validation images, and remove checkpoints not needed.

        Kept are the best epoch (of the student and of each average), the last one, the one before it in case the last
        is damaged, and every k-th.

        Args:
            metrics: the metrics of all epochs so far, as `RunDirectory.metrics` returns them.
            keep_every: k; None keeps none beyond those named above.
        """
        epochs = self.epochs()
        best_epochs = set()
        for name, prefix in (("best", ""), ("best-ema", "ema_"), ("best-swa", "swa_")):
            key = f"{prefix}validation_robust_accuracy"
            validated = [line for line in metrics if key in line]
            if not validated:
                continue
            # The earliest of equals.
            best = max(validated, key=lambda line: (line[key], -line["epoch"]))["epoch"]
            if best not in epochs:
                warnings.warn(f"{self.run}: the checkpoint of its best epoch, {best}, is missing", stacklevel=2)
            self.point(name, best)
            best_epochs.add(best)
        done = len(metrics)
        recent = [epoch for epoch in epochs if epoch <= done][-2:]
        # Checkpoints after the last undamaged one are damaged: training their epochs again will replace them.
        later = [epoch for epoch in epochs if epoch > done]
        every = [epoch for epoch in epochs if keep_every is not None and epoch % keep_every == 0]
        self.keep_only({*best_epochs, *recent, *every, *later})

    # --- an epoch that was stopped before its end: training continues at its next step

    @property
    def unfinished_folder(self) -> Path:
        """The folder of an epoch that was stopped before its end."""
        return self.path / "unfinished"

    def save_unfinished(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write the state of an epoch that was stopped before its end.

        Args:
            epoch: the epoch, counted from 1.
            state: tensors, numbers and strings, and lists and dictionaries of them.
        """
        import torch

        content = io.BytesIO()
        torch.save({**state, "epoch": epoch}, content)
        write_checksummed_folder(self.unfinished_folder, {"state.pt": content.getvalue()})

    def load_unfinished(self, epoch: int) -> dict[str, Any] | None:
        """Return the state of an unfinished epoch, or None if there is none; warn if it is damaged."""
        if not self.unfinished_folder.is_dir():
            return None
        try:
            state = read_checksummed_state(self.unfinished_folder, "state.pt")
        except CheckpointError as error:
            warnings.warn(f"{error}; its epoch begins again", stacklevel=2)
            return None
        return state if state.get("epoch") == epoch else None

    def forget_unfinished(self) -> None:
        """Remove the state of an unfinished epoch, if there is one."""
        if self.unfinished_folder.is_dir():
            shutil.rmtree(self.unfinished_folder)


def _pointer_text(epoch: int) -> str:
    name = f"epoch-{epoch:04d}"
    return f"{name} {sha256(name.encode())[:8]}"


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import torch

    # Cloned: the file must not depend on memory formats, nor on tensors that share their storage.
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def _parse_tensors(content: bytes, file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load as load_safetensors

    try:
        return load_safetensors(content)
    except Exception as error:
        # A forged header can make the reader fail in any way.
        raise CheckpointError(f"{file} is damaged: {error}") from None
