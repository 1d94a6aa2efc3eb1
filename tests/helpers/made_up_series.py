"""Made-up training dynamics."""

import numpy as np

from robustill.runs.dynamics import Dynamics, Series


def series_of(p, correct=None, epochs=None, margin=None):
    """Return a series with these probabilities [E][N], None where there is no record; by default correct above 1/2."""
    p = np.array([[np.nan if each is None else each for each in row] for row in p], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = -np.log(p)
        margin = np.log(p) - np.log(1 - p) if margin is None else np.array(margin, float)
        right = p > 0.5 if correct is None else np.array(correct, bool)
    epochs = np.arange(1, len(p) + 1) if epochs is None else np.array(epochs)
    return Series(epochs=epochs, loss=loss.astype(np.float32), margin=margin.astype(np.float32), correct=right)


def hits(text):
    """Return a series from text, one word a sample and one letter an epoch: 1 correct, 0 wrong, . no record."""
    rows = list(zip(*text.split(), strict=True))
    p = [[None if each == "." else 0.9 if each == "1" else 0.1 for each in row] for row in rows]
    return series_of(p)


def random_series(E=30, N=200, seed=0):
    """Return a series of samples of random difficulty whose probabilities rise over the epochs."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=N) * 2
    z = ease + np.linspace(-2, 2, E)[:, None] + rng.normal(size=(E, N))
    return series_of(1 / (1 + np.exp(-z)))


def dynamics_of(series, ids=None, labels=None, flipped=None, **looks):
    """Return dynamics with this series of adversarial images; other series by keyword."""
    n = series.loss.shape[1]
    return Dynamics(
        ids=np.arange(n) if ids is None else np.array(ids),
        labels=np.zeros(n, int) if labels is None else np.array(labels),
        flipped=np.zeros(n, bool) if flipped is None else np.array(flipped, bool),
        num_epochs=len(series.epochs),
        adversarial=series,
        **looks,
    )
