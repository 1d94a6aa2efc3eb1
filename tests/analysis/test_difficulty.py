"""Difficulty of single images, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import entropy

from helpers.made_up_runs import make_records
from helpers.made_up_series import dynamics_of, hits, random_series, series_of
from robustill.analysis.difficulty import (
    BINS,
    RADIUS_BINS,
    accuracy_by_bin,
    breaking_radius,
    difficulty,
    evaluation_hardness,
    radius_bins,
    sample_metrics,
    training_hardness,
)
from robustill.analysis.training_dynamics import data_map, forgetting_events, last_epochs
from robustill.runs.records import Records


@pytest.fixture(scope="module")
def records() -> Records:
    return make_records(strength=0, seed=0, eps=0.25, classes=tuple("0123"))


def test_breaking_radius_is_the_first_radius_not_withstood(records: Records) -> None:
    result = breaking_radius(records)
    for row in range(len(records)):
        lost = [eps for eps, held in zip(records.eps_grid, records.robust_at_eps[row], strict=True) if not held]
        expected = 0.0 if not records.clean_correct[row] else lost[0] if lost else np.inf
        assert result[row] == pytest.approx(expected)


def test_radius_bins_match_the_eps_curve(records: Records) -> None:
    result = np.array(RADIUS_BINS)[radius_bins(records)]
    assert np.array_equal(result == "wrong without attack", ~records.clean_correct)
    held = np.isin(result, ["broken at a larger radius", "never broken"])
    # The radius of the threat is the fifth of the grid's nine, half of it the third.
    assert np.array_equal(held, records.robust_at_eps[:, 4])
    assert np.array_equal(result == "broken at half the radius", records.clean_correct & ~records.robust_at_eps[:, 2])
    assert np.array_equal(result == "never broken", records.robust_at_eps[:, -1])


def test_without_a_curve_there_is_one_radius(records: Records) -> None:
    bare = replace(records, eps_grid=records.eps_grid[:0], robust_at_eps=records.robust_at_eps[:, :0])
    result = breaking_radius(bare)
    assert np.array_equal(np.isinf(result), records.robust)
    assert set(result[~records.robust]) == {0.0, 0.25}
    assert {RADIUS_BINS[code] for code in radius_bins(bare)} == {
        "wrong without attack",
        "broken at the radius",
        "never broken",
    }


def test_hardness_is_larger_for_harder_images(records: Records) -> None:
    result = evaluation_hardness(records)
    rows = np.arange(len(records))
    np.testing.assert_allclose(
        result["confidence in the label, attacked"], -records.adversarial_probabilities[rows, records.label]
    )
    np.testing.assert_allclose(
        result["entropy of the prediction, clean"], entropy(records.clean_probabilities, axis=1), atol=1e-6
    )
    robust = records.robust
    for name in ("confidence in the label, attacked", "margin, attacked", "radius that breaks it"):
        assert result[name][robust].mean() < result[name][~robust].mean()


def test_training_scores_are_larger_for_samples_that_are_learned_later_or_forgotten() -> None:
    # From the start, late, twice forgotten, and never.
    series = hits("11111111 00011111 10101111 00000000")
    result = training_hardness(dynamics_of(series, clean=series, teacher_adversarial=series, teacher_clean=series))
    early, late, forgotten, never = range(4)
    confidences = {name for name in result if "mean confidence" in name}
    assert len(confidences) == 4
    for name in (*confidences, "area under the margin"):
        assert result[name][early] < result[name][forgotten] < result[name][late] < result[name][never], name
    assert result["variability, attacked"][early] < result["variability, attacked"][forgotten]
    assert result["forgetting events"].tolist() == [0, 0, 2, 0]
    assert result["rise of confidence"][early] < result["rise of confidence"][forgotten]
    assert result["rise of confidence"][forgotten] < result["rise of confidence"][late]
    assert result["epoch of learning"].tolist() == [1, 4, 5, np.inf]
    assert len(result) == 9


def test_difficulty_by_hand() -> None:
    p = [[0.9, 0.8, 0.1, 0.3, 0.05, 0.9], [0.9, 0.8, 0.9, 0.3, 0.05, 0.2]]
    series = series_of(p, correct=[[1, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0]])
    codes = difficulty(series, ambiguous=0.4)  # of five learnable ones, two
    assert [BINS[code] for code in codes] == ["easy", "easy", "ambiguous", "hard", "unlearnable", "ambiguous"]


def test_difficulty_bins_have_the_requested_sizes() -> None:
    series = random_series()
    codes = difficulty(series)
    result = data_map(series)
    never = result.correctness < 0.1
    assert ((codes == BINS.index("unlearnable")) == never).all()
    ambiguous = codes == BINS.index("ambiguous")
    assert ambiguous.sum() == round((~never).sum() / 3)
    rest = ~never & ~ambiguous
    assert result.variability[ambiguous].min() >= result.variability[rest].max()
    assert (result.confidence[codes == BINS.index("easy")] >= 0.5).all()
    assert (result.confidence[codes == BINS.index("hard")] < 0.5).all()


def test_a_sample_without_records_is_unlearnable() -> None:
    assert difficulty(series_of([[None, 0.9]])).tolist() == [BINS.index("unlearnable"), BINS.index("easy")]


def test_accuracy_by_bin_is_the_accuracy_of_every_epoch() -> None:
    series, bins = hits("11 01 00 .1"), np.array([0, 0, 2, 2])
    result = accuracy_by_bin(series, bins)
    np.testing.assert_allclose(result, [[0.5, 1], [np.nan] * 2, [0, 0.5], [np.nan] * 2])


def test_sample_metrics_cover_every_kind_of_records() -> None:
    series, clean, teacher = random_series(), random_series(seed=1), random_series(seed=2)
    metrics = sample_metrics(dynamics_of(series, clean=last_epochs(clean), teacher_adversarial=teacher))
    np.testing.assert_allclose(metrics["adversarial_probability"], series.probability[-6:].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(metrics["adversarial_loss"], series.loss[-6:].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(metrics["teacher_adversarial_mean_probability"], data_map(teacher).confidence)
    np.testing.assert_allclose(metrics["clean_correct"], clean.correct[-2:].mean(axis=0))
    assert not any(name.startswith("teacher_clean") for name in metrics)
    assert all(value.shape == (200,) for value in metrics.values())
    np.testing.assert_array_equal(metrics["forgetting"], forgetting_events(series))
