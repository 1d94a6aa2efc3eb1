"""Splits of a data set: a validation part, a balanced subset, random folds and label noise, all from a seed.

`in_hashed_fifth` is the split of a data set that comes without test images: a function of the names of the images.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from robustill.core.errors import DataError
from robustill.core.randomness import generator


def holdout(labels: Tensor, count_or_fraction: int | float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split off a stratified validation part.

    Every class contributes in proportion to its size; the classes with the largest remainders are rounded up.

    Args:
        labels: int64 [N].
        count_or_fraction: an int is a number of images in [0, N), a float a fraction in [0, 1).
        seed: the split is a function of labels, size and seed.

    Returns:
        (train ids, validation ids): int64, ascending, disjoint, together 0..N-1.

    Raises:
        DataError: the size is negative, or no image would be left for training.

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
    counts = quotas // N
    # A stable sort, so that of equal remainders the lower class comes first on every machine.
    by_remainder = torch.argsort(quotas % N, descending=True, stable=True)
    counts[by_remainder[: count - int(counts.sum())]] += 1
    validation = torch.zeros(N, dtype=torch.bool)
    validation[_rank_in_class(labels, seed, "holdout") < counts[labels]] = True
    return torch.nonzero(~validation).flatten(), torch.nonzero(validation).flatten()


def stratified_subset(labels: Tensor, count: int, *, seed: int) -> Tensor:
    """Choose `count` images with class sizes as equal as possible.

    A smaller subset is contained in a larger one of the same seed. A class with too few images contributes all of them.

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
    """Return one part of a random partition whose parts differ in size by at most one, also within each class.

    Args:
        labels: int64 [N].
        fold: the folds 0 to `folds` − 1 are one partition, the next `folds` an independent one, and so on.
        folds: the number of parts of a partition, at least 2.
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
    # Each class continues where the previous one ends, so that the folds have equal sizes over all classes, too.
    begin = sizes.cumsum(0) - sizes
    return (_rank_in_class(labels, seed, f"partition {partition}") + begin[labels]) % folds == part


def flip_labels(labels: Tensor, fraction: float, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Add symmetric label noise: an exact share of the labels changes to another class, all equally likely.

    Args:
        labels: int64 [N].
        fraction: the share of wrong labels, in [0, 1]; their number is round(fraction·N).
        num_classes: K ≥ 2.
        seed: the noise is a function of labels, fraction and seed.

    Returns:
        (labels with noise [N], ids of the wrong labels, ascending).

    Raises:
        DataError: the fraction is outside [0, 1], or there are fewer than two classes.
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


def in_hashed_fifth(names: Sequence[str]) -> list[bool]:
    """Return which images of one class are for testing: a fifth, those with the smallest SHA-256 of their names.

    Args:
        names: the names of two images or more, of which one at least is for testing and one is not.

    Example:
        >>> in_hashed_fifth(["cat/1.png", "cat/2.png", "cat/3.png"])
        [False, False, True]
    """
    # Some systems store an accented letter as two characters.
    digests = [
        hashlib.sha256(unicodedata.normalize("NFC", name).encode(errors="surrogateescape")).digest() for name in names
    ]
    count = max(1, (len(names) + 2) // 5)
    chosen = set(sorted(range(len(names)), key=digests.__getitem__)[:count])
    return [number in chosen for number in range(len(names))]


def _rank_in_class(labels: Tensor, seed: int, purpose: str) -> Tensor:
    """Return the rank of each image in a random order of its class, [N]."""
    rank = torch.empty(len(labels), dtype=torch.int64)
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).flatten()
        rank[members] = torch.randperm(len(members), generator=generator(seed, purpose, label))
    return rank
