"""`robustill board`: a method of one file is run on a track, and becomes a row that is shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

from helpers.command_line import Call
from helpers.same_process import same_process
from helpers.tiny_board import tiny_track
from robustill.cli.board import TrackName
from robustill.studies import scheduler
from robustill.studies.tracks import TRACKS

METHOD = """from robustill.methods.at import AT


class Mine(AT):
    pass
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a method in a file, and a track that takes seconds in the place of digits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "board_method.py").write_text(METHOD)
    monkeypatch.setitem(TRACKS, "digits", tiny_track(tmp_path / "data", seeds=1))
    monkeypatch.setattr(scheduler, "started_engine", same_process)
    monkeypatch.setattr("robustill.evaluation.evaluate.EPS_GRID", (1.0,))
    monkeypatch.setattr("robustill.evaluation.evaluate._NUM_MASKING_IMAGES", 4)


def test_the_names_of_the_command_line_are_those_of_the_tracks() -> None:
    assert list(get_args(TrackName)) == list(TRACKS)


def test_the_help_of_run_offers_only_what_a_track_leaves_open(call: Call) -> None:
    _, out, _ = call("board", "run", "--help")
    assert set(re.findall(r"--(\w+)\.", out)) == {"method", "data", "compute"}
    assert not {"--threat", "--model"} & set(re.findall(r"--\w+", out))


@pytest.mark.usefixtures("tiny")
@pytest.mark.filterwarnings("ignore")
def test_a_method_of_one_file_becomes_a_row(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("board", "run", "board_method:Mine", "--track", "digits", "--workers", "1")
    assert code == 0
    command = re.findall(r"^next, the row of .*: robustill (.*)$", out, re.MULTILINE)[-1]
    assert command == "board add runs/board/digits/seed-0/board_method-Mine --trust-code board_method:Mine"
    words = [*shlex.split(command), "--track", "digits", "--board", "rows"]
    untrusted = words[: words.index("--trust-code")] + words[words.index("--trust-code") + 2 :]
    code, _, err = call(*untrusted)
    assert (code, "names the code board_method:Mine" in err) == (2, True)
    code, out, _ = call(*words)
    assert (code, out) == (0, "Mine + EMA (board_method): rows/digits-board_method-Mine.json\n")
    assert (tmp_path / "rows" / "digits-board_method-Mine.py").read_text() == METHOD
    # Of a whole folder, the method whose code is not trusted is refused, and the other has its row.
    code, out, err = call("board", "add", "runs/board/digits", "--track", "digits", "--board", "rows")
    assert (code, out) == (2, "PGD-AT + EMA: rows/digits-at.json\n")
    assert len(err.strip().splitlines()) == 1
    code, out, _ = call("board", "show", "--board", "rows")
    assert code == 0
    # One seed decides nothing; the two train alike.
    assert re.search(r"PGD-AT \+ EMA .* –", out)
    assert re.search(r"Mine \+ EMA .* 0\.0 .* one seed", out)
    # The code has changed since its runs began.
    (tmp_path / "board_method.py").write_text(METHOD + "\n# another\n")
    code, _, err = call("board", "run", "board_method:Mine", "--track", "digits", "--workers", "1")
    assert (code, "the code of board_method:Mine has sha256" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "--board", "none"], "none has no row"),
        (["show", "--board", "none", "--track", "small"], "none has no row of the track small"),
        (["add"], "no runs are given: name those of `robustill board run`"),
        (["add", "none"], "none holds no run that was evaluated"),
        (["run", "akd", "--track", "small", "--optim.epochs", "3"], "the track small has optim.epochs 40, not 3"),
        (["run", "akd", "--track", "small", "--seed", "3"], "--seed"),
        (["run", "akt", "--track", "small"], "akt"),
    ],
)
def test_mistakes_are_one_line(
    call: Call, words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call("board", *words)
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
