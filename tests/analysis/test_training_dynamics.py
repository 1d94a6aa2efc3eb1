import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from helpers.made_up_series import dynamics_of, hits, random_series, series_of
from robustill.analysis.statistics import wilson_interval
from robustill.analysis.training_dynamics import (
    area_under_margin,
    compare_learned,
    data_map,
    epoch_learned,
    forgetting_events,
    is_learned,
    last_epochs,
    memorisation_proxy,
    noise_memorisation,
    robust_overfitting,
)


def test_data_map_is_mean_and_population_deviation():
    series = random_series()
    result = data_map(series)
    p = series.probability.astype(np.float64)
    np.testing.assert_allclose(result.confidence, p.mean(axis=0))
    np.testing.assert_allclose(result.variability, p.std(axis=0))
    np.testing.assert_allclose(result.correctness, series.correct.mean(axis=0))


def test_data_map_leaves_out_missing_records():
    result = data_map(series_of([[0.2, None, 0.4], [None, None, 0.6], [0.4, None, 0.8]]))
    np.testing.assert_allclose(result.confidence, [0.3, np.nan, 0.6], rtol=1e-6)
    np.testing.assert_allclose(result.variability, [0.1, np.nan, math.sqrt(0.08 / 3)], rtol=1e-6)
    np.testing.assert_allclose(result.correctness, [0, np.nan, 2 / 3])


def test_epoch_learned_is_the_first_correct_to_the_end():
    series = hits("1111 0011 1101 0110 0.11 011. ....")
    np.testing.assert_array_equal(epoch_learned(series), [1, 3, 4, np.nan, 3, 2, np.nan])
    np.testing.assert_array_equal(epoch_learned(replace(series, epochs=np.array([5, 10, 15, 20])))[:2], [5, 15])


def test_forgetting_events_by_hand():
    np.testing.assert_array_equal(forgetting_events(hits("1111 1010 0101 0000 1.01 ..10 1..0")), [0, 2, 1, 0, 1, 1, 1])


def test_forgetting_equals_a_loop():
    series = random_series()
    expected = [sum(a and not b for a, b in pairwise(row)) for row in series.correct.T]
    np.testing.assert_array_equal(forgetting_events(series), expected)


def test_is_learned_uses_the_last_fifth_of_the_epochs():
    series = hits("0000000011 1111111100 0000000001 1111111110 .......... 1111111.1.")
    assert last_epochs(series).epochs.tolist() == [9, 10]
    assert is_learned(series).tolist() == [True, False, True, True, False, True]


def test_area_under_margin_is_the_mean_margin():
    series = series_of([[0.5, None], [0.5, 0.5]], margin=[[1.0, np.nan], [-3.0, 2.0]])
    np.testing.assert_allclose(area_under_margin(series), [-1, 2])


def test_memorisation_proxy_by_hand():
    # Known from the start, never known, and learned in the last of five epochs: 1 − 1/5.
    series = series_of([[1, 0, 0]] * 4 + [[1, 0, 1]])
    np.testing.assert_allclose(memorisation_proxy(series), [0, 0, 0.8])


def test_compare_learned_uses_the_samples_of_both_runs():
    baseline = dynamics_of(series_of([[0.2, 0.6, 0.9, 0.3]]), ids=[1, 2, 5, 7], labels=[0, 1, 1, 0])
    student = dynamics_of(series_of([[0.7, 0.8, 0.1, 0.4]]), ids=[2, 1, 5, 9], labels=[1, 0, 0, 0])
    result = compare_learned(baseline, student)
    # 5 has another label (noise of another seed), 7 and 9 are alone.
    assert result.ids.tolist() == [1, 2]
    assert result.outcomes == {"both": 1, "only_student": 1, "only_baseline": 0, "neither": 0}


def test_robust_overfitting_uses_the_validated_epochs():
    lines = [
        {"epoch": e, "train_adversarial_accuracy": t} | ({} if h is None else {"validation_robust_accuracy": h})
        for e, t, h in ((1, 0.3, None), (2, 0.5, 0.4), (3, 0.7, 0.5), (4, 0.9, 0.42))
    ]
    result = robust_overfitting(lines)
    assert result.epochs.tolist() == [2, 3, 4]
    np.testing.assert_allclose(result.gap, [0.1, 0.2, 0.48])
    assert result.drop == pytest.approx(0.08)
    assert robust_overfitting(lines[:1]) is None


def test_noise_memorisation_equals_its_definition():
    series = random_series()
    flipped = np.random.default_rng(5).random(200) < 0.3
    result = noise_memorisation(dynamics_of(series, flipped=flipped))
    np.testing.assert_allclose(result.flipped, series.correct[:, flipped].mean(axis=1))
    np.testing.assert_allclose(result.others, series.correct[:, ~flipped].mean(axis=1))
    known = series.correct[-6:, flipped].mean(axis=0) >= 0.5
    assert result.final == pytest.approx(known.mean())
    assert result.interval == wilson_interval(int(known.sum()), int(flipped.sum()))
    assert result.separation == pytest.approx(roc_auc_score(~flipped, series.margin.mean(axis=0)))
    assert noise_memorisation(dynamics_of(series)) is None
    assert noise_memorisation(dynamics_of(series, flipped=flipped), "clean") is None


def test_noise_memorisation_leaves_out_missing_records():
    series = hits("1111 0111 0001 0001 .... ....")
    result = noise_memorisation(dynamics_of(series, flipped=[0, 0, 1, 1, 1, 0]))
    without_missing = noise_memorisation(dynamics_of(hits("1111 0111 0001 0001"), flipped=[0, 0, 1, 1]))
    assert (result.num_flipped, result.final, result.interval, result.separation) == (2, 1, without_missing.interval, 1)
    assert (result.flipped.tolist(), result.others.tolist()) == (
        without_missing.flipped.tolist(),
        without_missing.others.tolist(),
    )
    assert noise_memorisation(dynamics_of(series, flipped=[0, 0, 0, 0, 1, 1])) is None
    assert noise_memorisation(dynamics_of(series, flipped=[1, 1, 1, 1, 0, 0])) is None


def test_noise_memorisation_of_fully_memorised_labels():
    # Of six samples the last two are flipped: wrong for nine epochs, learned by heart in the end.
    series = hits("1111111111 0111111111 0011111111 0001111111 0000000001 0000000001")
    result = noise_memorisation(dynamics_of(series, flipped=[0, 0, 0, 0, 1, 1]))
    assert result.final == 1
    assert result.separation == 1
    assert memorisation_proxy(series).argsort()[-2:].tolist() == [4, 5]
