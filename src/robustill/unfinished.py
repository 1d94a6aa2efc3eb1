"""An epoch that was stopped on the way, in RUN/checkpoints/unfinished: the run goes on at its next step."""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from robustill import sealed
from robustill.errors import CheckpointError

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
    sealed.write_folder(_folder(run), {"state.pt": content.getvalue()})


def load(run: Path, epoch: int) -> dict[str, Any] | None:
    """What was kept of this epoch; one that is damaged is passed over with a warning."""
    if not _folder(run).is_dir():
        return None
    try:
        state = sealed.read_state(_folder(run), "state.pt")
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
