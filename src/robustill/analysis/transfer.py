"""Transfer of adversarial images between networks, and the similarity of two networks' predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.statistics import Correlation, agreement, correlation, mean_kl, paired_difference

Array = NDArray[Any]


def transfer_matrix(adversarial: Array, labels: Array) -> Array:
    """Return the accuracy of each target network (columns) on the images made against each source network (rows).

    The diagonal is each network's accuracy under its own attack; off it, the attack did not use the target.

    Args:
        adversarial: probabilities [S,T,N,K] that target t gives the adversarial image of n made against source s.
        labels: int [N].

    Returns:
        float64 [S,T].

    Example:
        >>> first, second = [[0.9, 0.1]], [[0.2, 0.8]]     # one image of class 1, two networks
        >>> transfer_matrix(np.array([[first, second], [second, second]]), np.array([1]))
        array([[0., 1.],
               [1., 1.]])

    Reference: Papernot et al. 2016, Transferability in machine learning, section 3.
    """
    accuracy: Array = (adversarial.argmax(axis=3) == labels).mean(axis=2)
    return accuracy


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Similarity of the predictions of two networks on the same images."""

    agreement: float
    """share of images for which they predict the same class"""
    kl: float
    """mean of KL(first ‖ second), in nats"""
    correlation: Correlation
    """rank correlation of their probabilities of the label"""


def similarity(first: Array, second: Array, labels: Array) -> Similarity:
    """Compare the predictions of two networks on the same images.

    Args:
        first: probabilities of the first network, such as a teacher, [N,K].
        second: probabilities of the second, such as its student, [N,K].
        labels: int [N].
    """
    rows = np.arange(len(labels))
    return Similarity(
        agreement=agreement(first, second),
        kl=mean_kl(first, second),
        correlation=correlation(first[rows, labels], second[rows, labels]),
    )


def stronger_transfers(adversarial: Array, labels: Array) -> Iterator[tuple[int, int]]:
    """Yield the pairs (source, target) whose transfer is stronger, beyond noise, than the attack on the target itself.

    An attack that uses the target's gradient should be stronger; where it is not, the gradient may be masked.

    Args:
        adversarial: as for `transfer_matrix`, with the same networks in the same order as sources and targets.
        labels: int [N].

    Reference: Athalye et al. 2018, Obfuscated gradients give a false sense of security, section 3.1.
    """
    correct = adversarial.argmax(axis=3) == labels
    for source, target in np.ndindex(correct.shape[:2]):
        if source != target:
            comparison = paired_difference(correct[target, target], correct[source, target])
            if comparison.significant and comparison.difference > 0:
                yield source, target
