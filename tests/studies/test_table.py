"""The table of a study has the numbers of its runs, in every format."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from helpers.tiny_studies import tiny
from robustill.analysis.statistics import paired_over_seeds_and_images
from robustill.studies import Row, Study, make_study
from robustill.studies.cost import TrainingCompute
from robustill.studies.figures import figures
from robustill.studies.table import COLUMNS, COMPARED, RowResult, Table, with_differences
from robustill.studies.writing import conditions, csv_rows, latex, markdown, write_results

# Of a hundred test images.
ROBUST = {"at": [0.4, 0.5, 0.45], "alpha 0.5": [0.6, 0.7, 0.66], "alpha 1": [0.3, 0.7, 0.4]}


def line(row: Row, robust: list[float], checkpoint: str = "best") -> RowResult:
    seeds = range(len(robust))
    values = {column: dict.fromkeys(seeds, 0.25) for column in COLUMNS}
    values["robust_accuracy"] = dict(zip(seeds, robust, strict=True))
    return RowResult(
        row=row,
        checkpoint=checkpoint,
        values=values,
        compute=TrainingCompute(own=2000.0, teachers=0.0 if row.against is None else 1500.0),
        correct={
            column: {seed: np.arange(100) < round(100 * values[column][seed]) for seed in seeds} for column in COMPARED
        },
    )


def made_up_table(study: Study, robust: dict[str, list[float]], checkpoints: tuple[str, ...]) -> Table:
    lines = [line(row, robust[row.label], checkpoint) for row in study.design.rows for checkpoint in checkpoints]
    baselines = {
        (each.row.label, each.checkpoint): line(study.design.rows[0], robust["at"], each.checkpoint)
        for each in lines
        if each.row.against is not None
    }
    return Table(results=with_differences(lines, baselines), conditions={})


@pytest.fixture
def made_up(tmp_path: Path) -> tuple[Study, Table]:
    """Three rows of three seeds, at two checkpoints."""
    study = tiny(tmp_path, seeds=3)
    return study, made_up_table(study, ROBUST, ("best", "last"))


def test_the_p_values_of_a_table_are_corrected_together(made_up: tuple[Study, Table]) -> None:
    _, table = made_up
    found = {
        (each.row.label, each.checkpoint, column): difference
        for each in table.results
        for column, difference in each.differences.items()
    }
    assert len(found) == 8
    flags = [np.stack([np.arange(100) < round(100 * each) for each in ROBUST[name]]) for name in ("alpha 0.5", "at")]
    alone = paired_over_seeds_and_images(*flags)
    # Two lines of eight are the same test: of the smallest p-values, the first counts eightfold, the second no less.
    for checkpoint in ("best", "last"):
        difference = found["alpha 0.5", checkpoint, "robust_accuracy"]
        assert difference.p_value == pytest.approx(8 * alone.p_value)
        assert (difference.low, difference.high) == (alone.low, alone.high)
        assert found["alpha 0.5", checkpoint, "clean_accuracy"].p_value == 1.0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("alpha", "Differences are paired by seed and image, from at. better"),
        ("guidelines", "; of “akd, its last epoch”, “akd, three of them”, “akd, one of full radius”, "),
        (
            "guidelines",
            "Differences are paired by seed and image, of “at, label smoothing 0.4”, “akd, its own best epoch”, “at, "
            "with the compute of akd”, “trades”, “akd, one weak teacher” from “at”; of",
        ),
    ],
)
def test_conditions_name_the_row_compared_with(name: str, says: str) -> None:
    study = make_study(name, folder=Path("runs/x"))
    assert says in " ".join(conditions(study, Table(results=(), conditions={})))


def test_markdown_has_a_cell_for_everything(made_up: tuple[Study, Table]) -> None:
    study, table = made_up
    page = markdown(study, table, {"seed-1/at": "RunError: no luck"})
    rows = [text.split("|")[1:-1] for text in page.splitlines() if text.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    assert [row[0].strip() for row in rows[2:]] == [label for label in ROBUST for _ in range(2)]
    for row in rows[2:]:
        values = ROBUST[row[0].strip()]
        assert row[4].strip() == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
        assert row[2].strip() == "3"
    assert [each.strip() for each in rows[2][-2:]] == ["–", "2.0"]
    assert [each.strip() for each in rows[4][-2:]] == ["+0.203 ± 0.006 (better)", "3.5 (1.5)"]
    assert rows[6][-2].strip().endswith("(noise)")
    assert "- seed-1/at: RunError: no luck" in page
    assert study.command in page
    # Said where its column is: the terminal has none.
    assert "- TFLOP: " in page
    assert not any("TFLOP" in each for each in conditions(study, table))


def test_calibration_is_shown_at_the_fixed_attack_where_all_have_it(made_up: tuple[Study, Table]) -> None:
    study, table = made_up
    assert "| ECE PGD-10 |" in markdown(study, table, {})
    # An evaluation of an earlier version.
    earlier = replace(table.results[0], values={**table.results[0].values, "ece_pgd": {0: math.nan}})
    mixed = replace(table, results=(earlier, *table.results[1:]))
    page = markdown(study, mixed, {})
    assert "| ECE adv. |" in page
    assert "nan" not in page


def test_csv_reads_back_in_full(made_up: tuple[Study, Table]) -> None:
    study, table = made_up
    write_results(study, table, {})
    rows = list(csv.DictReader(io.StringIO((study.folder / "pair-akd.csv").read_text())))
    assert [(row["row"], row["checkpoint"]) for row in rows[:3]] == [
        ("at", "best"),
        ("at", "last"),
        ("alpha 0.5", "best"),
    ]
    assert float(rows[2]["robust_accuracy_mean"]) == np.mean(ROBUST["alpha 0.5"])
    assert rows[2]["robust_accuracy_difference_verdict"] == "better"
    assert rows[0]["robust_accuracy_difference_mean"] == ""
    single = list(csv.DictReader(io.StringIO((study.folder / "pair-akd-runs.csv").read_text())))
    assert len(single) == 18
    assert {(row["run"], float(row["robust_accuracy"])) for row in single if row["row"] == "alpha 1"} == {
        (f"seed-{seed}/akd-alpha-1", value) for seed, value in enumerate(ROBUST["alpha 1"])
    }


def test_one_seed_has_no_standard_deviation(made_up: tuple[Study, Table]) -> None:
    study, _ = made_up
    table = made_up_table(study, {label: values[:1] for label, values in ROBUST.items()}, ("best",))
    page = markdown(study, table, {})
    assert "nan" not in page + latex(study, table)
    assert "| 0.400 |" in page
    assert "(one seed)" in page
    rows = list(csv_rows(table))
    assert math.isnan(dict(zip(rows[0], rows[1], strict=True))["robust_accuracy_std"])  # type: ignore[arg-type]
    write_results(study, table, {})
    assert "nan" not in (study.folder / "pair-akd.csv").read_text()


def test_latex_has_equal_rows_and_escapes_everything(made_up: tuple[Study, Table]) -> None:
    study, table = made_up
    odd = replace(table.results[0], row=replace(table.results[0].row, label="50% of a_b & c"))
    text = latex(study, replace(table, results=(odd, *table.results[1:])))
    body = [each for each in text.splitlines() if each.endswith(r"\\")]
    assert len(body) == 7
    assert len({len(re.findall(r"(?<!\\)&", each)) for each in body}) == 1
    assert r"50\% of a\_b \& c" in text
    assert all(letter.isascii() for each in body for letter in each)


def test_figures_are_complete_svg_files_with_every_label(made_up: tuple[Study, Table]) -> None:
    study, table = made_up
    for swept in (study, replace(study, design=replace(study.design, axis=None))):
        found = figures(swept, table)
        assert found.keys() == {"robust", "clean", "ece-attacked"}
        for content in found.values():
            root = ElementTree.fromstring(content)
            words = " ".join(root.itertext())
            assert root.tag.endswith("svg")
            assert "best" in words
            assert "last" in words
            assert "href" not in re.sub(rb'xlink:href="#', b"", content).decode().replace("xmlns:xlink", "")
    assert figures(study, table) == figures(study, table)
    assert figures(study, Table(results=(), conditions={})) == {}
