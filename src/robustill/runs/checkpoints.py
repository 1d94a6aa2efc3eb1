"""An epoch that was stopped on the way, in RUN/checkpoints/unfinished: the run goes on at its next step."""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from robustill.core.checksums import read_checksummed_state, sha256, write_checksummed_folder
from robustill.core.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What one epoch left behind.

    Args:
        epoch: counted from 1.
        model: the student's state.
        ema: its moving average's, if there is one.
        swa: that of its mean over epochs, if there is one.
        state: everything else that the loop needs to continue: optimizer, method.
        metrics: the lines of all epochs up to this one: with it, no other file is needed to go on.
    """

    epoch: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    state: dict[str, Any]
    metrics: list[dict[str, Any]]
    swa: dict[str, Tensor] | None = None


def _pointer(epoch: int) -> str:
    name = f"epoch-{epoch:04d}"
    return f"{name} {sha256(name.encode())[:8]}"


def _dense(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Cloned: the file must not depend on memory formats, nor on tensors that share their storage.
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def _tensors(content: bytes, file: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(content)
    except Exception as error:
        # Whatever a header that lies makes the reader do.
        raise CheckpointError(f"{file} is damaged: {error}") from None


FOLDER = "unfinished"


def save(run: Path, epoch: int, state: Mapping[str, Any]) -> None:
    """Keep what an epoch has come to.

    Args:
        run: its directory.
        epoch: counted from 1.
        state: tensors, numbers, words, lists and dictionaries of them.
    """
    content = io.BytesIO()
    torch.save({**state, "epoch": epoch}, content)
    write_checksummed_folder(_folder(run), {"state.pt": content.getvalue()})


def load(run: Path, epoch: int) -> dict[str, Any] | None:
    """What was kept of this epoch; one that is damaged is passed over with a warning."""
    if not _folder(run).is_dir():
        return None
    try:
        state = read_checksummed_state(_folder(run), "state.pt")
    except CheckpointError as error:
        warnings.warn(f"{error}; its epoch begins again", stacklevel=2)
        return None
    return state if state.get("epoch") == epoch else None


def forget(run: Path) -> None:
    """It is not needed any more, or never was there."""
    if _folder(run).is_dir():
        shutil.rmtree(_folder(run))


def _folder(run: Path) -> Path:
    return run / "checkpoints" / FOLDER
