import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from helpers.made_up_runs import CIFAR_CLASSES, make_run
from helpers.read_arms import read_arms
from robustill.report import curves, plots


@pytest.fixture
def arms(two_runs):
    return read_arms(two_runs)


@pytest.fixture
def runs(arms):
    return [arm.runs[0] for arm in arms]


def numbered(arms):
    return list(enumerate(arms))


def all_figures(arms):
    run = arms[0].runs[0]
    records = run.main.records
    return {
        "training": curves.draw_training_accuracy(run, 0),
        "validation": curves.draw_over_epochs(arms, "validation_robust_accuracy", "accuracy", is_share=True),
        "loss": curves.draw_over_epochs(arms, "train_loss", "loss", is_share=False),
        "eps": curves.draw_robustness_by_eps(numbered(arms), "linf"),
        "reliability": curves.draw_reliability(records.adversarial_probabilities, records.label, 1),
        "classes": curves.draw_class_robustness(numbered(arms)),
    }


@pytest.mark.parametrize("name", ["training", "validation", "loss", "eps", "reliability", "classes"])
def test_an_svg_is_well_formed_and_reproducible(arms, name):
    first, again = (plots.render_inline_svg(plots.draw(all_figures(arms)[name]), name, 'says "<a>"') for _ in range(2))
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
def test_every_colour_is_a_css_variable(arms, name):
    svg = plots.render_inline_svg(plots.draw(all_figures(arms)[name]), name, "")
    assert "var(--" in svg
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []


def lines_of(paint):
    (axes, *_) = plots.draw(paint).axes
    return {line.get_label(): line for line in axes.lines}


def test_curves_equal_the_metrics(runs):
    lines = lines_of(curves.draw_training_accuracy(runs[0], 0))
    epochs, values = runs[0].series("validation_robust_accuracy")
    drawn = lines["validation, under attack"]
    np.testing.assert_allclose(drawn.get_xydata(), np.column_stack([epochs, values]))
    assert len({lines[name].get_linestyle() for name in lines if "," in name}) >= 2


def test_the_best_epoch_is_marked_at_its_value(runs):
    (axes,) = plots.draw(curves.draw_training_accuracy(runs[0], 0)).axes
    value = dict(zip(*runs[0].series("validation_robust_accuracy"), strict=True))[28]
    assert [28, pytest.approx(value)] in [
        line.get_xydata().tolist()[0] for line in axes.lines if len(line.get_xdata()) == 1
    ]
    assert "best, epoch 28" in axes.get_figure().legends[0].get_texts()[-1].get_text()


def test_robustness_by_eps_equals_the_records(arms, runs):
    lines = lines_of(curves.draw_robustness_by_eps(numbered(arms), "linf"))
    for run in runs:
        records = run.main.records
        expected = np.column_stack([records.eps_grid, records.robust_at_eps.mean(axis=0)])
        np.testing.assert_allclose(lines[run.name].get_xydata(), expected, atol=1e-7)


def test_clean_accuracy_is_added_at_radius_zero(arms, runs):
    records = runs[0].main.records
    without_zero = replace(records, eps_grid=records.eps_grid[2:], robust_at_eps=records.robust_at_eps[:, 2:])
    run = replace(runs[0], evaluations=(replace(runs[0].main, records=without_zero),))
    drawn = lines_of(curves.draw_robustness_by_eps([(0, replace(arms[0], runs=(run,)))], "linf"))["AKD"].get_xydata()
    assert drawn[0].tolist() == [0, pytest.approx(records.clean_correct.mean())]
    assert len(drawn) == len(without_zero.eps_grid) + 1


def test_arms_can_be_distinguished_without_colour(arms):
    lines = lines_of(curves.draw_robustness_by_eps(numbered(arms), "linf"))
    assert lines["AKD"].get_marker() != lines["PGD-AT"].get_marker()


def test_the_hardest_class_is_at_the_top(arms, runs):
    (axes,) = plots.draw(curves.draw_class_robustness(numbered(arms))).axes
    records = runs[0].main.records
    shares = [records.robust[records.label == k].mean() for k in range(10)]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), sorted(shares, reverse=True))
    assert axes.get_yticklabels()[-1].get_text() == str(int(np.argmin(shares)))


def test_names_are_neither_formulas_nor_markup(tmp_path):
    names = ("_hidden", "a$\\frac$b", "<b>", "名前", "a" * 80)
    runs = [make_run(tmp_path / str(seed), method={"name": f"my_mod:{name}"}) for seed, name in enumerate(names)]
    paint = curves.draw_over_epochs(read_arms(runs), "train_loss", "loss", is_share=False)
    text = "".join(ElementTree.fromstring(plots.render_inline_svg(plots.draw(paint), "odd", "")).itertext())
    for shown in ("hidden", "a$\\frac$b", "<b>", "名前", "…" + "a" * 25):
        assert shown in text


def test_small_radii_are_shown_as_fractions(tmp_path):
    run = make_run(tmp_path / "cifar", method={"name": "at"}, channels=3, eps=8 / 255, classes=CIFAR_CLASSES)
    arms = numbered(read_arms([run]))
    svg = plots.render_inline_svg(plots.draw(curves.draw_robustness_by_eps(arms, "linf")), "eps", "")
    assert "trained at 8/255" in svg
    assert "16/255" in svg


@pytest.fixture
def seeds(tmp_path):
    """Return the arm of AKD over three seeds."""
    paths = [make_run(tmp_path / str(seed), method={"name": "akd"}, teachers=("t",), seed=seed) for seed in range(3)]
    (arm,) = read_arms(paths)
    return arm


def test_curves_of_several_seeds_are_their_mean_with_its_spread(seeds):
    values = np.array([run.series("validation_robust_accuracy")[1] for run in seeds.runs])
    epochs, mean, std = curves.mean_series(seeds, "validation_robust_accuracy")
    assert epochs == list(range(2, 41, 2))
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(std, values.std(axis=0, ddof=1))
    _, shares, low, high = curves.eps_curve(seeds)
    flags = [run.main.records.robust_at_eps.mean(axis=0) for run in seeds.runs]
    np.testing.assert_allclose(shares, np.mean(flags, axis=0))
    half = np.std(flags, axis=0, ddof=1)
    np.testing.assert_allclose(low, np.clip(np.mean(flags, axis=0) - half, 0, 1))
    np.testing.assert_allclose(high, np.clip(np.mean(flags, axis=0) + half, 0, 1))
    shorter = replace(seeds.runs[0], metrics=seeds.runs[0].metrics[:10])
    assert curves.mean_series(replace(seeds, runs=(shorter, *seeds.runs[1:])), "train_loss")[0] == list(range(1, 11))


def test_further_arms_are_grey_and_have_no_name(arms):
    many = [replace(arms[number % 2], name=f"arm {number}") for number in range(9)]
    (axes,) = plots.draw(curves.draw_over_epochs(many, "train_loss", "loss", is_share=False)).axes
    assert len(axes.lines) == 9
    assert [text.get_text() for text in axes.get_figure().legends[0].get_texts()] == [f"arm {k}" for k in range(6)]
    assert {line.get_color() for line in axes.lines[6:]} == {plots.LINE}


def test_ticks_print_their_position_and_axes_fit_the_data(arms):
    for name, paint in all_figures(arms).items():
        figure = plots.draw(paint)
        figure.draw_without_rendering()
        for axes in figure.axes:
            labels = [(label.get_position()[0], label.get_text()) for label in axes.get_xticklabels()]
            labels += [(label.get_position()[1], label.get_text()) for label in axes.get_yticklabels()]
            shown = [(position, text) for position, text in labels if text.endswith("%")]
            assert len(shown) > 1 or name == "loss"
            for position, text in shown:
                assert float(text[:-1]) == pytest.approx(100 * position, abs=1e-9), name
    (axes,) = plots.draw(all_figures(arms)["classes"]).axes
    left, right = axes.get_xlim()
    shares = np.concatenate([line.get_xdata() for line in axes.lines])
    assert shares.min() - 0.1 < left <= shares.min()
    assert shares.max() <= right < shares.max() + 0.1


def test_names_of_several_radii_do_not_overprint(tmp_path):
    eps = (0.15, 0.16, 0.2)
    threat = {"threat": {"norm": "linf", "eps": 0.2, "text": "linf:0.2"}}
    paths = [make_run(tmp_path / str(each), method={"name": "at"}, eps=each, **threat) for each in eps]
    figure = plots.draw(curves.draw_robustness_by_eps(numbered(read_arms(paths)), "linf"))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for number, a in enumerate(boxes) for b in boxes[:number])
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize("length", [5, 15, 16, 40])
def test_a_legend_stays_inside_the_figure(arms, length):
    many = [replace(arms[number % 2], name=str(number) + "n" * (length - 1)) for number in range(6)]
    figure = plots.draw(curves.draw_over_epochs(many, "train_loss", "loss", is_share=False), height=4.0)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.width <= figure.bbox.width
    texts = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert not any(a.overlaps(b) for number, a in enumerate(texts) for b in texts[:number])
