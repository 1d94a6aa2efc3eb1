"""Training runs of a few seconds on a few digits, and comparisons between them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from robustill.config.files import load_config
from robustill.config.schema import Config, make_config
from robustill.core import signals
from robustill.core.signals import Interrupted, interruptible
from robustill.runs.checkpoints import Checkpoints
from robustill.runs.directory import RunDirectory
from robustill.training import loop as training

TIMING = ("seconds", "images_per_second", "check")


def small_values(**changes: Any) -> dict[str, Any]:
    """Return settings of two epochs of PGD-AT on 40 digits; `optim={"epochs": 3}` changes keys inside a group."""
    values: dict[str, Any] = {
        "data": {"name": "digits", "train_size": 40, "validation": 30},
        "model": {"name": "resnet8", "width": 2},
        "method": {"name": "at"},
        "threat": {"norm": "linf", "eps": 0.1},
        "attack": {"steps": 1, "step_size": 0.1},
        "optim": {"epochs": 2, "batch_size": 20, "warmup": 0.0},
        "validation": {"steps": 1},
        "compute": {"device": "cpu", "threads": 1},
    }
    for key, change in changes.items():
        values[key] = {**values.get(key, {}), **change} if isinstance(change, dict) else change
    return values


def small_config(**changes: Any) -> Config:
    return make_config(small_values(**changes))


def weights(run: Path, what: str = "last") -> str:
    """Return the SHA-256 of a checkpoint's file of weights."""
    return RunDirectory(run).checkpoints.weights(what)[1]


def lines(run: Path) -> list[dict[str, Any]]:
    """Return the metrics without times."""
    parsed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in parsed]


def tree(folder: Path) -> dict[str, str]:
    """Return every path below a folder: files with the SHA-256 of their content, folders with an empty string."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def hold_the_lock(run: Path, held: Any, release: Any) -> None:
    """Hold the lock of a run until `release` is set; runs in a process of its own."""
    with RunDirectory(run).locked():
        held.set()
        release.wait(600)


def signal_at(moment: int, kind: int, *more: tuple[Any, str]) -> None:
    """Send this process a signal at a given moment.

    The moments are the calls that flush, rename or remove files, and those of `more`, counted from 1; the signal comes
    right before the call.
    """
    left = moment

    def watched(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), kind)
            return original(*arguments, **settings)

        setattr(owner, name, call)

    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink"), (os, "rmdir"), *more):
        watched(owner, name)


def train_until(file: Path, run: Path, moment: int, kind: int) -> None:
    """Train, and receive a signal at a moment or before a training step; runs in a process of its own."""
    signal_at(
        moment,
        kind,
        (training._Loop, "_set_rate"),
        (RunDirectory, "append_metrics"),
        (Checkpoints, "choose"),
    )
    # A step may take long on a busy machine.
    signals.PATIENCE = 600.0
    # The traceback of an interrupted process is not of interest.
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    torch.set_num_threads(1)
    try:
        with interruptible():
            training.train(load_config(file), run, progress=False)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
