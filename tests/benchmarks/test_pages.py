"""The pages of results: their tables and figures say what benchmarks/results says, and their statistics are right."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "results"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "pages"))


@pytest.mark.parametrize("page", [*sorted(DOCS.glob("*.md")), ROOT / "docs" / "board.md"], ids=lambda page: page.stem)
def test_the_tables_of_a_page_are_those_of_the_recorded_results(page: Path) -> None:
    from write import BLOCK, rewritten

    text = page.read_text(encoding="utf-8")
    tables = BLOCK.findall(text)
    assert len(tables) == text.count("<!-- table: ") > 0, f"{page.name}: a page of results has whole tables"
    assert rewritten(text) == text, f"{page.name} is out of date: python benchmarks/pages/write.py"


def test_every_table_is_on_a_page() -> None:
    from tables import TABLES
    from write import BLOCK

    shown = {name for page in DOCS.glob("*.md") for _, name, _ in BLOCK.findall(page.read_text("utf-8"))}
    assert shown == {*TABLES, "claims"}


def test_the_board_shows_every_track_and_every_row_belongs_to_one() -> None:
    from write import BLOCK, BOARD_PAGE

    from robustill.studies.board import DEFAULT_BOARD, read_rows
    from robustill.studies.tracks import TRACKS

    assert [name for _, name, _ in BLOCK.findall(BOARD_PAGE.read_text("utf-8"))] == [
        f"board-{track}" for track in TRACKS
    ]
    rows = [row for track in TRACKS for row in read_rows(ROOT / DEFAULT_BOARD, track)]
    assert len(rows) == len(list((ROOT / DEFAULT_BOARD).glob("*.json")))
    for code in (ROOT / DEFAULT_BOARD).glob("*.py"):
        sha256 = hashlib.sha256(code.read_bytes()).hexdigest()
        assert sha256 in [row.fingerprints["code"] for row in rows], f"{code.name} is not the code of its row"


def test_every_figure_is_on_a_page_and_every_picture_is_a_figure() -> None:
    from figures import FIGURES

    pages = [*DOCS.glob("*.md"), ROOT / "benchmarks" / "LOG.md"]
    shown = {
        Path(name).stem for page in pages for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text("utf-8"))
    }
    assert shown == set(FIGURES) == {file.stem for file in DOCS.glob("*.svg")}


def _text(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


_OTHERS = """akd-over-pgd-at all-images attack-steps calibration carried-over early-stopping ensembles guidelines-digits
    guidelines-fashion-mnist hard-samples methods public-teachers sizes weak-teachers""".split()


@pytest.mark.parametrize(
    "name",
    ["performance", "recipe", "teacher-ranking", *(pytest.param(name, marks=pytest.mark.slow) for name in _OTHERS)],
)
def test_a_figure_says_what_its_file_says(name: str) -> None:
    from figures import svg

    assert _text(svg(name).decode()) == _text((DOCS / f"{name}.svg").read_text("utf-8"))


def test_a_table_of_growth_without_rows_is_an_error() -> None:
    from tables import growth

    with pytest.raises(AssertionError, match="has no minutes"):
        growth(("minutes", "minutes", ".1f"))


def test_a_verdict_needs_a_difference_that_survives() -> None:
    from claims import Claim, verdict
    from paired import Arm, Comparison, Difference, Tested

    def row(mean: float, corrected: float) -> Tested:
        arm = Arm("no file", "no row")
        comparison = Comparison(label="a − b", data="digits (250)", first=arm, second=arm)
        each = Difference(mean=mean, std=0.1, low=mean - 1, high=mean + 1, p=0.5, by_seed=(mean, mean))
        return Tested(comparison=comparison, differences={"best": each}, corrected={"best": corrected})

    claim = Claim(text="a is better", page="index", family="methods")
    assert verdict(claim, [row(0.1, 0.01)], "best") == "seen: digits"
    assert verdict(claim, [row(-0.1, 0.01), row(0.1, 0.2)], "best") == "the opposite: digits"
    assert verdict(claim, [row(0.1, 0.2), row(0.2, 0.2), row(-0.1, 0.2)], "best") == "undecided (4 of 6 pairs)"
    assert verdict(claim, [row(-0.1, 0.2), row(0.1, 0.2)], "best") == "not seen (2 of 4 pairs)"
