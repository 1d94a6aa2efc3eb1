"""The order of candidates, the advice, and the file of a ranking."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.rankings import CONDITIONS, candidate, ranking
from robustill.analysis.gain_model import Prediction
from robustill.analysis.teacher_ranking import NAME, TeacherRanking, rank
from robustill.core.errors import RunError


def test_candidates_are_in_the_order_of_their_gain_at_the_better_weight() -> None:
    found = ranking()
    assert [each.name for each in found.teachers] == ["strong", "weak", "bad"]
    assert [each.alpha for each in found.teachers] == [0.5, 1.0, 0.5]
    assert [each.prediction.gain for each in found.teachers] == [0.05, 0.03, -0.1]
    assert found.warnings == ("mind this",)


def test_the_suggested_weight_is_the_one_that_can_cost_least() -> None:
    sure, unsure = Prediction(gain=0.01, low=-0.02, high=0.04), Prediction(gain=0.05, low=-0.15, high=0.25)
    found = replace(candidate("a", 0.0, 0.0), predictions={0.5: sure, 1.0: unsure})
    assert (found.alpha, found.prediction) == (0.5, sure)
    assert replace(found, predictions={0.5: unsure, 1.0: sure}).alpha == 1.0


def test_the_matrix_of_disagreement_follows_the_order() -> None:
    chosen = [candidate("a", 0.0, 0.0), candidate("b", 0.2, 0.0), candidate("c", 0.1, 0.0)]
    matrix = np.array([[0.0, 0.1, 0.2], [0.1, 0.0, 0.3], [0.2, 0.3, 0.0]])
    found = rank(chosen, matrix, {}, CONDITIONS)
    assert [each.name for each in found.teachers] == ["b", "c", "a"]
    assert found.disagreement.tolist() == [[0.0, 0.3, 0.1], [0.3, 0.0, 0.2], [0.1, 0.2, 0.0]]


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (0.05, "A teacher is predicted to be worth more than EMA alone: best (+5.0 points, +3.0 to +7.0)."),
        (0.01, "EMA alone may do: the predicted gain of the best candidate includes 0 (+1.0 points, −1.0 to +3.0)."),
        (-0.05, "EMA alone is the better choice: even the best candidate is predicted to cost accuracy"),
    ],
)
def test_the_advice_says_whether_averaged_weights_alone_would_do(gain: float, expected: str) -> None:
    found = ranking(candidate("other", -0.5, -0.5), candidate("best", gain, -1.0))
    assert found.advice.startswith(expected)


def test_a_ranking_survives_its_file(tmp_path: Path) -> None:
    before = ranking(
        candidate("a", 0.1, 0.0, entropy_unlearnable=math.nan), candidate("b", 0.2, 0.3, members_disagree=0.4)
    )
    before.save(tmp_path)
    after = TeacherRanking.load(tmp_path)
    assert after.teachers[0] == before.teachers[0]
    assert math.isnan(after.teachers[1].measures.entropy_unlearnable)
    assert after.teachers[1].measures.members_disagree is None
    assert after.disagreement.tolist() == before.disagreement.tolist()
    assert (after.baselines, after.conditions, after.warnings) == (before.baselines, before.conditions, before.warnings)
    page = json.loads((tmp_path / NAME).read_text(encoding="utf-8"))
    assert page["advice"] == before.advice
    assert [each["alpha"] for each in page["teachers"]] == [1.0, 0.5]


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        TeacherRanking.load(tmp_path)
    ranking().save(tmp_path)
    file = tmp_path / NAME
    content = file.read_text(encoding="utf-8")
    file.write_text(content.replace("0.125", "0.25"), encoding="utf-8")
    with pytest.raises(RunError, match="its checksum is wrong"):
        TeacherRanking.load(tmp_path)
    page = json.loads(content)
    del page["sha256"], page["teachers"]
    file.write_text(json.dumps(page), encoding="utf-8")
    with pytest.raises(RunError) as error:
        TeacherRanking.load(tmp_path)
    assert "\n" not in str(error.value)
