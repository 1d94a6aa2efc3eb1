import csv
import re
import zlib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from helpers.made_up_runs import make_run
from helpers.read_arms import read_arms, read_runs
from robustill.analysis.training_dynamics import noise_memorisation
from robustill.cli import app as cli
from robustill.core.errors import RunError
from robustill.report import plots, report
from robustill.report.dynamics import align_runs, dynamics_panels
from robustill.report.figure_files import write_figures
from robustill.report.panels import Panel, run_panels
from robustill.runs.directory import RunDirectory

SUFFIXES = {".svg", ".pdf", ".csv"}


def read_csv(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def shared(made_once, tmp_path_factory):
    """The figures folder of the two runs, the page, and the runs."""
    folder = tmp_path_factory.mktemp("report")
    runs = [made_once / "runs/akd", made_once / "runs/pgd-at"]
    page = report(runs, folder / "page.html", figures=folder / "figures").read_text()
    return folder / "figures", page, read_arms(runs)


@pytest.mark.slow
def test_every_figure_of_the_page_is_written_in_three_formats(shared):
    folder, page, _ = shared
    listed = read_csv(folder / "figures.csv")
    names = [row["figure"] for row in listed]
    assert len(names) == len(set(names)) == page.count('role="img"')
    assert {file.name for file in folder.iterdir()} == {
        "figures.csv",
        "ranking.csv",
        "ranking.tex",
        *(name + suffix for name in names for suffix in SUFFIXES),
    }
    for row in listed:
        assert f'aria-label="{row["shows"]}"' in page
        assert read_csv(folder / f"{row['figure']}.csv")


def test_svg_files_use_the_light_palette(shared):
    folder, _, _ = shared
    files = list(folder.glob("*.svg"))
    assert any(plots.INK in file.read_text() for file in files)
    for file in files:
        svg = file.read_text()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "var(--" not in svg
        assert plots.PAPER in svg


def test_pdf_files_embed_fonts_and_none_of_type_3(shared):
    folder, _, _ = shared
    for file in folder.glob("*.pdf"):
        content = file.read_bytes()
        assert content.startswith(b"%PDF-")
        for compressed in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL):
            decompressor = zlib.decompressobj()
            try:
                content += decompressor.decompress(compressed)
            except zlib.error:
                continue
        assert content.count(b"/FontFile2") >= 1
        assert b"/Type3" not in content


def test_the_data_equals_the_records(shared):
    folder, _, arms = shared
    runs = [arm.runs[0] for arm in arms]
    for number, run in enumerate(runs):
        curve = [row for row in read_csv(folder / "eps-0.csv") if row["run"] == run.name]
        records = run.main.records
        np.testing.assert_allclose([float(row["eps"]) for row in curve], records.eps_grid, rtol=1e-5)
        np.testing.assert_allclose(
            [float(row["robust_accuracy"]) for row in curve], records.robust_at_eps.mean(axis=0), rtol=1e-6
        )
        assert all(float(row["low"]) <= float(row["robust_accuracy"]) <= float(row["high"]) for row in curve)
        training = read_csv(folder / f"training-{number}-{run.name}.csv")
        assert [int(row["epoch"]) for row in training if row["best"] == "1"] == [run.best]
        validated = {
            int(row["epoch"]): float(row["validation_robust_accuracy"])
            for row in training
            if row["validation_robust_accuracy"]
        }
        epochs, values = run.series("validation_robust_accuracy")
        assert list(validated) == epochs
        np.testing.assert_allclose(list(validated.values()), values, rtol=1e-6)
        bins = read_csv(folder / f"reliability-adversarial-{number}-{run.name}.csv")
        assert sum(int(row["num_images"]) for row in bins) == 500
        right = sum(int(row["num_images"]) * float(row["accuracy"]) for row in bins if row["accuracy"])
        correct = records.adversarial_probabilities.argmax(axis=1) == records.label
        assert right == pytest.approx(correct.sum(), abs=0.01)
    assert len(read_csv(folder / "map-0-AKD.csv")) == 300
    by_class = read_csv(folder / "classes.csv")
    assert float(by_class[3]["robust_accuracy"]) == pytest.approx(
        runs[0].main.records.robust[runs[0].main.records.label == 3].mean()
    )


def test_the_data_equals_the_drawn_curves(shared):
    _, _, arms = shared
    for section in ("together", "eps"):
        for panel in run_panels(arms, [arm.runs[0] for arm in arms])[section]:
            (axes, *_) = plots.draw(panel.paint).axes
            drawn = np.concatenate([line.get_xydata() for line in axes.lines if line.get_label() in ("AKD", "PGD-AT")])
            rows = [list(row.values()) for row in panel.rows()]
            columns = {"together": (1, 2), "eps": (2, 3)}[section]
            np.testing.assert_allclose(drawn, [[row[k] for k in columns] for row in rows])


def test_figures_are_reproducible_and_replace_older_ones(shared, tmp_path):
    folder, _, arms = shared
    panels, again = run_panels(arms, [arm.runs[0] for arm in arms]), tmp_path / "figures"
    write_figures(panels["classes"], again)
    write_figures(panels["together"][:1], again)
    assert {file.name for file in again.iterdir()} == {"figures.csv", *(f"validation{suffix}" for suffix in SUFFIXES)}
    for suffix in SUFFIXES:
        assert (again / f"validation{suffix}").read_bytes() == (folder / f"validation{suffix}").read_bytes(), suffix


def test_other_files_are_never_replaced(tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "paper.tex").write_text("mine")
    with pytest.raises(RunError, match=r"holds paper\.tex, which is not one of the figures"):
        write_figures([], folder)
    assert [file.name for file in folder.iterdir()] == ["paper.tex"]
    with pytest.raises(RunError, match="is a file"):
        write_figures([], folder / "paper.tex")


def test_a_failure_leaves_the_existing_figures(shared, tmp_path):
    _, _, arms = shared
    (panel, *_) = run_panels(arms, [arm.runs[0] for arm in arms])["together"]
    folder = tmp_path / "figures"
    write_figures([panel], folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_figures([panel, replace(panel, name="other", rows=fail)], folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_an_unwritable_folder_gives_a_one_line_error(shared, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_figures([], tmp_path / "file" / "figures")


def test_run_names_are_safe_in_file_names():
    def file_name(run):
        return Panel(name="map-0", paint=lambda _: None, rows=list, description="", run=run).file

    assert file_name("../../etc/a b") == "map-0-etc-a-b"
    assert file_name("名前") == "map-0"
    assert len(file_name("x" * 500)) == 66


def test_flipped_labels_have_a_data_file(tmp_path):
    run = make_run(tmp_path / "noisy", method={"name": "at"}, evaluations=(), dynamics=200, noise=0.2)
    aligned = align_runs(read_runs([run]), [])
    [panel] = dynamics_panels(aligned)["noise"]
    expected = noise_memorisation(aligned[0].dynamics).flipped
    np.testing.assert_allclose([row["predicted_as_flipped"] for row in panel.rows()], expected)


def test_the_command_prints_what_it_wrote(tmp_path, monkeypatch, capsys):
    RunDirectory(tmp_path / "new").start("seed: 0\n")
    monkeypatch.chdir(tmp_path)
    cli.report(Path("new"), figures=Path("figures"))
    assert capsys.readouterr().out == "wrote report.html\nwrote figures\n"
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["figures.csv"]


def test_no_page_is_written_if_the_figures_cannot_be(tmp_path):
    RunDirectory(tmp_path / "new").start("seed: 0\n")
    with pytest.raises(RunError, match="is a file"):
        report([tmp_path / "new"], tmp_path / "page.html", figures=tmp_path / "new" / "config.yaml")
    assert not (tmp_path / "page.html").exists()
