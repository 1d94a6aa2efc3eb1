"""Files are written atomically: after a failure they have their old content."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from robustill.core.files import abandoned, new_folder, write_bytes, write_text


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
