"""What adversarial images made against one network do to another, and how alike two networks answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.statistics import Correlation, agreement, correlation, mean_kl, paired_difference

Array = NDArray[Any]


def transfer_matrix(adversarial: Array, labels: Array) -> Array:
    """Accuracy of each network on the images made against each: source along the rows, target along the columns.

    The diagonal is what each holds against its own attack; a target off it knows nothing of being attacked.

    Args:
        adversarial: probabilities, [S,T,N,K]: of target t for the image n that was made against source s.
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
    right: Array = (adversarial.argmax(axis=3) == labels).mean(axis=2)
    return right


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Of two networks on the same images."""

    agreement: float
    """share of images of which they predict the same class"""
    kl: float
    """mean of KL(first ‖ second), in nats"""
    correlation: Correlation
    """of the ranks of their probabilities of the label"""


def likeness(first: Array, second: Array, labels: Array) -> Likeness:
    """How alike two networks answer.

    Args:
        first: probabilities of a teacher, say, [N,K].
        second: of its student, [N,K].
        labels: int [N].
    """
    rows = np.arange(len(labels))
    return Likeness(
        agreement=agreement(first, second),
        kl=mean_kl(first, second),
        correlation=correlation(first[rows, labels], second[rows, labels]),
    )


def fooled_by_others(adversarial: Array, labels: Array) -> Iterator[tuple[int, int]]:
    """Pairs (source, target) where the target is right less often, beyond noise, on the source's images than its own.

    An attack that sees the target should be the stronger one: where it is not, the target's gradient may be masked.

    Args:
        adversarial: as for `transfer_matrix`, with the same networks in the same order as sources and targets.
        labels: int [N].

    Reference: Athalye et al. 2018, Obfuscated gradients give a false sense of security, section 3.1.
    """
    right = adversarial.argmax(axis=3) == labels
    for source, target in np.ndindex(right.shape[:2]):
        if source != target:
            found = paired_difference(right[target, target], right[source, target])
            if found.significant and found.difference > 0:
                yield source, target
