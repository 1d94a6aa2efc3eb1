"""Measures of a teacher against numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robustill.analysis.teacher_measures import (
    FEATURES,
    Baselines,
    entropy,
    features,
    measure,
    pairwise_disagreement,
    robustly_unlearnable,
)


def test_the_entropy_is_that_of_the_formula() -> None:
    p = np.array([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0]])
    # log 4; ½ log 2 + 2·¼ log 4; 0
    assert entropy(p) == pytest.approx([2 * math.log(2), 1.5 * math.log(2), 0.0])


def test_an_image_is_unlearnable_if_no_baseline_holds_it() -> None:
    robust = np.array(
        [
            [True, False, False, True, False],
            [False, False, True, True, False],
            [False, False, False, True, False],
        ]
    )
    assert robustly_unlearnable(robust).tolist() == [False, True, False, False, True]
    # One more baseline can only make the bin smaller.
    more = np.vstack([robust, [[False, True, False, False, False]]])
    assert robustly_unlearnable(more).tolist() == [False, False, False, False, True]


def test_the_measures_are_those_computed_by_hand() -> None:
    labels = np.array([0, 1, 0])
    sure, half = [1.0, 0.0], [0.5, 0.5]
    clean = np.array([sure, [0.0, 1.0], [0.2, 0.8]])
    adversarial = np.array([[0.9, 0.1], [0.6, 0.4], sure])
    transferred = np.array([[sure, half, [0.9, 0.1]], [half, [0.0, 1.0], [0.0, 1.0]]])
    unlearnable = np.array([False, True, False])
    found = measure(labels, clean, adversarial, transferred, unlearnable)
    assert found.clean_accuracy == pytest.approx(2 / 3)
    # The third image is wrong without an attack, and so not robust.
    assert found.robust_accuracy == pytest.approx(1 / 3)
    # A tie is the first class: right on the first image of the second attack, wrong on the second of the first.
    assert found.transfer_accuracy == pytest.approx(4 / 6)
    assert found.entropy_unlearnable == pytest.approx((1.0 + 0.0) / 2)
    assert found.confidence_unlearnable == pytest.approx((0.5 + 1.0) / 2)
    of_nine = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
    assert found.entropy_elsewhere == pytest.approx((0 + of_nine + 1 + 0) / 4)
    assert found.confidence_elsewhere == pytest.approx((1 + 0.9 + 0.5 + 1) / 4)
    # In bins of confidence: the third clean image is wrong with 0.8; of the attacks on the candidate 0.9 is right, 0.6
    # is wrong; of those on the baselines one of three with 1 is wrong, one of two with 0.5, and 0.9 is right.
    assert found.ece_clean == pytest.approx(0.8 / 3)
    assert found.ece_adversarial == pytest.approx((0.1 + 0.6) / 3)
    assert found.ece_transfer == pytest.approx((1 + 0 + 0.1) / 6)
    assert found.members_disagree is None
    baselines = Baselines(robust_accuracy=0.25, clean_accuracy=0.5, unlearnable=unlearnable)
    assert dict(zip(FEATURES, features(found, baselines), strict=True)) == pytest.approx(
        {
            "robust": 1 / 3 - 0.25,
            "transfer": 4 / 6 - 0.25,
            "ece_transfer": 1.1 / 6,
            "entropy_unlearnable": 0.5,
            "entropy_elsewhere": (of_nine + 1) / 4,
        }
    )


def test_without_unlearnable_images_their_entropy_is_unknown() -> None:
    p = np.array([[0.9, 0.1], [0.1, 0.9]])
    found = measure(np.array([0, 1]), p, p, p[None], np.array([False, False]))
    assert math.isnan(found.entropy_unlearnable)
    assert found.entropy_elsewhere > 0


def test_the_temperature_is_that_of_the_attacks_of_the_baselines() -> None:
    # Right on three of four with confidence 0.9: (log 9) / t = log 3.
    p = np.array([[0.9, 0.1]] * 4)
    labels = np.array([0, 0, 0, 1])
    found = measure(labels, p, p, p[None], np.array([True, False, False, False]))
    assert found.temperature == pytest.approx(math.log(9) / math.log(3), rel=1e-3)


def test_the_features_are_differences_to_the_baselines_and_have_no_unit() -> None:
    p = np.array([[0.9, 0.1], [0.1, 0.9]])
    found = measure(np.array([0, 1]), p, p, p[None], np.array([True, False]))
    baselines = Baselines(robust_accuracy=0.25, clean_accuracy=0.5, unlearnable=np.array([True, False]))
    x = dict(zip(FEATURES, features(found, baselines), strict=True))
    assert x["robust"] == pytest.approx(0.75)
    assert x["transfer"] == pytest.approx(0.75)
    assert x["ece_transfer"] == pytest.approx(0.1)
    assert x["entropy_unlearnable"] == pytest.approx(x["entropy_elsewhere"])


def test_the_disagreement_of_pairs_is_symmetric_and_counts_images() -> None:
    top = np.array([[[0, 1, 2, 2]], [[0, 1, 2, 0]], [[1, 0, 0, 0]]])
    found = pairwise_disagreement(top)
    assert found.tolist() == [[0, 0.25, 1], [0.25, 0, 0.75], [1, 0.75, 0]]
