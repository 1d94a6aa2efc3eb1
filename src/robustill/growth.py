"""Adversaries that grow: a quantity as a function of the epoch alone."""

from __future__ import annotations


def grown(first: float, last: float, epoch: int, epochs: int, share: float) -> float:
    """A straight line from `first`, in the first epoch, to `last` over a share of the epochs; `last` from there on.

    first + (last − first)·min(1, epoch/(n−1)) with n = round(share·epochs).

    Args:
        first: in epoch 0.
        last: from epoch n − 1 on; at once where n is 0 or 1.
        epoch: counted from 0.
        epochs: how many there will be.
        share: of the epochs, in (0,1].

    Example:
        >>> [grown(0.0, 8.0, epoch, 10, 0.5) for epoch in (0, 1, 2, 4, 9)]
        [0.0, 2.0, 4.0, 8.0, 8.0]
    """
    rising = round(share * epochs) - 1
    if epoch >= rising:
        return last
    return first + (last - first) * epoch / rising
