"""`robustill difficulty`, `transfer` and `report`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from helpers.command_line import Call


def test_difficulty_is_compared_with_human_labels(call: Call, tmp_path: Path) -> None:
    labels = np.arange(30) % 3
    np.savez(tmp_path / "said.npz", clean_label=labels, worse_label=np.where(labels == 1, 2, labels))
    (tmp_path / "scores.csv").write_text(
        "id,label,hard\n" + "".join(f"{i},{i % 3},{i % 3 == 1:d}\n" for i in range(30))
    )
    words = ["difficulty", str(tmp_path / "scores.csv"), "--uncertainty", str(tmp_path / "said.npz")]
    code, out, _ = call(*words, "--out", str(tmp_path / "found.csv"))
    assert code == 0
    assert re.search(r"hard +1\.000 +1\.000–1\.000 +1\.000", out)
    assert "worse_label differs,scores.csv,hard,30,,,,10,1.0,1.0,1.0,1.0" in (tmp_path / "found.csv").read_text()
    (tmp_path / "said.npz").write_bytes(b"PK")
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "said.npz: damaged" in err
    assert call("difficulty", str(tmp_path), "--uncertainty", str(tmp_path / "nowhere.npz"))[0] == 2


def test_a_transfer_is_printed_and_shown_in_the_report(
    call: Call, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    words = ["--num-images", "20", "--suite", "pgd-20", "--out", str(tmp_path / "t"), "--threat", "linf:0.05"]
    code, out, _ = call("transfer", "run", "run:run@epoch-1", *words)
    assert code == 0
    assert re.search(r"2 run@epoch-1 +[01]\.[0-9]{3} +[01]\.[0-9]{3}", out)
    assert "20 images, a subset of 500; linf:0.05; suite pgd-20" in out
    # What was found about a network is said in this table, too.
    assert "! run is no better than guessing among 10 classes" in out
    code, _, _ = call("report", "run", "--transfer", str(tmp_path / "t"), "--out", str(tmp_path / "page.html"))
    assert code == 0
    assert "run@epoch-1" in (tmp_path / "page.html").read_text()
