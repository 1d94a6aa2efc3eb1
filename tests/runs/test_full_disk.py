"""Full and read-only disks and removed folders: the last good state survives, and the run continues later."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from helpers.small_runs import lines, small_config, tree, weights
from robustill.core.errors import RunError
from robustill.evaluation.targets import evaluate_run
from robustill.runs.directory import RunDirectory
from robustill.training import loop as module
from robustill.training.loop import train

SETTINGS: dict[str, Any] = {"checkpoints": ["last"], "suite": "pgd-20", "num_images": 20, "progress": False}


def trained(run: Path, **changes: object) -> Path:
    return train(small_config(**changes), run, progress=False).run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("disk") / "whole")


@contextmanager
def before_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int, happens: Any) -> Iterator[None]:
    """Call a function when an epoch (counted from 1) has been trained, before it is saved."""
    train_epoch = module._Loop._train_epoch

    def watched(self: module._Loop, bar: Any) -> Any:
        line = train_epoch(self, bar)
        if self.epochs_done + 1 == epoch:
            happens()
        return line

    with monkeypatch.context() as patch:
        patch.setattr(module._Loop, "_train_epoch", watched)
        yield


def same(run: Path, whole: Path) -> bool:
    return lines(run) == lines(whole) and weights(run) == weights(whole) and sorted(tree(run)) == sorted(tree(whole))


def test_a_run_continues_after_a_file_size_limit(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The writes themselves fail, half of them done: 4 kB are less than any file of weights.
    try:
        with (
            before_epoch(monkeypatch, 2, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))),
            pytest.raises(
                RunError, match=r"epoch 2 cannot be written to .*run \(File too large\): mend that"
            ) as caught,
        ):
            trained(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert RunDirectory(run).checkpoints.read(1).epoch == 1
    assert len(lines(run)) == 1
    assert same(trained(run), whole)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_run_continues_after_a_disk_error(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:

        def refuses() -> None:
            def fsync(descriptor: int) -> None:
                raise OSError(code, os.strerror(code))

            patch.setattr(os, "fsync", fsync)

        with before_epoch(monkeypatch, 2, refuses), pytest.raises(RunError, match=os.strerror(code)):
            trained(run)
    assert len(lines(run)) == 1
    assert same(trained(run), whole)


def test_a_removed_run_directory_is_not_made_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    with (
        before_epoch(monkeypatch, 2, lambda: shutil.move(run, elsewhere)),
        pytest.raises(RunError, match=r"cannot be written to .* \(No such file or directory\)"),
    ):
        trained(run)
    assert not run.exists()
    # The place is there again, with what was in it.
    shutil.move(elsewhere, run)
    assert same(trained(run), whole)


def test_an_evaluation_continues_after_a_full_disk(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    fsync, left = os.fsync, [4]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            evaluate_run(run, **SETTINGS, batch_size=7)
    (records,) = evaluate_run(run, **SETTINGS, batch_size=7).values()
    (expected,) = evaluate_run(shutil.copytree(whole, tmp_path / "other"), **SETTINGS, batch_size=7).values()
    np.testing.assert_array_equal(records.margin, expected.margin)


def test_files_are_renamed_within_their_folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So no rename can cross devices, whatever is mounted where.
    moved: list[tuple[Path, Path]] = []
    for name in ("replace", "rename"):
        original = getattr(Path, name)

        def watched(self: Path, target: Path, original: Any = original) -> Path:
            moved.append((self, Path(target)))
            return original(self, target)  # type: ignore[no-any-return]

        monkeypatch.setattr(Path, name, watched)
    evaluate_run(trained(tmp_path / "run"), **SETTINGS)
    assert len(moved) > 15
    assert all(here.parent == there.parent for here, there in moved)


def small_disk(place: Path) -> bool:
    """Return whether this process may mount a file system; any other failure fails the test."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    words = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=words, check=False)
    except FileNotFoundError:
        return False
    if re.search("superuser|permission denied|not permitted", done.stderr, re.IGNORECASE):
        return False
    assert done.returncode == 0, done.stderr
    return True


@pytest.mark.slow
def test_a_real_full_disk_and_a_real_read_only_disk(whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    if not small_disk(place):
        pytest.skip("only who may mount can try: the tests above simulate it")
    try:
        run, filler = place / "run", place / "filler"
        trained(run)
        used = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
        shutil.rmtree(run)
        # Room for the first epoch, and not for all.
        filler.write_bytes(bytes(2**20 - used * 2 // 3))
        with pytest.raises((RunError, OSError), match="No space left on device"):
            trained(run)
        filler.unlink()
        assert same(trained(run), whole)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        with pytest.raises((RunError, OSError), match="Read-only file system"):
            evaluate_run(run, **SETTINGS)
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        assert len(evaluate_run(run, **SETTINGS)) == 1
    finally:
        subprocess.run(["umount", str(place)], check=True)


# --- leaks


LIBRARY = ctypes.CDLL(None)


class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in names.split()]


def in_use() -> tuple[float, int]:
    """Return the MiB that are allocated and not freed, and the number of Python's blocks."""
    gc.collect()
    LIBRARY.mallinfo2.restype = Info
    info = LIBRARY.mallinfo2()
    return (info.uordblks + info.hblkhd) / 2**20, sys.getallocatedblocks()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(LIBRARY, "mallinfo2"), reason="glibc since 2.33 says how much is in use")
def test_memory_does_not_grow_with_steps_and_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[float, int]] = []
    end = module._Loop._end_epoch

    def watched(self: module._Loop, line: dict[str, Any], bar: Any) -> None:
        end(self, line, bar)
        sizes.append(in_use())

    monkeypatch.setattr(module._Loop, "_end_epoch", watched)
    run = trained(tmp_path / "run", data={"train_size": 400}, optim={"epochs": 100, "batch_size": 20})
    assert len(sizes) == 100
    # After 1,580 steps less than a kilobyte and a block more for each.
    assert sizes[-1][0] - sizes[20][0] < 1, sizes[::10]
    assert sizes[-1][1] - sizes[20][1] < 1580, sizes[::10]
    sizes.clear()
    for number in range(50):
        evaluate_run(run, **SETTINGS, seed=number)
        sizes.append(in_use())
    # After 39 evaluations a hundred times that for each.
    assert sizes[-1][0] - sizes[10][0] < 4, sizes[::10]
    assert sizes[-1][1] - sizes[10][1] < 3900, sizes[::10]
