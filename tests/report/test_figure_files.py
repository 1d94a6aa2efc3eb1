import csv
import re
import zlib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from helpers.made_up_runs import make_run
from robustill.analysis.runs import read_runs
from robustill.analysis.training_dynamics import noise_memorisation
from robustill.cli import app as cli
from robustill.core.errors import RunError
from robustill.report import dynamics, report
from robustill.report import figure_files as paper
from robustill.report import plots as figures
from robustill.report.dynamics import side_by_side
from robustill.report.panels import Panel, panels
from robustill.runs.directory import RunDirectory

KINDS = {".svg", ".pdf", ".csv"}


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def shared(made_once, tmp_path_factory):
    """The figures of the two runs, and the page."""
    folder = tmp_path_factory.mktemp("paper")
    runs = [made_once / "runs/akd", made_once / "runs/pgd-at"]
    page = report(runs, folder / "page.html", figures=folder / "figures").read_text()
    return folder / "figures", page, read_runs(runs)


def test_every_figure_of_the_page_is_there_in_three_kinds(shared):
    folder, page, _ = shared
    listed = table(folder / "figures.csv")
    names = [row["figure"] for row in listed]
    assert len(names) == len(set(names)) == page.count('role="img"')
    assert {file.name for file in folder.iterdir()} == {
        "figures.csv",
        *(name + kind for name in names for kind in KINDS),
    }
    for row in listed:
        assert f'aria-label="{row["shows"]}"' in page
        assert table(folder / f"{row['figure']}.csv")


def test_a_file_stands_alone_in_the_light_palette(shared):
    folder, _, _ = shared
    for file in folder.glob("*.svg"):
        svg = file.read_text()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "var(--" not in svg
        assert figures.PAPER in svg
        assert figures.INK in svg


def test_a_pdf_has_its_fonts_inside_and_none_of_type_3(shared):
    folder, _, _ = shared
    for file in folder.glob("*.pdf"):
        content = file.read_bytes()
        assert content.startswith(b"%PDF-")
        for compressed in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL):
            with_objects = zlib.decompressobj()
            try:
                content += with_objects.decompress(compressed)
            except zlib.error:
                continue
        assert content.count(b"/FontFile2") >= 1
        assert b"/Type3" not in content


def test_the_data_is_what_the_records_hold(shared):
    folder, _, runs = shared
    for number, run in enumerate(runs):
        curve = [row for row in table(folder / "eps-0.csv") if row["run"] == run.name]
        records = run.main.records
        np.testing.assert_allclose([float(row["eps"]) for row in curve], records.eps_grid, rtol=1e-5)
        np.testing.assert_allclose(
            [float(row["robust_accuracy"]) for row in curve], records.robust_at_eps.mean(axis=0), rtol=1e-6
        )
        assert all(float(row["low"]) <= float(row["robust_accuracy"]) <= float(row["high"]) for row in curve)
        training = table(folder / f"training-{number}-{run.name}.csv")
        assert [int(row["epoch"]) for row in training if row["best"] == "1"] == [run.best]
        validated = {
            int(row["epoch"]): float(row["held_out_robust_accuracy"])
            for row in training
            if row["held_out_robust_accuracy"]
        }
        epochs, values = run.series("validation_robust_accuracy")
        assert list(validated) == epochs
        np.testing.assert_allclose(list(validated.values()), values, rtol=1e-6)
        bins = table(folder / f"reliability-adversarial-{number}-{run.name}.csv")
        assert sum(int(row["num_images"]) for row in bins) == 500
        right = sum(int(row["num_images"]) * float(row["accuracy"]) for row in bins if row["accuracy"])
        correct = records.adversarial_probabilities.argmax(axis=1) == records.label
        assert right == pytest.approx(correct.sum(), abs=0.01)
    assert len(table(folder / "map-0-akd.csv")) == 300
    by_class = table(folder / "classes.csv")
    assert float(by_class[3]["robust_accuracy"]) == pytest.approx(
        runs[0].main.records.robust[runs[0].main.records.label == 3].mean()
    )


def test_the_data_of_curves_is_what_is_drawn(shared):
    _, _, runs = shared
    for place in ("together", "eps"):
        for panel in panels(runs)[place]:
            (axes, *_) = figures.draw(panel.paint).axes
            drawn = np.concatenate([line.get_xydata() for line in axes.lines if line.get_label() in ("akd", "pgd-at")])
            rows = [list(row.values()) for row in panel.rows()]
            columns = {"together": (1, 2), "eps": (2, 3)}[place]
            np.testing.assert_allclose(drawn, [[row[k] for k in columns] for row in rows])


def test_the_same_figure_gives_the_same_bytes_and_replaces_what_was_there(shared, tmp_path):
    folder, _, runs = shared
    found, again = panels(runs), tmp_path / "figures"
    paper.write_figures(found["classes"], again)
    paper.write_figures(found["together"][:1], again)
    assert {file.name for file in again.iterdir()} == {"figures.csv", *(f"held-out{kind}" for kind in KINDS)}
    for kind in KINDS:
        assert (again / f"held-out{kind}").read_bytes() == (folder / f"held-out{kind}").read_bytes(), kind


def test_files_of_others_stay(tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "paper.tex").write_text("mine")
    with pytest.raises(RunError, match=r"holds paper\.tex, which is none of its figures"):
        paper.write_figures([], folder)
    assert [file.name for file in folder.iterdir()] == ["paper.tex"]
    with pytest.raises(RunError, match="is a file"):
        paper.write_figures([], folder / "paper.tex")


def test_what_fails_half_way_leaves_the_figures_that_were_there(shared, tmp_path):
    _, _, runs = shared
    (panel, *_) = panels(runs)["together"]
    folder = tmp_path / "figures"
    paper.write_figures([panel], folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        paper.write_figures([panel, replace(panel, name="other", rows=broken)], folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_be_made_is_one_line(shared, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        paper.write_figures([], tmp_path / "file" / "figures")


def test_names_of_runs_are_safe_in_file_names():
    def named(run):
        return Panel(name="map-0", paint=lambda _: None, rows=list, description="", run=run).file

    assert named("../../etc/a b") == "map-0-etc-a-b"
    assert named("名前") == "map-0"
    assert len(named("x" * 500)) == 66


def test_flipped_labels_have_their_data(tmp_path):
    run = make_run(tmp_path / "noisy", method={"name": "at"}, evaluations=(), dynamics=200, noise=0.2)
    shown = side_by_side(read_runs([run]), [])
    [panel] = dynamics.figures(shown)["noise"]
    expected = noise_memorisation(shown[0].dynamics).flipped
    np.testing.assert_allclose([row["predicted_as_flipped"] for row in panel.rows()], expected)


def test_the_command_says_what_it_wrote_even_without_a_figure(tmp_path, monkeypatch, capsys):
    RunDirectory(tmp_path / "new").start("seed: 0\n")
    monkeypatch.chdir(tmp_path)
    cli.report(Path("new"), figures=Path("figures"))
    assert capsys.readouterr().out == "wrote report.html\nwrote figures\n"
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["figures.csv"]


def test_a_page_is_not_written_where_the_figures_cannot_be(tmp_path):
    RunDirectory(tmp_path / "new").start("seed: 0\n")
    with pytest.raises(RunError, match="is a file"):
        report([tmp_path / "new"], tmp_path / "page.html", figures=tmp_path / "new" / "config.yaml")
    assert not (tmp_path / "page.html").exists()
