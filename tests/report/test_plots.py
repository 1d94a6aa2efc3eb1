import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from helpers.made_up_runs import CIFAR_CLASSES, make_run
from robustill.analysis.runs import read_runs
from robustill.report import plots


@pytest.fixture
def runs(two_runs):
    return read_runs(two_runs)


def all_figures(runs):
    records = runs[0].main.records
    return {
        "training": plots.draw_training_accuracy(runs[0], 0),
        "validation": plots.draw_validation_robustness(runs),
        "loss": plots.draw_training_loss(runs),
        "eps": plots.draw_robustness_by_eps(runs, "linf"),
        "reliability": plots.draw_reliability(records.adversarial_probabilities, records.label, 1),
        "classes": plots.draw_class_robustness(runs),
    }


@pytest.mark.parametrize("name", ["training", "validation", "loss", "eps", "reliability", "classes"])
def test_an_svg_is_well_formed_and_reproducible(runs, name):
    first, again = (plots.render_inline_svg(plots.draw(all_figures(runs)[name]), name, 'says "<a>"') for _ in range(2))
    assert first == again
    root = ElementTree.fromstring(first)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'says "<a>"'
    assert "http" not in first
    ids = re.findall(r'\sid="([^"]*)"', first)
    assert len(ids) == len(set(ids))
    assert all(each.startswith(f"{name}-") for each in ids)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]*)', first))
    assert used <= set(ids)


@pytest.mark.parametrize("name", ["training", "validation", "loss", "eps", "reliability", "classes"])
def test_every_colour_is_a_css_variable(runs, name):
    svg = plots.render_inline_svg(plots.draw(all_figures(runs)[name]), name, "")
    assert "var(--ink)" in svg
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []


def lines_of(paint):
    (axes, *_) = plots.draw(paint).axes
    return {line.get_label(): line for line in axes.lines}


def test_curves_equal_the_metrics(runs):
    lines = lines_of(plots.draw_training_accuracy(runs[0], 0))
    epochs, values = runs[0].series("validation_robust_accuracy")
    drawn = lines["validation, under attack"]
    np.testing.assert_allclose(drawn.get_xydata(), np.column_stack([epochs, values]))
    assert len({lines[name].get_linestyle() for name in lines if "," in name}) >= 2


def test_the_best_epoch_is_marked_at_its_value(runs):
    (axes,) = plots.draw(plots.draw_training_accuracy(runs[0], 0)).axes
    value = dict(zip(*runs[0].series("validation_robust_accuracy"), strict=True))[28]
    assert [28, pytest.approx(value)] in [
        line.get_xydata().tolist()[0] for line in axes.lines if len(line.get_xdata()) == 1
    ]
    assert "best, epoch 28" in [text.get_text() for text in axes.texts]


def test_robustness_by_eps_equals_the_records(runs):
    lines = lines_of(plots.draw_robustness_by_eps(runs, "linf"))
    for run in runs:
        records = run.main.records
        expected = np.column_stack([records.eps_grid, records.robust_at_eps.mean(axis=0)])
        np.testing.assert_allclose(lines[run.name].get_xydata(), expected, atol=1e-7)


def test_clean_accuracy_is_added_at_radius_zero(runs):
    records = runs[0].main.records
    without_zero = replace(records, eps_grid=records.eps_grid[2:], robust_at_eps=records.robust_at_eps[:, 2:])
    run = replace(runs[0], evaluations=(replace(runs[0].main, records=without_zero),))
    drawn = lines_of(plots.draw_robustness_by_eps([run], "linf"))["akd"].get_xydata()
    assert drawn[0].tolist() == [0, pytest.approx(records.clean_correct.mean())]
    assert len(drawn) == len(without_zero.eps_grid) + 1


def test_runs_can_be_distinguished_without_colour(runs):
    lines = lines_of(plots.draw_robustness_by_eps(runs, "linf"))
    assert lines["akd"].get_marker() != lines["pgd-at"].get_marker()


def test_the_hardest_class_is_at_the_top(runs):
    (axes,) = plots.draw(plots.draw_class_robustness(runs)).axes
    records = runs[0].main.records
    shares = [records.robust[records.label == k].mean() for k in range(10)]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), sorted(shares, reverse=True))
    assert axes.get_yticklabels()[-1].get_text() == str(int(np.argmin(shares)))


def test_names_are_neither_formulas_nor_markup(tmp_path):
    runs = [
        make_run(tmp_path / name, method={"name": "at"}, channels=3, eps=8 / 255, classes=CIFAR_CLASSES)
        for name in ("_hidden", "a$\\frac$b", "<b>", "名前", "a" * 80)
    ]
    svg = plots.render_inline_svg(plots.draw(plots.draw_validation_robustness(read_runs(runs))), "odd", "")
    text = "".join(ElementTree.fromstring(svg).itertext())
    for shown in ("hidden", "a$\\frac$b", "<b>", "名前", "…" + "a" * 25):
        assert shown in text


def test_small_radii_are_shown_as_fractions(tmp_path):
    run = make_run(tmp_path / "cifar", method={"name": "at"}, channels=3, eps=8 / 255, classes=CIFAR_CLASSES)
    svg = plots.render_inline_svg(plots.draw(plots.draw_robustness_by_eps(read_runs([run]), "linf")), "eps", "")
    assert "trained at 8/255" in svg
    assert "16/255" in svg
