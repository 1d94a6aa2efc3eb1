import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from helpers.made_up_runs import EPOCHS, make_run
from helpers.read_arms import read_runs
from robustill.analysis.arms import make_arms
from robustill.analysis.difficulty import BINS, difficulty
from robustill.analysis.training_dynamics import data_map
from robustill.core.errors import RunError
from robustill.report import report
from robustill.report.comparison import compare
from robustill.report.dynamics import align_runs, draw_bin_accuracy, draw_data_map, dynamics_panels, learned_tables
from robustill.report.plots import draw
from robustill.runs.dynamics import read_dynamics


@pytest.fixture
def runs(two_runs):
    return read_runs(two_runs)


@pytest.fixture
def aligned(runs):
    return align_runs(runs, compare(make_arms(runs)))


def test_the_baseline_is_the_reference(aligned):
    assert [each.run.name for each in aligned] == ["PGD-AT", "AKD"]
    assert [each.number for each in aligned] == [1, 0]
    expected = difficulty(read_dynamics(aligned[0].run.path).adversarial)
    for each in aligned:
        np.testing.assert_array_equal(each.bins, expected)


def test_a_run_without_a_teacher_is_the_default_reference(runs):
    assert align_runs(runs, [])[0].run.name == "PGD-AT"
    assert align_runs(runs[:1], [])[0].run.name == "AKD"


def test_runs_on_other_data_or_without_records_are_omitted(two_runs, tmp_path):
    other = make_run(tmp_path / "runs/other", method={"name": "at"}, channels=3, dynamics=50)
    silent = make_run(tmp_path / "runs/silent", method={"name": "at"})
    runs = read_runs([*two_runs, other, silent])
    assert [each.run.path.name for each in align_runs(runs, compare(make_arms(runs)))] == ["pgd-at", "akd"]
    assert align_runs(read_runs([silent]), []) == []
    assert dynamics_panels([]) == {"maps": [], "bins": [], "noise": []}


def test_only_shared_samples_are_compared(two_runs, tmp_path):
    small = make_run(tmp_path / "runs/small", method={"name": "at"}, teachers=("x",), dynamics=120)
    aligned = align_runs(read_runs([two_runs[1], small]), [])
    assert [len(each.bins) for each in aligned] == [300, 120]
    np.testing.assert_array_equal(aligned[1].bins, aligned[0].bins[:120])


def test_the_map_shows_every_image_and_the_bin_means(aligned):
    figure = draw(draw_data_map(aligned[1], aligned))
    (axes,) = figure.axes
    expected = data_map(read_dynamics(aligned[1].run.path).adversarial)
    drawn = {tuple(np.round(line.get_xydata()[-1], 6)) for line in axes.lines}
    for code in range(len(BINS)):
        members = aligned[0].bins == code
        if members.any():
            centre = (expected.variability[members].mean(), expected.confidence[members].mean())
            assert tuple(np.round(centre, 6)) in drawn
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [name for code, name in enumerate(BINS) if (aligned[0].bins == code).any()]
    # Every cell has its own colour.
    cells = axes.collections[0]
    assert len(cells.get_offsets()) == len(cells.get_facecolors())
    assert (expected.variability < 0.5).all()


def test_curves_by_difficulty_equal_the_records(aligned):
    code = BINS.index("easy")
    (axes,) = draw(draw_bin_accuracy(aligned, code)).axes
    for each, line in zip(aligned, axes.lines, strict=True):
        series = read_dynamics(each.run.path).adversarial
        expected = series.correct[:, aligned[0].bins == code].mean(axis=1)
        np.testing.assert_allclose(line.get_xydata(), np.column_stack([np.arange(1, EPOCHS + 1), expected]))
    assert len({line.get_linestyle() for line in axes.lines}) == 2


def test_every_panel_is_well_formed_and_uses_css_colours(aligned):
    panels = dynamics_panels(aligned)
    assert [panel.title for panel in panels["maps"]] == ["PGD-AT", "AKD"]
    assert 1 < len(panels["bins"]) <= len(BINS)
    assert panels["noise"] == []
    for panel in panels["maps"] + panels["bins"]:
        svg = panel.svg()
        assert ElementTree.fromstring(svg).get("aria-label")
        assert re.findall(r"#[0-9a-f]{6}\b", svg) == []
        assert len(svg) < 200_000


def test_learned_images_are_counted(aligned):
    [(name, baseline, rows)] = learned_tables(aligned)
    assert (name, baseline) == ("AKD", "PGD-AT")
    assert sum(number for _, number, _ in rows) == 300
    assert sum(share for *_, share in rows) == pytest.approx(1)


def test_flipped_labels_have_a_panel(tmp_path):
    run = make_run(tmp_path / "noisy", method={"name": "at"}, dynamics=200, noise=0.2)
    [panel] = dynamics_panels(align_runs(read_runs([run]), []))["noise"]
    assert panel.title == "Memorised label noise"
    assert re.search(r"PGD-AT predicts [0-9.]+\s%", ElementTree.fromstring(panel.svg()).get("aria-label"))
    page = report([run], tmp_path / "page.html").read_text()
    assert "Label noise" in page


@pytest.mark.slow
def test_the_page_shows_the_dynamics_if_there_are_any(two_runs, tmp_path):
    page = report(two_runs, tmp_path / "page.html").read_text()
    for text in ("Data maps", "By difficulty", "Training images learned by AKD and PGD-AT", "only by AKD"):
        assert text in page
    silent = make_run(tmp_path / "runs/silent", method={"name": "at"})
    page = report([silent], tmp_path / "page.html").read_text()
    assert "Data maps" not in page
    assert "By difficulty" not in page


def test_damaged_records_are_an_error_and_keep_the_old_page(two_runs, tmp_path):
    out = tmp_path / "page.html"
    before = report(two_runs, out).read_text()
    file = Path(two_runs[0]) / "dynamics" / "epoch-0003.npz"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(RunError, match=r"epoch-0003\.npz is damaged"):
        report(two_runs, out)
    assert out.read_text() == before


def test_a_run_without_a_finished_epoch_has_no_dynamics(runs):
    assert replace(runs[0], metrics=[]).dynamics is None


def test_a_curve_of_few_images_is_not_drawn(aligned):
    few = [replace(each, bins=np.where(np.arange(len(each.bins)) < 4, 3, 0)) for each in aligned]
    assert [panel.name for panel in dynamics_panels(few)["bins"]] == ["bin-easy"]
    enough = [replace(each, bins=np.where(np.arange(len(each.bins)) < 5, 3, 0)) for each in aligned]
    assert [panel.name for panel in dynamics_panels(enough)["bins"]] == ["bin-easy", "bin-unlearnable"]


def test_the_axes_of_all_maps_are_alike_and_fit_them(aligned):
    limits = [draw(draw_data_map(each, aligned)).axes[0].get_xlim() for each in aligned]
    widest = max(np.nanmax(each.map.variability) for each in aligned)
    assert len(set(limits)) == 1
    assert widest <= limits[0][1] < widest + 0.05 + 1e-9
