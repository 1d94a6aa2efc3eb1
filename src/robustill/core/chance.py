"""Accuracies that are no better than guessing."""

from __future__ import annotations

import math

GUESSING = "no better than guessing"
"""Words of every warning about an accuracy at or near chance."""


def is_near_chance(num_correct: int, num_images: int, num_classes: int) -> bool:
    """Return whether an accuracy is that of guessing, p = 1/K, or close to it.

    That is at most p + 2√(p(1−p)/N), or twice as much as p where that is less than a tenth of the way from p to 1.

    Example:
        >>> is_near_chance(18, 100, 10), is_near_chance(30, 100, 10), is_near_chance(30, 100, 100)
        (True, False, False)
    """
    chance = 1 / num_classes
    by_chance = chance + 2 * math.sqrt(chance * (1 - chance) / num_images)
    return num_correct <= num_images * max(by_chance, min(2 * chance, chance + 0.1 * (1 - chance)))
