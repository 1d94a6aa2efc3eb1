import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from helpers.made_up_runs import CIFAR_CLASSES, make_run
from robustill.analysis.runs import read_runs
from robustill.report import plots as figures


@pytest.fixture
def runs(two_runs):
    return read_runs(two_runs)


def every_figure(runs):
    records = runs[0].main.records
    return {
        "training": figures.training_accuracy(runs[0], 0),
        "held-out": figures.held_out_robustness(runs),
        "loss": figures.training_loss(runs),
        "eps": figures.robust_against_eps(runs, "linf"),
        "reliability": figures.reliability_diagram(records.adversarial_probabilities, records.label, 1),
        "classes": figures.class_robustness(runs),
    }


@pytest.mark.parametrize("name", ["training", "held-out", "loss", "eps", "reliability", "classes"])
def test_a_figure_is_well_formed_alone_and_the_same_each_time(runs, name):
    first, again = (figures.inline_svg(figures.draw(every_figure(runs)[name]), name, 'says "<a>"') for _ in range(2))
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


@pytest.mark.parametrize("name", ["training", "held-out", "loss", "eps", "reliability", "classes"])
def test_every_colour_follows_the_scheme(runs, name):
    svg = figures.inline_svg(figures.draw(every_figure(runs)[name]), name, "")
    assert "var(--ink)" in svg
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []


def lines_of(paint):
    (axes, *_) = figures.draw(paint).axes
    return {line.get_label(): line for line in axes.lines}


def test_curves_hold_the_metrics(runs):
    lines = lines_of(figures.training_accuracy(runs[0], 0))
    epochs, values = runs[0].series("validation_robust_accuracy")
    drawn = lines["held out, under attack"]
    np.testing.assert_allclose(drawn.get_xydata(), np.column_stack([epochs, values]))
    assert len({lines[name].get_linestyle() for name in lines if "," in name}) >= 2


def test_the_best_epoch_is_marked_at_its_value(runs):
    (axes,) = figures.draw(figures.training_accuracy(runs[0], 0)).axes
    value = dict(zip(*runs[0].series("validation_robust_accuracy"), strict=True))[28]
    assert [28, pytest.approx(value)] in [
        line.get_xydata().tolist()[0] for line in axes.lines if len(line.get_xdata()) == 1
    ]
    assert "best, epoch 28" in [text.get_text() for text in axes.texts]


def test_robustness_against_eps_holds_the_records(runs):
    lines = lines_of(figures.robust_against_eps(runs, "linf"))
    for run in runs:
        records = run.main.records
        expected = np.column_stack([records.eps_grid, records.robust_at_eps.mean(axis=0)])
        np.testing.assert_allclose(lines[run.name].get_xydata(), expected, atol=1e-7)


def test_clean_accuracy_stands_at_radius_zero_where_the_grid_has_none(runs):
    records = runs[0].main.records
    later = replace(records, eps_grid=records.eps_grid[2:], robust_at_eps=records.robust_at_eps[:, 2:])
    run = replace(runs[0], evaluations=(replace(runs[0].main, records=later),))
    drawn = lines_of(figures.robust_against_eps([run], "linf"))["akd"].get_xydata()
    assert drawn[0].tolist() == [0, pytest.approx(records.clean_correct.mean())]
    assert len(drawn) == len(later.eps_grid) + 1


def test_runs_differ_without_colour(runs):
    lines = lines_of(figures.robust_against_eps(runs, "linf"))
    assert lines["akd"].get_marker() != lines["pgd-at"].get_marker()


def test_classes_are_sorted_with_the_hardest_on_top(runs):
    (axes,) = figures.draw(figures.class_robustness(runs)).axes
    records = runs[0].main.records
    shares = [records.robust[records.label == k].mean() for k in range(10)]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), sorted(shares, reverse=True))
    assert axes.get_yticklabels()[-1].get_text() == str(int(np.argmin(shares)))


def test_names_are_names_and_neither_formulas_nor_markup(tmp_path):
    odd = [
        make_run(tmp_path / name, method={"name": "at"}, channels=3, eps=8 / 255, classes=CIFAR_CLASSES)
        for name in ("_hidden", "a$\\frac$b", "<b>", "名前", "a" * 80)
    ]
    svg = figures.inline_svg(figures.draw(figures.held_out_robustness(read_runs(odd))), "odd", "")
    text = "".join(ElementTree.fromstring(svg).itertext())
    for shown in ("hidden", "a$\\frac$b", "<b>", "名前", "…" + "a" * 25):
        assert shown in text


def test_radii_of_a_few_levels_are_shown_as_fractions(tmp_path):
    run = make_run(tmp_path / "cifar", method={"name": "at"}, channels=3, eps=8 / 255, classes=CIFAR_CLASSES)
    svg = figures.inline_svg(figures.draw(figures.robust_against_eps(read_runs([run]), "linf")), "eps", "")
    assert "trained at 8/255" in svg
    assert "16/255" in svg
