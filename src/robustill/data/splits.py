"""Which images: a held-out part, a balanced subset, a part with wrong labels; functions of the seed alone."""

from __future__ import annotations

import torch
from torch import Tensor

from robustill.core.errors import DataError
from robustill.core.randomness import generator


def holdout(labels: Tensor, count_or_fraction: int | float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Set apart a stratified part for validation.

    Every class gives in proportion to its size; what rounding leaves over goes to the largest remainders.

    Args:
        labels: int64 [N].
        count_or_fraction: an int is a number of images in [0, N), a float a fraction in [0, 1).
        seed: the split is a function of labels, size and seed.

    Returns:
        (train ids, validation ids): int64, ascending, disjoint, together 0..N-1.

    Raises:
        DataError: nothing would be left for training, or a negative size.

    Example:
        >>> train, validation = holdout(torch.tensor([0, 0, 0, 0, 1, 1]), 3, seed=0)
        >>> torch.tensor([0, 0, 0, 0, 1, 1])[validation]
        tensor([0, 0, 1])
    """
    N = len(labels)
    fraction = isinstance(count_or_fraction, float)
    if not 0 <= count_or_fraction < (1 if fraction else N):
        expected = "a fraction in [0, 1)" if fraction else f"a count from 0 to {N - 1}"
        raise DataError(f"cannot hold out {count_or_fraction} of {N} images: expected {expected}")
    count = round(count_or_fraction * N) if fraction else int(count_or_fraction)
    sizes = torch.bincount(labels)
    quotas = sizes * count
    taken = quotas // N
    # Stable: of equal remainders the lower class is served first, on every machine.
    by_remainder = torch.argsort(quotas % N, descending=True, stable=True)
    taken[by_remainder[: count - int(taken.sum())]] += 1
    held = torch.zeros(N, dtype=torch.bool)
    held[_rank_in_class(labels, seed, "holdout") < taken[labels]] = True
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def stratified_subset(labels: Tensor, count: int, *, seed: int) -> Tensor:
    """`count` images, the classes as equal in number as they can be.

    A smaller subset of the same seed lies inside a larger one. A class that runs out gives all it has.

    Args:
        labels: int64 [N].
        count: in [1, N].
        seed: the subset is a function of labels, count and seed.

    Returns:
        Ids, int64 [count], ascending.

    Raises:
        DataError: `count` is not in [1, N].
    """
    N = len(labels)
    if not 1 <= count <= N:
        raise DataError(f"cannot take a subset of {count} images: expected 1 to {N}")
    rank = _rank_in_class(labels, seed, "subset")
    # Round r takes the r-th image of every class; inside a round the order is random, not by class.
    shuffled = torch.randperm(N, generator=generator(seed, "subset", "round"))
    chosen = shuffled[torch.argsort(rank[shuffled], stable=True)[:count]]
    return chosen.sort().values


def random_fold(labels: Tensor, fold: int, folds: int, *, seed: int) -> Tensor:
    """One part of a random partition into parts whose sizes, also within a class, differ by at most one.

    Args:
        labels: int64 [N].
        fold: folds 0 to `folds` − 1 are one partition, the next `folds` another one, drawn anew, and so on.
        folds: parts of a partition, at least 2.
        seed: the partitions are a function of labels, folds and seed.

    Returns:
        Whether each image is in the fold, bool [N].

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])
        >>> sum(random_fold(labels, fold, 3, seed=0).long() for fold in (3, 4, 5))
        tensor([1, 1, 1, 1, 1, 1])
    """
    partition, part = divmod(fold, folds)
    sizes = torch.bincount(labels)
    # Each class goes on where the one before it stopped.
    begin = sizes.cumsum(0) - sizes
    return (_rank_in_class(labels, seed, f"partition {partition}") + begin[labels]) % folds == part


def flip_labels(labels: Tensor, fraction: float, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Symmetric label noise: an exact share of the labels moves to another class, each equally likely.

    Args:
        labels: int64 [N].
        fraction: of the labels that become wrong, in [0, 1]; round(fraction·N) of them do.
        num_classes: K ≥ 2.
        seed: the noise is a function of it.

    Returns:
        (labels with noise [N], ids that were flipped, ascending).

    Raises:
        DataError: a fraction outside [0, 1] or fewer than two classes.
    """
    if not 0 <= fraction <= 1:
        raise DataError(f"cannot flip a fraction of {fraction} of the labels: expected [0, 1]")
    if num_classes < 2:
        raise DataError(f"label noise needs 2 classes or more, found {num_classes}")
    draws = generator(seed, "label noise")
    flipped = torch.randperm(len(labels), generator=draws)[: round(fraction * len(labels))].sort().values
    offset = torch.randint(1, num_classes, flipped.shape, generator=draws)
    noisy = labels.clone()
    noisy[flipped] = (labels[flipped] + offset) % num_classes
    return noisy, flipped


def _rank_in_class(labels: Tensor, seed: int, purpose: str) -> Tensor:
    """The place of each image in a random order of its class, [N]."""
    rank = torch.empty(len(labels), dtype=torch.int64)
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).flatten()
        rank[members] = torch.randperm(len(members), generator=generator(seed, purpose, label))
    return rank
