"""What an attack remembers of each search it is running: tensors whose first dimension is the search."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass
class Rows:
    """Searches side by side; every field of a subclass is a tensor with one entry a search.

    Args:
        image: which image each search is about, int64 [R].
        age: how often it was advanced, int64 [R].
    """

    image: Tensor
    age: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def pick(self, index: Tensor) -> Self:
        """The searches that an index or a mask names."""
        return type(self)(**{each.name: getattr(self, each.name)[index] for each in fields(self)})

    def join(self, other: Self) -> Self:
        """These searches, then the others."""
        both = {each.name: torch.cat([getattr(self, each.name), getattr(other, each.name)]) for each in fields(self)}
        return type(self)(**both)


@dataclass
class Reached:
    """Where one step of an attack led.

    Args:
        points: images, [R,C,H,W].
        margins: of the points, as the search sees them, [R]; positive where misclassified.
        candidates: the points that may be successes and are to be put to the real model, bool [R].
    """

    points: Tensor
    margins: Tensor
    candidates: Tensor


def column(values: Tensor) -> Tensor:
    """[R] -> [R,1,1,1], to meet images."""
    return values[:, None, None, None]
