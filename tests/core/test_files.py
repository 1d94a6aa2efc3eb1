"""Files are written atomically: after a failure they have their old content."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import tracemalloc
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from robustill.core.errors import RunError
from robustill.core.files import (
    BoundedReader,
    abandoned,
    exclusive_lock,
    new_folder,
    take_lock,
    write_bytes,
    write_text,
)


def test_writing_replaces_content_and_makes_folders(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "file"
    write_bytes(file, b"one")
    write_text(file, "zwö")
    assert file.read_bytes() == "zwö".encode()
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "file"
    write_bytes(file, b"old")
    monkeypatch.setattr(Path if call == "replace" else os, call, fails)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_new_folder_appears_complete(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "folder") as folder:
        (folder / "x").write_text("x")
        assert not (tmp_path / "deep" / "folder").exists()
    assert (tmp_path / "deep" / "folder" / "x").read_text() == "x"
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["folder"]


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "folder") as folder:
        (folder / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "folder") as folder:
        (folder / "x").write_text(str(1 / 0))
    assert (tmp_path / "folder" / "x").read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_a_new_folder_replaces_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "folder" / "half").mkdir(parents=True)
    with new_folder(tmp_path / "folder") as folder:
        (folder / "x").write_text("new")
    assert [each.name for each in (tmp_path / "folder").iterdir()] == ["x"]


def _replace_until_killed(folder: Path, steps: int) -> None:
    """Replace a folder by one with x = y = "new"; kill the process at the n-th rename or removal."""
    calls = [0]

    def counted(call: Callable[..., None]) -> Callable[..., None]:
        def step(*given: Any, **named: Any) -> None:
            calls[0] += 1
            if calls[0] == steps:
                os.kill(os.getpid(), signal.SIGKILL)
            call(*given, **named)

        return step

    for name in ("rename", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    _fill(folder, "new")


def _fill(folder: Path, text: str) -> None:
    with new_folder(folder) as new:
        (new / "x").write_text(text)
        (new / "y").write_text(text)


def test_a_kill_leaves_the_old_folder_the_new_one_or_none_and_never_a_part(tmp_path: Path) -> None:
    folder, found = tmp_path / "folder", []
    for steps in range(1, 7):
        _fill(folder, "old")
        assert [each.name for each in tmp_path.iterdir()] == ["folder"]
        process = multiprocessing.get_context("fork").Process(target=_replace_until_killed, args=(folder, steps))
        process.start()
        process.join()
        found.append([each.read_text() for each in sorted(folder.glob("*"))])
    # Two renames, then two files and their folder are removed; then it ends.
    assert found == [["old", "old"], [], *[["new", "new"]] * 4]
    assert process.exitcode == 0


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "folder", Path.rename
    _fill(folder, "old")

    def fails(self: Path, to: Path) -> None:
        if to == folder and not self.name.startswith(".folder.old."):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(self, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output error"):
        _fill(folder, "new")
    assert (folder / "x").read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("is_link", [True, False])
def test_a_link_or_a_file_is_not_replaced_by_a_folder(tmp_path: Path, is_link: bool) -> None:
    (tmp_path / "other").mkdir()
    if is_link:
        (tmp_path / "folder").symlink_to("other")
    else:
        (tmp_path / "folder").touch()
    with pytest.raises(NotADirectoryError):
        _fill(tmp_path / "folder", "new")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "other"]


def test_everything_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: (happened.append("flush"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "rename", lambda self, to: (happened.append("rename"), rename(self, to))[1])
    with new_folder(tmp_path / "folder") as folder:
        (folder / "x").write_text("x")
        (folder / "y").write_text("y")
    # Both files and the folder that names them, the rename, the folder around it.
    assert happened == ["flush", "flush", "flush", "rename", "flush"]


def test_what_a_process_that_ended_left_is_abandoned(tmp_path: Path) -> None:
    ended = multiprocessing.get_context("fork").Process(target=str)
    ended.start()
    ended.join()
    names = [f".a.{ended.pid}.tmp", f".a.pt2.{ended.pid}.tmp", f".b.{os.getpid()}.tmp", ".c.tmp", ".1.tmp", ".d.x.tmp"]
    for name in (*names, f"a.{ended.pid}.tmp", ".e.99999999999.tmp"):
        (tmp_path / name).touch()
    assert sorted(path.name for path in abandoned(tmp_path)) == sorted(names[:2])


# --- locks


def _hold(file: Path, end: Connection) -> None:
    """Hold a lock with a forked process beside it, which outlives this one."""
    with exclusive_lock(file, "taken"):
        child = os.fork()
        if child == 0:
            signal.pause()
        end.send(child)
        signal.pause()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path / "lock", there))
    process.start()
    beside = here.recv()
    with pytest.raises(RunError, match=r"^taken$"), exclusive_lock(tmp_path / "lock", "taken"):
        pass
    process.kill()
    process.join()
    try:
        with exclusive_lock(tmp_path / "lock", "taken"):
            os.kill(beside, 0)
    finally:
        os.kill(beside, signal.SIGKILL)


def test_a_forked_process_that_ends_takes_no_lock_with_it(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "lock", "taken"):
        forked = multiprocessing.get_context("fork").Process(target=str)
        forked.start()
        forked.join()
        assert take_lock(tmp_path / "lock") is None
    # The file stays: another process may have opened it.
    assert (tmp_path / "lock").exists()


def test_a_lock_is_shared_with_the_group_as_other_files_are(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with exclusive_lock(tmp_path / "lock", "taken"):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


def test_a_file_system_without_locks_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", fails)
    with (
        pytest.warns(UserWarning, match=r"lock cannot be locked \(No locks available\): start no second process on it"),
        exclusive_lock(tmp_path / "lock", "taken"),
    ):
        assert (tmp_path / "lock").exists()


def test_a_bounded_file_reserves_no_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"0123456789")
    with BoundedReader(path) as file:
        assert file.read(4) == b"0123"
        tracemalloc.start()
        assert file.read(2**30) == b"456789"
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**20
        file.seek(8)
        assert file.read() == b"89"
        file.seek(20)
        assert file.read(5) == b""
