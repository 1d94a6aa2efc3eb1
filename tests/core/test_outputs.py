"""What the user has under a name is not replaced by what a command writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from robustill.core.errors import RunError
from robustill.core.outputs import check_output_file
from robustill.models.export import export_network


def check(out: Path) -> None:
    check_output_file(out, lambda head: head.startswith(b"ours"), "page of ours", "--out")


def test_new_files_and_ours_may_be_written(tmp_path: Path) -> None:
    check(tmp_path / "new")
    check(tmp_path / "new folder" / "below" / "new")
    (tmp_path / "page").write_text("ours, of yesterday")
    check(tmp_path / "page")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("thesis", "exists and is no page of ours: give another name as --out, or move it away"),
        ("folder", "is a folder and cannot be written"),
        ("pipe", "is no regular file and cannot be written"),
        ("device", "is no regular file"),
        ("dangling", "is a link to nothing"),
        ("to a thesis", "exists and is no page of ours"),
        ("thesis/page", "cannot be written"),
        ("loop", "cannot be written"),
        ("x" * 300, "cannot be written"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for link, target in (("device", "/dev/null"), ("dangling", "no"), ("to a thesis", "thesis"), ("loop", "loop")):
        (tmp_path / link).symlink_to(target)
    with pytest.raises(RunError, match=says) as caught:
        check(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert "--out" in str(caught.value)
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_a_read_only_place_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page").write_text("ours, of yesterday")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    for name in ("new", "page", "new folder/new"):
        with pytest.raises(RunError, match="is read-only: give another place as --out") as caught:
            check(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="is read-only: give another place as OUT"):
        export_network("run:nowhere", tmp_path / "network.pt2")
