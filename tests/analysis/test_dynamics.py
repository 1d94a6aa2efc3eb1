import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from robustill.analysis.compare import wilson_interval
from robustill.analysis.difficulty import (
    BINS,
    accuracy_by_bin,
    by_bin,
    difficulty,
    evaluation_by_bin,
    sample_metrics,
)
from robustill.analysis.dynamics import (
    area_under_margin,
    data_map,
    epoch_learned,
    forgetting_events,
    last_epochs,
    learned,
    memorisation_proxy,
    noise_memorised,
    robust_overfitting,
    shift,
)
from robustill.dynamics import Dynamics, Series
from robustill.records import ROBUST, WRONG_ON_CLEAN, Records, summary


def series_of(p, correct=None, epochs=None, margin=None):
    """From probabilities [E][N], None where a sample was not seen; right above one half unless it is said."""
    p = np.array([[np.nan if each is None else each for each in row] for row in p], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = -np.log(p)
        margin = np.log(p) - np.log(1 - p) if margin is None else np.array(margin, float)
        right = p > 0.5 if correct is None else np.array(correct, bool)
    epochs = np.arange(1, len(p) + 1) if epochs is None else np.array(epochs)
    return Series(epochs=epochs, loss=loss.astype(np.float32), margin=margin.astype(np.float32), correct=right)


def hits(text):
    """A column a word, an epoch a letter: 1 right, 0 wrong, . not seen."""
    rows = list(zip(*text.split(), strict=True))
    p = [[None if each == "." else 0.9 if each == "1" else 0.1 for each in row] for row in rows]
    return series_of(p)


def random_series(E=30, N=200, seed=0):
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=N) * 2
    z = ease + np.linspace(-2, 2, E)[:, None] + rng.normal(size=(E, N))
    return series_of(1 / (1 + np.exp(-z)))


def dynamics_of(series, ids=None, labels=None, flipped=None, **looks):
    n = series.loss.shape[1]
    return Dynamics(
        ids=np.arange(n) if ids is None else np.array(ids),
        labels=np.zeros(n, int) if labels is None else np.array(labels),
        flipped=np.zeros(n, bool) if flipped is None else np.array(flipped, bool),
        num_epochs=len(series.epochs),
        adversarial=series,
        **looks,
    )


def test_data_map_is_mean_and_population_deviation():
    series = random_series()
    found = data_map(series)
    p = series.probability.astype(np.float64)
    np.testing.assert_allclose(found.confidence, p.mean(axis=0))
    np.testing.assert_allclose(found.variability, p.std(axis=0))
    np.testing.assert_allclose(found.correctness, series.correct.mean(axis=0))


def test_data_map_leaves_out_what_was_not_seen():
    found = data_map(series_of([[0.2, None, 0.4], [None, None, 0.6], [0.4, None, 0.8]]))
    np.testing.assert_allclose(found.confidence, [0.3, np.nan, 0.6], rtol=1e-6)
    np.testing.assert_allclose(found.variability, [0.1, np.nan, math.sqrt(0.08 / 3)], rtol=1e-6)
    np.testing.assert_allclose(found.correctness, [0, np.nan, 2 / 3])


def test_epoch_learned_is_the_first_that_lasts():
    series = hits("1111 0011 1101 0110 0.11 011. ....")
    np.testing.assert_array_equal(epoch_learned(series), [1, 3, 4, np.nan, 3, 2, np.nan])
    np.testing.assert_array_equal(epoch_learned(replace(series, epochs=np.array([5, 10, 15, 20])))[:2], [5, 15])


def test_forgetting_counts_the_falls():
    np.testing.assert_array_equal(forgetting_events(hits("1111 1010 0101 0000 1.01 ..10 1..0")), [0, 2, 1, 0, 1, 1, 1])


def test_forgetting_equals_a_loop():
    series = random_series()
    expected = [sum(a and not b for a, b in pairwise(row)) for row in series.correct.T]
    np.testing.assert_array_equal(forgetting_events(series), expected)


def test_learned_asks_the_last_fifth():
    series = hits("0000000011 1111111100 0000000001 1111111110 .......... 1111111.1.")
    assert last_epochs(series).epochs.tolist() == [9, 10]
    assert learned(series).tolist() == [True, False, True, True, False, True]


def test_area_under_margin_is_the_mean_margin():
    series = series_of([[0.5, None], [0.5, 0.5]], margin=[[1.0, np.nan], [-3.0, 2.0]])
    np.testing.assert_allclose(area_under_margin(series), [-1, 2])


def test_memorisation_proxy_by_hand():
    # Known from the start, never known, and learned in the last of five epochs: 1 − 1/5.
    series = series_of([[1, 0, 0]] * 4 + [[1, 0, 1]])
    np.testing.assert_allclose(memorisation_proxy(series), [0, 0, 0.8])


def test_difficulty_by_hand():
    p = [[0.9, 0.8, 0.1, 0.3, 0.05, 0.9], [0.9, 0.8, 0.9, 0.3, 0.05, 0.2]]
    series = series_of(p, correct=[[1, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0]])
    codes = difficulty(series, ambiguous=0.4)  # of five learnable ones, two
    assert [BINS[code] for code in codes] == ["easy", "easy", "ambiguous", "hard", "unlearnable", "ambiguous"]


def test_difficulty_gives_every_sample_one_bin_of_the_size_asked_for():
    series = random_series()
    codes = difficulty(series)
    found = data_map(series)
    never = found.correctness < 0.1
    assert ((codes == BINS.index("unlearnable")) == never).all()
    ambiguous = codes == BINS.index("ambiguous")
    assert ambiguous.sum() == round((~never).sum() / 3)
    rest = ~never & ~ambiguous
    assert found.variability[ambiguous].min() >= found.variability[rest].max()
    assert (found.confidence[codes == BINS.index("easy")] >= 0.5).all()
    assert (found.confidence[codes == BINS.index("hard")] < 0.5).all()


def test_a_sample_that_was_never_seen_is_unlearnable():
    assert difficulty(series_of([[None, 0.9]])).tolist() == [BINS.index("unlearnable"), BINS.index("easy")]


def test_by_bin_is_a_mean_a_bin():
    bins = np.array([0, 1, 1, 3])
    table = by_bin(bins, {"x": np.array([1.0, 2.0, 4.0, np.nan]), "y": np.array([True, False, True, True])})
    assert list(table) == list(BINS)
    assert table["ambiguous"] == {"samples": 2, "x": 3, "y": 0.5}
    assert table["hard"]["samples"] == 0
    assert math.isnan(table["hard"]["x"])
    assert math.isnan(table["unlearnable"]["x"])


def test_accuracy_by_bin_is_the_share_right_epoch_by_epoch():
    series, bins = hits("11 01 00 .1"), np.array([0, 0, 2, 2])
    found = accuracy_by_bin(series, bins)
    np.testing.assert_allclose(found, [[0.5, 1], [np.nan] * 2, [0, 0.5], [np.nan] * 2])


def test_sample_metrics_hold_every_look():
    series, clean, teacher = random_series(), random_series(seed=1), random_series(seed=2)
    metrics = sample_metrics(dynamics_of(series, clean=last_epochs(clean), teacher_adversarial=teacher))
    np.testing.assert_allclose(metrics["adversarial_probability"], series.probability[-6:].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(metrics["adversarial_loss"], series.loss[-6:].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(metrics["teacher_adversarial_mean_probability"], data_map(teacher).confidence)
    np.testing.assert_allclose(metrics["clean_correct"], clean.correct[-2:].mean(axis=0))
    assert not any(name.startswith("teacher_clean") for name in metrics)
    assert all(value.shape == (200,) for value in metrics.values())
    np.testing.assert_array_equal(metrics["forgetting"], forgetting_events(series))


def test_shift_compares_the_samples_that_both_have():
    baseline = dynamics_of(series_of([[0.2, 0.6, 0.9, 0.3]]), ids=[1, 2, 5, 7], labels=[0, 1, 1, 0])
    student = dynamics_of(series_of([[0.7, 0.8, 0.1, 0.4]]), ids=[2, 1, 5, 9], labels=[1, 0, 0, 0])
    found = shift(baseline, student)
    # 5 has another label (noise of another seed), 7 and 9 are alone.
    assert found.ids.tolist() == [1, 2]
    np.testing.assert_allclose(found.confidence, [0.8 - 0.2, 0.7 - 0.6], rtol=1e-6)
    np.testing.assert_allclose(found.variability, [0, 0], atol=1e-9)
    assert found.outcomes == {"both": 1, "only_student": 1, "only_baseline": 0, "neither": 0}


def test_robust_overfitting_reads_the_epochs_that_were_validated():
    lines = [
        {"epoch": e, "train_adversarial_accuracy": t} | ({} if h is None else {"validation_robust_accuracy": h})
        for e, t, h in ((1, 0.3, None), (2, 0.5, 0.4), (3, 0.7, 0.5), (4, 0.9, 0.42))
    ]
    found = robust_overfitting(lines)
    assert found.epochs.tolist() == [2, 3, 4]
    np.testing.assert_allclose(found.gap, [0.1, 0.2, 0.48])
    assert found.drop == pytest.approx(0.08)
    assert robust_overfitting(lines[:1]) is None


def test_noise_is_told_from_the_rest():
    series = random_series()
    flipped = np.random.default_rng(5).random(200) < 0.3
    found = noise_memorised(dynamics_of(series, flipped=flipped))
    np.testing.assert_allclose(found.flipped, series.correct[:, flipped].mean(axis=1))
    np.testing.assert_allclose(found.others, series.correct[:, ~flipped].mean(axis=1))
    known = series.correct[-6:, flipped].mean(axis=0) >= 0.5
    assert found.final == pytest.approx(known.mean())
    assert found.interval == wilson_interval(int(known.sum()), int(flipped.sum()))
    assert found.separation == pytest.approx(roc_auc_score(~flipped, series.margin.mean(axis=0)))
    assert noise_memorised(dynamics_of(series)) is None
    assert noise_memorised(dynamics_of(series, flipped=flipped), "clean") is None


def test_samples_that_were_never_seen_do_not_count_as_noise_or_not():
    series = hits("1111 0111 0001 0001 .... ....")
    found = noise_memorised(dynamics_of(series, flipped=[0, 0, 1, 1, 1, 0]))
    seen = noise_memorised(dynamics_of(hits("1111 0111 0001 0001"), flipped=[0, 0, 1, 1]))
    assert (found.num_flipped, found.final, found.interval, found.separation) == (2, 1, seen.interval, 1)
    assert (found.flipped.tolist(), found.others.tolist()) == (seen.flipped.tolist(), seen.others.tolist())
    assert noise_memorised(dynamics_of(series, flipped=[0, 0, 0, 0, 1, 1])) is None
    assert noise_memorised(dynamics_of(series, flipped=[1, 1, 1, 1, 0, 0])) is None


def test_a_memory_that_holds_every_flipped_label_is_seen_as_one():
    # Of six samples the last two are flipped: wrong for nine epochs, learned by heart in the end.
    series = hits("1111111111 0111111111 0011111111 0001111111 0000000001 0000000001")
    found = noise_memorised(dynamics_of(series, flipped=[0, 0, 0, 0, 1, 1]))
    assert found.final == 1
    assert found.separation == 1
    assert memorisation_proxy(series).argsort()[-2:].tolist() == [4, 5]


def test_an_evaluation_of_training_images_falls_into_bins_by_id():
    rng = np.random.default_rng(0)
    n, ids = 60, np.arange(100, 160)
    p = rng.dirichlet(np.ones(3), n).astype(np.float32)
    correct = p.argmax(axis=1) == np.arange(n) % 3
    robust = correct & (rng.random(n) < 0.5)
    records = Records(
        index=rng.permutation(ids),
        label=np.arange(n) % 3,
        clean_probabilities=p,
        adversarial_probabilities=p,
        robust=robust,
        broken_by=np.where(robust, ROBUST, np.where(correct, 0, WRONG_ON_CLEAN)).astype(np.int8),
        margin=np.zeros(n, np.float32),
        distance=np.zeros(n, np.float32),
        eps_grid=np.zeros(0, np.float32),
        robust_at_eps=np.zeros((n, 0), bool),
        stages=("pgd",),
        classes=("a", "b", "c"),
        conditions={},
    )
    bins = np.arange(60) % 3
    found = evaluation_by_bin(records, ids, bins)
    assert list(found) == ["easy", "ambiguous", "hard"]
    rows = np.isin(records.index, ids[bins == 1])
    assert found["ambiguous"]["num_images"] == 20
    assert found["ambiguous"]["robust_accuracy"] == pytest.approx(robust[rows].mean())
    # Ids that the reference run was not trained on are in no bin.
    assert evaluation_by_bin(records, ids[:10], bins[:10])["easy"]["num_images"] == 4
    every = evaluation_by_bin(records, ids, np.zeros(60, int))
    assert every == {"easy": summary(records)}
