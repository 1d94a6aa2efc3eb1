"""Checkpoints of a run: which epochs are named and kept, and how names are resolved."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from robustill.core.errors import RunError
from robustill.runs.checkpoints import Checkpoint, Checkpoints


def filled(run: Path, accuracies: list[float], keep_every: int | None = None) -> Checkpoints:
    """Save one checkpoint an epoch, whose weights are its number."""
    checkpoints = Checkpoints(run)
    lines = [{"epoch": epoch, "validation_robust_accuracy": each} for epoch, each in enumerate(accuracies, start=1)]
    for epoch in range(1, len(lines) + 1):
        model = {"w": torch.full((2,), float(epoch))}
        state = {"a": torch.ones(1)}
        checkpoints.save(Checkpoint(epoch=epoch, model=model, ema=None, state=state, metrics=lines[:epoch]))
        checkpoints.choose(lines[:epoch], keep_every=keep_every)
    return checkpoints


def test_best_is_the_earliest_of_the_highest(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, [0.1, 0.4, 0.4, 0.3, 0.2])
    pointed = [checkpoints.pointed(name) for name in ("best", "last", "best-ema")]
    assert pointed == [2, 5, None]
    assert checkpoints.epochs() == [2, 4, 5]
    assert torch.equal(checkpoints.weights("best")[0]["w"], torch.full((2,), 2.0))


def test_every_kth_is_kept(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, [0.9, 0, 0, 0, 0, 0, 0, 0], keep_every=3)
    assert checkpoints.epochs() == [1, 3, 6, 7, 8]


def test_a_missing_best_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, [0.1, 0.9, 0.2, 0.3])
    last = checkpoints.read(4)
    shutil.rmtree(checkpoints.folder(2))
    with pytest.warns(UserWarning, match="best epoch, 2, is missing"):
        checkpoints.choose(last.metrics, keep_every=None)
    with pytest.raises(RunError, match="no checkpoint 'best'"):
        checkpoints.weights("best")


@pytest.mark.parametrize(
    "name", ["nonsense", "epoch-9", "best-ema", "last-ema", "epoch-1-ema", "../../x", "epoch-²", "epoch-" + "9" * 5000]
)
def test_the_error_for_an_unknown_name_lists_the_epochs(tmp_path: Path, name: str) -> None:
    checkpoints = filled(tmp_path, [0.1, 0.2])
    with pytest.raises(RunError, match=r"expected best, last, or one of those kept: epoch-1, epoch-2"):
        checkpoints.resolve(name)


def test_epochs_may_have_any_number_of_zeros(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path, [0.1])
    assert checkpoints.resolve("epoch-1") == checkpoints.resolve("epoch-0001") == (1, "model.safetensors")
