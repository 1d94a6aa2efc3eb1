"""`robustill teachers rank` prints what the ranking has, and mistakes as one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.command_line import Call
from helpers.rankings import candidate, ranking
from helpers.small_runs import small_config
from robustill.analysis.teacher_ranking import TeacherRanking
from robustill.cli.tables import ranking_table
from robustill.config.files import dump_config
from robustill.training.loop import train


def test_two_candidates_are_ranked(tmp_path: Path, call: Call) -> None:
    def rank(*words: str | Path) -> tuple[int, str, str]:
        return call("teachers", "rank", *map(str, words))

    data = {"validation": 120}
    for seed in (1, 2):
        train(small_config(seed=seed, data=data), tmp_path / f"teacher-{seed}", progress=False)
    recipe, out = tmp_path / "student.yaml", tmp_path / "out"
    recipe.write_text(dump_config(small_config(data=data)), encoding="utf-8")
    names = [tmp_path / "teacher-1", f"run:{tmp_path / 'teacher-2'}@last"]
    options = ["--student", recipe, "--baselines", "1", "--baseline-epochs", "1", "--out", out, "--optim.epochs", "1"]
    code, printed, _ = rank(*names, *options)
    assert code == 0
    found = TeacherRanking.load(out)
    assert {each.name for each in found.teachers} == {"teacher-1", "teacher-2@last"}
    assert found.conditions["student"]["epochs"] == 1
    assert f"{found.teachers[0].measures.robust_accuracy:.2f}" in printed
    assert found.advice in printed
    assert f"wrote {out / 'ranking.json'}" in printed
    for words, expected in (
        ([names[0], "--student", recipe], "a ranking needs at least two"),
        ([*names, "--student", "digits_akd"], "has teachers of its own"),
        ([*names, "--student", recipe, "--num-image", "200"], "did you mean --num-images?"),
        ([*names, "--student", recipe, "--num-images", "20"], "num_images is 20"),
    ):
        code, printed, err = rank(*words, "--out", tmp_path / "other")
        assert (code, printed, err.count("\n")) == (2, "", 1), err
        assert expected in err
    assert not (tmp_path / "other").exists()


def test_the_tables_have_a_row_a_candidate_in_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ranking_table(ranking(candidate("[red]name", 0.05, 0.04), candidate("bad", -0.1, -0.3, robust=0.07)))
    out = capsys.readouterr().out
    assert ["1", "+5.0", "+3.0", "to", "+7.0", "0.5", "1.2", "[red]name"] in [line.split() for line in out.splitlines()]
    assert "−10.0" in out
    assert "0.07" in out
    assert "! mind this" in out
    assert "…" not in out
