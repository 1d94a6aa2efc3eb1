"""The time that an evaluation announces: of the images that are left, before anything is attacked."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from helpers.evaluation_cases import THREAT, made_up, trained
from robustill.core.formatting import clock
from robustill.evaluation.masking import MASKING_PASSES
from robustill.evaluation.parts import Parts

# By its full name: the package may offer a function of the same name.
evaluate = importlib.import_module("robustill.evaluation.evaluate").evaluate

# Of the suite pgd-20: 41 passes of every image, at seven radii of every second one, and 21 of the fixed attack.
PASSES = 41 + 0.5 * 7 * 41 + 21


@pytest.fixture(autouse=True)
def _a_pass_takes_a_hundredth_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustill.evaluation.worst_case.seconds_per_pass", lambda *_: 0.01)


def line(passes: float) -> str:
    return f"net: about {clock(0.01 * passes)} on this machine, if half of the images are robust"


def times_in(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [each for each in capsys.readouterr().err.splitlines() if " on this machine" in each]


def test_an_evaluation_says_first_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(trained(), made_up(), threat=THREAT, suite="pgd-20", num_images=20, progress="net")
    lines = capsys.readouterr().err.splitlines()
    assert next(each for each in lines if "this machine" in each or "passes/s" in each) == line(20 * PASSES)
    evaluate(trained(), made_up(), threat=THREAT, suite="pgd-20", num_images=20)
    assert capsys.readouterr().err == ""


def test_a_resumed_evaluation_counts_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, dataset, attack_part = trained(), made_up(), Parts._attack_part

    def killed(parts: Parts, number: int) -> object:
        if number == 2:
            raise KeyboardInterrupt
        return attack_part(parts, number)

    settings = {"threat": THREAT, "suite": "pgd-20", "num_images": 20, "batch_size": 5, "progress": "net"}
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "_attack_part", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, dataset, state=tmp_path, masking=True, **settings)
    assert times_in(capsys) == [line(20 * PASSES + 20 * MASKING_PASSES)]
    evaluate(model, dataset, state=tmp_path, masking=True, **settings)
    assert times_in(capsys) == [line(10 * PASSES)]
    evaluate(model, dataset, state=tmp_path, masking=True, **settings)
    assert times_in(capsys) == []
