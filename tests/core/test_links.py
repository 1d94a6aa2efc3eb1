"""Nothing is read, written or removed through a link that somebody else put into a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from robustill.core.checksums import read_checksummed_file, write_checksummed_folder
from robustill.core.errors import CheckpointError, RunError
from robustill.core.files import exclusive_lock, exclusive_lock_in, write_bytes
from robustill.core.links import open_regular_file, read_regular_file, refuse_link, refuse_special_files


def test_a_lock_empties_nothing(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("kept")
    with exclusive_lock(tmp_path / "lock", "taken"):
        assert (tmp_path / "lock").read_text() == "kept"
        with pytest.raises(RunError, match=r"^taken$"), exclusive_lock(tmp_path / "lock", "taken"):
            pass
    assert (tmp_path / "lock").read_text() == "kept"


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    precious, lock = tmp_path / "precious", tmp_path / "lock"
    precious.write_text("years of work")
    if kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to("precious" if kind == "link" else "nowhere")
    says = r"lock is (a link, which is not followed|no regular file): remove it$"
    with pytest.raises(RunError, match=says), exclusive_lock(lock, "taken"):
        pass
    assert precious.read_text() == "years of work"
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(RunError), exclusive_lock_in(tmp_path, "taken"):
        pass


def test_a_temporary_name_is_no_way_out_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("years of work")
    (tmp_path / f".page.{os.getpid()}.tmp").symlink_to("precious")
    write_bytes(tmp_path / "page", b"new")
    assert (tmp_path / "precious").read_text() == "years of work"
    assert (tmp_path / "page").read_bytes() == b"new"
    assert not (tmp_path / "page").is_symlink()


def test_regular_files_alone_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert read_regular_file(tmp_path / "file") == b"content"
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=name):
            open_regular_file(tmp_path / name, os.O_RDONLY)
    with pytest.raises(FileNotFoundError):
        read_regular_file(tmp_path / "missing")
    with pytest.raises(OSError, match="no regular file"):
        read_regular_file(tmp_path)


def test_links_are_refused_wherever_they_lead(tmp_path: Path) -> None:
    refuse_link(tmp_path / "missing")
    refuse_link(tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(RunError, match="is a link, and nothing is written through links"):
        refuse_link(tmp_path / "link")


def test_pipes_and_devices_are_found_in_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "loop").symlink_to("..")
    (tmp_path / "a" / "dangling").symlink_to("nowhere")
    refuse_special_files(tmp_path)
    (tmp_path / "a" / "b" / "model").symlink_to("/dev/zero")
    with pytest.raises(RunError, match="model is no regular file but a pipe"):
        refuse_special_files(tmp_path)


def test_a_checkpoint_is_not_read_through_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "epoch"
    write_checksummed_folder(folder, {"x": b"content"})
    (folder / "x").rename(tmp_path / "elsewhere")
    (folder / "x").symlink_to("../elsewhere")
    with pytest.raises(CheckpointError, match="a link, which is not followed"):
        read_checksummed_file(folder, "x")
