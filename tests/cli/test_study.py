"""`robustill plan` and `robustill study`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from helpers.command_line import Call
from helpers.small_runs import tree
from helpers.tiny_studies import recipe


def test_plan_writes_nothing(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["helpers.tiny_studies:pair", "--recipe", recipe(tmp_path / "data"), "--seeds", "1", "--suite", "pgd-20"]
    before = tree(tmp_path)
    code, out, _ = call("plan", *words)
    assert code == 0
    assert "1 seed: 4 runs, 1 of them shared teachers" in out
    assert re.search(r"akd-alpha-1 +akd +2 +0\.1 +teacher-0 ", out)
    assert tree(tmp_path) == before


def test_study_prints_a_table_and_plan_what_is_finished(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["helpers.tiny_studies:pair", "--recipe", recipe(tmp_path / "data"), "--seeds", "1", "--suite", "pgd-20"]
    code, out, _ = call("study", *words)
    assert code == 0
    assert re.search(r"alpha 1 +best", out)
    assert (tmp_path / "runs" / "pair" / "pair-akd.tex").is_file()
    assert "4 of them are finished" in call("plan", *words)[1]


def test_a_study_that_fails_names_the_run_and_what_needs_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["helpers.tiny_studies:pair", "--recipe", recipe(tmp_path / "data"), "--seeds", "1", "--suite", "pgd-20"]
    code, out, err = call("study", *words, "--optim.learning_rate", "1e30", "--runs", "broken")
    assert code == 1
    assert "! seed-0/akd-alpha-1: not run: it needs seed-0/teacher-0, which failed" in out
    assert "seed-0/at: failed: epoch 1 gave" in err


@pytest.mark.slow
def test_parts_say_what_finishes_the_study(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["helpers.tiny_studies:pair", "--recipe", recipe(tmp_path / "data"), "--seeds", "1", "--suite", "pgd-20"]
    code, _, err = call("study", *words, "--part", "3/2")
    assert (code, "--part is '3/2': expected i/n with 1 ≤ i ≤ n, such as 2/8" in err) == (2, True)
    code, out, _ = call("study", *words, "--part", "2/2")
    assert code == 0
    assert "part 2/2: 1 of 2 runs finished" in out
    assert "left out: seed-0/akd-alpha-1, for lack of seed-0/teacher-0 of other parts; once these are finished:" in out
    again = next(line for line in out.splitlines() if line.startswith("robustill study "))
    assert "part 1/2: 2 of 2 runs finished" in call("study", *words, "--part", "1/2")[1]
    code, out, _ = call(*shlex.split(again)[1:])
    assert code == 0
    assert re.search(r"alpha 1 +best", out)
