"""A ranking of teachers as rows, sentences and a section of the page."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from helpers.rankings import candidate, ranking
from helpers.small_runs import small_config
from robustill.core.errors import RunError
from robustill.report import report
from robustill.report.teachers import (
    RANKING_COLUMNS,
    evidence_line,
    ranking_conditions,
    ranking_panel,
    ranking_rows,
)
from robustill.training.loop import train


def test_a_row_has_the_numbers_of_its_candidate() -> None:
    found = ranking(
        candidate("good", 0.05, 0.04, robust=0.41, entropy_unlearnable=math.nan), candidate("bad", -0.1, -0.3)
    )
    first, second = ranking_rows(found)
    assert (first.name, first.gain, first.interval, first.alpha) == ("good", "+5.0", "+3.0 to +7.0", "0.5")
    assert first.temperature == "1.2"
    assert dict(zip(RANKING_COLUMNS, first.cells, strict=True)) == {
        "clean": "0.80",
        "robust": "0.41",
        "transfer": "0.60",
        "ECE": "0.05",
        "ECE\nadv": "0.20",
        "H bin": "–",
        "conf\nbin": "0.45",
        "H else": "0.30",
        "differs": "0.12",
    }
    assert second.gain == "−10.0"


def test_the_lines_say_on_what_and_from_what() -> None:
    found = ranking()
    assert "200 images, a subset of 500; 3 baselines of 8 epochs" in ranking_conditions(found)
    assert evidence_line(found) == (
        "predicted from 28 teachers and their 112 students; rank correlation with what the students gained, each data "
        "set left out in turn: digits 0.25 at α 0.5, 0.75 at α 1; cifar10 -0.50 at α 0.5, 0.50 at α 1"
    )


def test_the_figure_has_the_data_of_every_candidate_and_weight() -> None:
    panel = ranking_panel(ranking())
    rows = list(panel.rows())
    assert [(row["candidate"], row["alpha"], row["gain"]) for row in rows[:2]] == [
        ("strong", 0.5, 0.05),
        ("strong", 1.0, 0.04),
    ]
    assert len(rows) == 6
    assert "strong +5.0 points" in panel.svg()


@pytest.mark.slow
def test_the_page_has_a_section_if_there_is_a_ranking(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small_config(), run, progress=False)
    found = ranking(candidate("<b>name</b>", 0.05, 0.04), candidate("bad", -0.1, -0.3))
    found.save(tmp_path)
    page = report([run], tmp_path / "page.html", teachers=tmp_path, figures=tmp_path / "figures", progress=False)
    text = page.read_text(encoding="utf-8")
    assert "Which teacher?" in text
    assert "&lt;b&gt;name&lt;/b&gt;" in text
    assert "<b>name</b>" not in text
    assert "A teacher is predicted to be worth more than EMA alone" in text
    assert "mind this" in text
    assert (tmp_path / "figures" / "teachers.csv").is_file()
    without = report([run], tmp_path / "page.html", progress=False)
    assert "Which teacher?" not in without.read_text(encoding="utf-8")
    with pytest.raises(RunError, match=r"ranking\.json cannot be read"):
        report([run], tmp_path / "page.html", teachers=run, progress=False)
