"""Transfer matrix and similarity, compared with loops over the images and with SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy, spearmanr

from robustill.analysis.transfer import similarity, stronger_transfers, transfer_matrix


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    powers = np.exp(np.random.default_rng(seed).normal(size=shape))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_transfer_matrix_is_the_accuracy_of_each_target() -> None:
    adversarial, labels = drawn(3, 3, 50, 4), np.random.default_rng(1).integers(0, 4, 50)
    result = transfer_matrix(adversarial, labels)
    for source in range(3):
        for target in range(3):
            right = sum(adversarial[source, target, n].argmax() == labels[n] for n in range(50))
            assert result[source, target] == right / 50


def test_similarity_equals_scipy() -> None:
    first, second = drawn(80, 5), drawn(80, 5, seed=1)
    labels = np.arange(80) % 5
    result = similarity(first, second, labels)
    assert result.kl == pytest.approx(entropy(first, second, axis=1).mean())
    assert result.agreement == np.mean([a.argmax() == b.argmax() for a, b in zip(first, second, strict=True)])
    own = [each[np.arange(80), labels] for each in (first, second)]
    assert result.correlation.rho == pytest.approx(spearmanr(*own).statistic)
    assert similarity(first, first, labels).kl == pytest.approx(0, abs=1e-12)


def test_stronger_transfers_are_significant() -> None:
    labels = np.zeros(200, dtype=np.int64)
    right = np.zeros((2, 2, 200), dtype=bool)
    # The second is right on all of its own images, on half of those made against the first.
    right[1, 1], right[0, 1, ::2] = True, True
    # The first has two more right on its own: chance.
    right[0, 0, :102], right[1, 0, :100] = True, True
    adversarial = np.where(right[..., None], [0.9, 0.1], [0.1, 0.9])
    assert list(stronger_transfers(adversarial, labels)) == [(0, 1)]
