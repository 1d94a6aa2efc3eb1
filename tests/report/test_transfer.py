"""The results of a transfer on the page and in its files."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from robustill.analysis.transfer import transfer_matrix
from robustill.cli.tables import transfer_table
from robustill.core.errors import RunError
from robustill.report import report
from robustill.report.transfer import transfer_panel, transfer_warnings, write_transfer
from robustill.runs.transfer_records import TransferRecords

NAMES = ("teacher", "a|<b>", "student")


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def make_transfer(masked: bool = False) -> TransferRecords:
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 4, 300)
    own = np.eye(4)[labels]
    adversarial = draws.normal(size=(3, 3, 300, 4)) + own * (3 - 3 * np.eye(3)[:, :, None, None])
    if masked:
        adversarial[2, 2] += 9 * own
    return TransferRecords(
        names=NAMES,
        index=np.arange(300),
        label=labels,
        clean=softmax(draws.normal(size=(3, 300, 4)) + 4 * own),
        adversarial=softmax(adversarial),
        conditions={
            "data": "cifar10",
            "split": "test",
            "num_images": 300,
            "of_images": 10_000,
            "threat": {"norm": "linf", "eps": 8 / 255, "text": "linf:8/255"},
            "suite": {"name": "pgd", "stages": []},
            "seed": 0,
            "date": "2026-11-23",
        },
    )


def test_every_cell_has_its_number_and_a_css_colour() -> None:
    records = make_transfer()
    panel = transfer_panel(records)
    svg = panel.svg()
    words = " ".join(ElementTree.fromstring(svg.replace("href", "data-href")).itertext())
    matrix = transfer_matrix(records.adversarial, records.label)
    for value in matrix.flat:
        assert f"{100 * value:.1f}" in words
    # Every colour is a CSS variable.
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert "var(--series-1)" in svg
    assert "made against teacher: teacher" in panel.description
    assert [row["accuracy"] for row in panel.rows()] == pytest.approx(matrix.ravel().tolist())


def test_the_files_equal_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = make_transfer()
    write_transfer(records, tmp_path / "t")
    names = sorted(each.name for each in (tmp_path / "t").iterdir())
    assert names == ["likeness.csv", "transfer.csv", "transfer.json", "transfer.md", "transfer.npz", "transfer.svg"]
    matrix = transfer_matrix(records.adversarial, records.label)
    with (tmp_path / "t" / "transfer.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["made_against"], row["asked"]): float(row["accuracy"]) for row in rows} == {
        (source, target): matrix[s, t] for s, source in enumerate(NAMES) for t, target in enumerate(NAMES)
    }
    assert all(float(row["low"]) <= float(row["accuracy"]) <= float(row["high"]) for row in rows)
    with (tmp_path / "t" / "likeness.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == 6
    agreement = (records.clean[0].argmax(axis=1) == records.clean[2].argmax(axis=1)).mean()
    assert float(
        next(row for row in pairs if (row["first"], row["second"]) == ("teacher", "student"))["agreement_clean"]
    ) == pytest.approx(agreement)
    page = (tmp_path / "t" / "transfer.md").read_text()
    lines = [re.split(r"(?<!\\)\|", line) for line in page.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines[:5]}) == 1
    assert f"| teacher | {matrix[0, 0]:.3f} |" in page
    assert "300 images, a subset of 10000; linf:8/255" in page
    transfer_table(records)
    assert f"{matrix[2, 2]:.3f}" in capsys.readouterr().out
    # An earlier transfer may be replaced, other files may not.
    write_transfer(records, tmp_path / "t")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    for name in ("mine", "mine/thesis.tex"):
        with pytest.raises(RunError, match="--out"):
            write_transfer(records, tmp_path / name)


def test_an_attack_weaker_than_a_transfer_gives_a_warning() -> None:
    assert transfer_warnings(make_transfer()) == []
    lines = transfer_warnings(make_transfer(masked=True))
    assert len(lines) == 2
    assert all("fool student more often than those made against itself" in line for line in lines)


@pytest.mark.slow
def test_the_page_shows_the_transfer_on_request(two_runs: list[Path], tmp_path: Path) -> None:
    write_transfer(make_transfer(masked=True), tmp_path / "t")
    page = report(two_runs[:1], tmp_path / "with.html", transfer=tmp_path / "t", figures=tmp_path / "f").read_text()
    assert "<h3>Transfer</h3>" in page
    assert "a|&lt;b&gt;" in page
    assert "<b>" not in page
    assert "fool student more often" in page
    assert (tmp_path / "f" / "transfer.pdf").is_file()
    assert "<h3>Transfer</h3>" not in report(two_runs[:1], tmp_path / "without.html").read_text()
    with pytest.raises(RunError, match="nowhere"):
        report(two_runs, tmp_path / "x.html", transfer=tmp_path / "nowhere")
    assert not (tmp_path / "x.html").exists()
