"""Shipped files beside one another: the table, which of them no other one beats, and the files that are written."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from helpers.records_by_hand import by_hand, save_records
from robustill.cli.tables import shipped_table
from robustill.core.errors import RunError
from robustill.report.deployment import read_shipped, render_figure, write_deployment

CONDITIONS: dict[str, Any] = {
    "data": "digits",
    "split": "test",
    "data_fingerprint": "abc",
    "num_images": 4,
    "of_images": 4,
    "threat": {"norm": "linf", "eps": 0.1, "text": "linf:0.1"},
    "suite": {"name": "deployed", "stages": []},
    "seed": 0,
    "date": "2026-11-30",
}


def shipped(folder: Path, name: str, milliseconds: float, robust: int, **changes: Any) -> Path:
    """Save the evaluation of a file with so many robust images among four."""
    broken = [-1] * robust + [0] * (4 - robust)
    records = by_hand(
        clean_probabilities=by_hand().clean_probabilities[[0, 1, 2, 2]],
        robust=np.array([each == -1 for each in broken]),
        broken_by=np.array(broken, np.int8),
        label=np.array([0, 1, 0, 0]),
        conditions={
            **CONDITIONS,
            "checkpoint": name,
            "attacked_as_shipped": {
                "robust_accuracy_alone": {"transfer": 0.75, "square": 1.0},
                "attacks": {"transfer": "pgd", "square": "square"},
                "not_tried": ["FAB"],
            },
            "deployment": {
                "bytes": 12345,
                "milliseconds": {
                    "1": {"median": milliseconds, "quartiles": [0, 1]},
                    "32": {"median": 9.87, "quartiles": [0, 1]},
                },
                "threads": 1,
                "runtime": "by hand",
            },
            **changes,
        },
    )
    save_records(records, folder / name)
    return folder / name


def test_a_star_marks_each_file_that_no_other_one_beats(tmp_path: Path) -> None:
    for name, milliseconds, robust in (("a", 0.5, 2), ("b", 0.1, 1), ("c", 0.7, 2), ("d", 0.2, 1), ("e", 2.0, 3)):
        shipped(tmp_path / "evaluations", name, milliseconds, robust)
    files = read_shipped([tmp_path])
    assert [each.name for each in files] == ["b", "d", "a", "c", "e"]
    assert [each.robust_accuracy for each in files] == [0.25, 0.25, 0.5, 0.5, 0.75]
    write_deployment(files, tmp_path / "deploy")
    write_deployment(files, tmp_path / "deploy")
    page = (tmp_path / "deploy" / "deploy.md").read_text()
    assert re.findall(r"^\| (\w) .* \*", page, re.MULTILINE) == ["b", "a", "e"]
    assert "| b | 12,345 | 0.1 | 9.87 | 1.000 | 0.750 | 1.000 | 0.250 * |" in page
    assert "- not tried: FAB" in page
    assert "digits test: 4 images, all 4; linf:0.1; suite deployed" in page
    rows = list(csv.reader((tmp_path / "deploy" / "deploy.csv").read_text().splitlines()))
    assert len(rows) == 6
    words = " ".join(ElementTree.parse(tmp_path / "deploy" / "deploy.svg").getroot().itertext())
    assert all(f"{name}, 12 kB" in words for name in "abcde")


def test_texts_of_a_strange_file_begin_no_line_of_the_page(tmp_path: Path) -> None:
    hostile = "x\n# Heading\r\x1b[31m"
    shipped(
        tmp_path / "records",
        "a",
        0.5,
        2,
        date=hostile,
        attacked_as_shipped={"robust_accuracy_alone": {hostile: 0.5}, "attacks": {}, "not_tried": [hostile]},
        deployment={
            "bytes": 1,
            "milliseconds": {batch: {"median": 1.0, "quartiles": [0, 1]} for batch in ("1", "32")},
            "threads": 1,
            "runtime": hostile,
        },
    )
    write_deployment(read_shipped([tmp_path / "records"]), tmp_path / "out")
    page = (tmp_path / "out" / "deploy.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("#")] == ["# Files as they are shipped"]
    assert "\x1b" not in page
    assert page.count("# Heading") == 4


def test_a_figure_of_many_files_names_those_that_none_beats(tmp_path: Path) -> None:
    for number, (milliseconds, robust) in enumerate(((0.1, 1), (0.2, 2), (0.3, 3), *((1.0 + n, 1) for n in range(4)))):
        shipped(tmp_path, f"net{number}", milliseconds, robust)
    words = " ".join(ElementTree.fromstring(render_figure(read_shipped([tmp_path]))).itertext())
    assert re.findall(r"net\d", words) == ["net0", "net1", "net2"]


def test_files_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    first = shipped(tmp_path / "one", "a", 0.5, 2)
    shipped(tmp_path / "one", "b", 0.5, 2, threat={"norm": "linf", "eps": 0.2, "text": "linf:0.2"}, seed=1)
    with pytest.raises(RunError, match="a and b were attacked with other threat, seed"):
        read_shipped([tmp_path / "one"])
    assert len(read_shipped([first, first])) == 1
    save_records(by_hand(conditions={**CONDITIONS, "checkpoint": "n"}), tmp_path / "other" / "n")
    with pytest.raises(RunError, match=r"no file was attacked as it is shipped there: first robustill evaluate FILE"):
        read_shipped([tmp_path / "other"])
    with pytest.raises(RunError, match="nowhere is no folder of an evaluation"):
        read_shipped([tmp_path / "nowhere"])
    shipped(tmp_path / "damaged", "a", 0.5, 2, deployment={"bytes": 3})
    with pytest.raises(RunError, match=r"summary\.json is damaged"):
        read_shipped([tmp_path / "damaged"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not empty and holds no such report"):
        write_deployment(read_shipped([first]), tmp_path / "full")


def test_the_printed_table_is_that_of_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped_table(read_shipped([shipped(tmp_path, "a", 0.5, 2)]))
    out = capsys.readouterr().out
    assert re.search(r"a +12,345 +0\.5 +9\.87 +1\.000 +0\.500 \*", out)
    assert "not tried: FAB" in out
