"""The table, the CSV file and the figure of shipped files have the numbers of every seed."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from statistics import fmean, stdev
from xml.etree import ElementTree

import pytest

from robustill.report.deployment import ShippedFile
from robustill.studies import Row, make_study
from robustill.studies.shipped import HEADER, ShippedRow, mark_beaten, shipped_cells, shipped_files, shipped_section

CONDITIONS = {
    **{"data": "digits", "split": "test", "num_images": 4, "of_images": 4, "seed": 0, "date": "2026-11-30"},
    "threat": {"norm": "linf", "eps": 0.1, "text": "linf:0.1"},
    "attacked_as_shipped": {"not_tried": ["FAB"]},
}


def made_up(seed: int, milliseconds: float, robust: float) -> ShippedFile:
    return ShippedFile(
        name="x.onnx",
        num_bytes=1000 + seed,
        milliseconds=(milliseconds, 10 * milliseconds),
        runtime="by hand, 1 thread",
        clean_accuracy=0.5 + robust / 2,
        robust_accuracy=robust,
        interval=(robust - 0.1, robust + 0.1),
        alone={"square": robust + 0.05},
        conditions=CONDITIONS,
    )


@pytest.fixture
def rows() -> tuple[ShippedRow, ...]:
    """Three files of two seeds: the second is slower and less robust than the first, the third slower and more so."""
    numbers = {"float32": [(0.1, 0.4), (0.2, 0.5)], "int8": [(0.3, 0.3), (0.3, 0.3)], "other": [(0.4, 0.6), (0.6, 0.6)]}
    row = Row(label="at", run="at", series="at", value=2)
    return mark_beaten(
        [
            ShippedRow(row=row, file=file, seeds={seed: made_up(seed, *each) for seed, each in enumerate(found)})
            for file, found in numbers.items()
        ]
    )


def test_the_table_has_means_over_seeds_and_a_star_for_what_none_beats(rows: tuple[ShippedRow, ...]) -> None:
    first, second, third = (dict(zip(HEADER, cells, strict=True)) for cells in shipped_cells(rows))
    assert first["bytes"] == "1,000"
    assert (first["ms, 1"], first["ms, 32"], first["seeds"]) == ("0.15", "1.5", "2")
    assert first["as shipped"] == f"{fmean([0.4, 0.5]):.3f} ± {stdev([0.4, 0.5]):.3f} *"
    assert second["as shipped"] == "0.300 ± 0.000"
    assert third["as shipped"] == "0.600 ± 0.000 *"
    assert rows[0].mean().interval == (0.4, 0.5)


def test_the_files_have_every_seed_and_a_figure_of_the_means(rows: tuple[ShippedRow, ...]) -> None:
    study = make_study("student-width", folder=Path("runs/x"), seeds=2)
    found = shipped_files(study, rows)
    assert list(found) == ["student-width-akd-shipped.csv", "student-width-akd-shipped.svg"]
    table = list(csv.DictReader(io.StringIO(found["student-width-akd-shipped.csv"].decode())))
    assert [(line["file"], line["seed"], float(line["robust_accuracy"])) for line in table] == [
        (each.file, str(seed), file.robust_accuracy) for each in rows for seed, file in each.seeds.items()
    ]
    assert [float(line["square"]) for line in table[:2]] == [0.4 + 0.05, 0.5 + 0.05]
    assert (table[1]["run"], table[1]["ms_1"]) == ("seed-1/at", "0.2")
    words = " ".join(ElementTree.fromstring(found["student-width-akd-shipped.svg"]).itertext())
    assert all(f"at, {file}" in words for file in ("float32", "int8", "other"))
    page = "\n".join(shipped_section(study, rows))
    assert "![student-width-akd-shipped.svg](student-width-akd-shipped.svg)" in page
    assert page.count("| at |") == 3
    assert "- not tried: FAB" in page
