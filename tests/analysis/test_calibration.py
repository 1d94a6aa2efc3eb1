import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from robustill.analysis.calibration import (
    adaptive_ece,
    apply_temperature,
    brier,
    calibration,
    classwise_ece,
    ece,
    fit_temperature,
    nll,
    overconfidence,
    reliability,
    temperature_scaling,
)


def predictions(n: int = 400, classes: int = 10, sharpness: float = 2.0, seed: int = 0):
    """Labels drawn from softmax(z), probabilities softmax(sharpness · z): overconfident where sharpness > 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 1.5
    powers = np.exp(logits)
    truth = powers / powers.sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in truth])
    powers = np.exp(sharpness * logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("bins", [1, 7, 15, 50])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_ece_equals_torchmetrics(bins, classes):
    probabilities, labels = predictions(classes=classes)
    oracle = MulticlassCalibrationError(num_classes=classes, n_bins=bins, norm="l1")
    expected = oracle(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert ece(probabilities, labels, bins) == pytest.approx(float(expected), abs=1e-6)


def test_ece_treats_bin_edges_as_torchmetrics_does():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0], [0.55, 0.45, 0.0], [0.75, 0.25, 0.0]], np.float32)
    labels = np.array([0, 1, 0, 1])
    oracle = MulticlassCalibrationError(num_classes=3, n_bins=4, norm="l1")
    expected = float(oracle(torch.from_numpy(probabilities), torch.from_numpy(labels)))
    assert ece(probabilities, labels, 4) == pytest.approx(expected, abs=1e-7)


def test_ece_by_hand():
    assert ece(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])) == pytest.approx(0.3)
    # 0.25 · |1 − 1| + 0.75 · |1/3 − 1|: all of confidence 1, one right in four would be 0.75
    assert ece(np.eye(4), np.array([0, 0, 0, 0])) == pytest.approx(0.75)


def test_reliability_counts_every_sample_once():
    probabilities, labels = predictions()
    probabilities[0] = np.eye(10)[3]
    diagram = reliability(probabilities, labels, bins=10)
    assert diagram.count.sum() == len(labels)
    assert diagram.count[-1] == (probabilities.max(axis=1) >= diagram.edges[-2]).sum()
    filled = diagram.count > 0
    right = (diagram.accuracy[filled] * diagram.count[filled]).sum()
    assert right == pytest.approx((probabilities.argmax(axis=1) == labels).sum())
    assert np.isnan(diagram.accuracy[~filled]).all()
    assert diagram.ece == ece(probabilities, labels, bins=10)


def test_adaptive_ece_is_the_mean_gap_of_equal_slices():
    probabilities, labels = predictions(n=300)
    order = np.argsort(probabilities.max(axis=1))
    slices = order.reshape(15, 20)
    confidence = probabilities.max(axis=1).astype(np.float64)[slices].mean(axis=1)
    accuracy = (probabilities.argmax(axis=1) == labels)[slices].mean(axis=1)
    assert adaptive_ece(probabilities, labels) == pytest.approx(np.abs(confidence - accuracy).mean())


def test_adaptive_ece_ignores_the_order_of_rows_with_ties():
    probabilities = np.repeat([[0.7, 0.3]], 60, axis=0)
    labels = np.arange(60) % 2
    shuffled = np.random.default_rng(0).permutation(labels)
    assert adaptive_ece(probabilities, labels) == pytest.approx(0.2)
    assert adaptive_ece(probabilities, shuffled) == pytest.approx(0.2)


def test_classwise_ece_is_the_mean_of_binary_errors():
    probabilities, labels = predictions(classes=4)
    errors = []
    for k in range(4):
        p, hit = probabilities[:, k].astype(np.float64), labels == k
        bin_of = np.minimum((p * 15).astype(int), 14)
        errors.append(sum(abs((p - hit)[bin_of == b].sum()) for b in range(15)) / len(p))
    assert classwise_ece(probabilities, labels) == pytest.approx(np.mean(errors))


def test_nll_and_brier_equal_their_definitions():
    probabilities, labels = predictions()
    tensor, target = torch.from_numpy(probabilities).double(), torch.from_numpy(labels)
    assert nll(probabilities, labels) == pytest.approx(float(torch.nn.functional.nll_loss(tensor.log(), target)))
    onehot = torch.nn.functional.one_hot(target, 10)
    assert brier(probabilities, labels) == pytest.approx(float((tensor - onehot).square().sum(1).mean()))


def test_nll_of_a_zero_probability_is_finite():
    assert nll(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(126 * math.log(2))


def test_overconfidence_has_the_right_sign():
    assert overconfidence(*predictions(sharpness=3.0)) > 0.1
    assert overconfidence(*predictions(sharpness=0.3)) < -0.1
    assert overconfidence(np.array([[0.9, 0.1]]), np.array([1])) == pytest.approx(0.9)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_temperature_undoes_a_sharpening(sharpness):
    probabilities, labels = predictions(n=20_000, sharpness=sharpness)
    t = fit_temperature(probabilities, labels)
    assert t == pytest.approx(sharpness, rel=0.05)
    assert ece(apply_temperature(probabilities, t), labels) < 0.02


def test_temperature_is_the_minimum_of_nll():
    probabilities, labels = predictions()
    t = fit_temperature(probabilities, labels)
    best = nll(apply_temperature(probabilities, t), labels)
    grid = [nll(apply_temperature(probabilities, each), labels) for each in np.linspace(0.5, 4, 2001)]
    assert best <= min(grid) + 1e-12


def test_temperature_of_a_perfect_model_is_the_smallest():
    assert fit_temperature(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_overconfidence_and_underconfidence_add_up_to_the_ece(sharpness):
    probabilities, labels = predictions(sharpness=sharpness)
    diagram = reliability(probabilities, labels)
    assert diagram.overconfidence_error + diagram.underconfidence_error == pytest.approx(ece(probabilities, labels))
    # Their difference is the signed gap, for the bins add up to it.
    assert diagram.overconfidence_error - diagram.underconfidence_error == pytest.approx(
        overconfidence(probabilities, labels)
    )


def test_overconfidence_and_underconfidence_by_hand():
    # Ten at 0.9 with 6 right, ten at 0.6 with 8 right: half of 0.3 and half of 0.2.
    probabilities = np.repeat([[0.9, 0.1], [0.6, 0.4]], 10, axis=0)
    labels = np.array([0] * 6 + [1] * 4 + [0] * 8 + [1] * 2)
    diagram = reliability(probabilities, labels)
    assert (diagram.overconfidence_error, diagram.underconfidence_error) == pytest.approx((0.15, 0.1))


def test_temperature_scaling_fits_on_one_part_only():
    held_out, reported = predictions(n=20_000, sharpness=3.0), predictions(n=5000, sharpness=3.0, seed=1)
    result = temperature_scaling(held_out, reported)
    assert result.temperature == fit_temperature(*held_out)
    assert result.before == calibration(*reported)
    assert result.after["ece"] == ece(apply_temperature(reported[0], result.temperature), reported[1])
    assert result.after["ece"] < 0.03 < result.before["ece"]
    assert result.after["nll"] < result.before["nll"]


def test_calibration_returns_every_measure_by_name():
    result = calibration(*predictions())
    assert result["classwise_ece"] == classwise_ece(*predictions())
    assert result["adaptive_ece"] == adaptive_ece(*predictions())
    assert result["brier"] == brier(*predictions())
    assert result["nll"] == nll(*predictions())
    assert result["overconfidence"] == overconfidence(*predictions())
