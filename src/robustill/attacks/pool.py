"""Run many searches in one batch, which each leaves at its first confirmed success to make room for the next image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from robustill.attacks.search import Search


@dataclass
class Rows:
    """The state of R searches; every field of a subclass is a tensor with one entry a search.

    Args:
        image: index of the image of each search, int64 [R].
        age: number of steps made, int64 [R].
    """

    image: Tensor
    age: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def select(self, index: Tensor) -> Self:
        """Return the searches of an index or a mask."""
        return type(self)(**{each.name: getattr(self, each.name)[index] for each in fields(self)})

    def concat(self, other: Self) -> Self:
        """Return these searches, followed by the others."""
        both = {each.name: torch.cat([getattr(self, each.name), getattr(other, each.name)]) for each in fields(self)}
        return type(self)(**both)


@dataclass
class StepResult:
    """The points that one step of an attack evaluated.

    Args:
        points: images, [R,C,H,W].
        margins: of the points, by the model that the search uses, [R]; positive where misclassified.
        candidates: points that may be successes, for the model itself to confirm, bool [R].
    """

    points: Tensor
    margins: Tensor
    candidates: Tensor


def column(values: Tensor) -> Tensor:
    """[R] -> [R,1,1,1], to broadcast over images."""
    return values[:, None, None, None]


R = TypeVar("R", bound=Rows)
# A batch is refilled once this share of it is free: concatenating tensors for every single search would cost more.
_REFILL = 0.25


class Attack(Protocol[R]):
    """An attack that advances many searches by one step each."""

    length: int
    """Steps of a search."""

    def start(self, image: Tensor, variant: Tensor, x: Tensor, y: Tensor) -> R:
        """Start searches around images x [R,C,H,W] with labels y [R], each for one variant: a restart or a target."""
        ...

    def advance(self, rows: R) -> StepResult:
        """Make one step of each search."""
        ...


@dataclass
class SearchResult:
    """What the searches of one attack found, one entry an image.

    Args:
        broken: whether a success was confirmed, bool [M].
        x_adv: the confirmed success; elsewhere the clean image, [M,C,H,W].
        margin: of x_adv by the model itself where broken, else the largest found inside the threat, [M].
    """

    broken: Tensor
    x_adv: Tensor
    margin: Tensor

    @classmethod
    def initial(cls, x: Tensor) -> SearchResult:
        """Return the result before the first step, for clean images x."""
        broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return cls(broken, x.clone(), torch.full((len(x),), -torch.inf, dtype=torch.float32, device=x.device))


def run_pool(
    attack: Attack[R],
    search: Search,
    x: Tensor,
    y: Tensor,
    *,
    num_variants: int,
    batch_size: int,
    on_decided: Callable[[Tensor, SearchResult], None],
) -> SearchResult:
    """Search around every image, with all variants until one of them succeeds.

    Args:
        attack: makes the steps of a search.
        search: confirms successes.
        x: clean images, [M,C,H,W].
        y: labels, [M].
        num_variants: searches an image.
        batch_size: searches in a batch, rounded to whole images.
        on_decided: called after each step that decided some images, with their indices and the result so far.
    """
    result = SearchResult.initial(x)
    images_in_batch = max(1, batch_size // num_variants)
    waiting = torch.arange(len(x), device=x.device)
    live: R | None = None
    while True:
        num_live = len(live) // num_variants if live is not None else 0
        free = images_in_batch - num_live
        if len(waiting) and free >= _REFILL * images_in_batch:
            started = _start_searches(attack, waiting[:free], num_variants, x, y)
            live = started if live is None else live.concat(started)
            waiting = waiting[free:]
        if live is None or not len(live):
            return result
        step = attack.advance(live)
        newly_broken = _confirm(search, live.image, step, x, y, result)
        live.age += 1
        ended = live.age >= attack.length
        if newly_broken.any() or ended.any():
            # All searches of an image started together, so they end together.
            exhausted = torch.unique(live.image[ended & ~result.broken[live.image]])
            live = live.select(~ended & ~result.broken[live.image])
            on_decided(torch.cat([newly_broken.nonzero().squeeze(1), exhausted]), result)


def _start_searches(attack: Attack[R], images: Tensor, num_variants: int, x: Tensor, y: Tensor) -> R:
    # All variants of an image start together: which success comes first then depends on no other image.
    image = images.repeat_interleave(num_variants)
    variant = torch.arange(num_variants, device=image.device).repeat(len(images))
    return attack.start(image, variant, x[image].contiguous(memory_format=torch.channels_last), y[image])


def _confirm(search: Search, image: Tensor, step: StepResult, x: Tensor, y: Tensor, result: SearchResult) -> Tensor:
    """Write confirmed successes into `result`, and return the images that they newly break, bool [M]."""
    newly_broken = torch.zeros_like(result.broken)
    # Rounding may put an unconfirmed point beyond the boundary, but the margin of a robust image is not positive.
    result.margin.scatter_reduce_(0, image, step.margins.clamp(max=0), reduce="amax")
    rows = step.candidates.nonzero().squeeze(1)
    if not len(rows):
        return newly_broken
    sources = image[rows]
    points = step.points[rows]
    success, margins = search.confirm(points, x[sources], y[sources])
    # From the last row to the first, so that of several successes on one image the earliest variant's remains.
    for row in success.nonzero().squeeze(1).flip(0).tolist():
        source = int(sources[row])
        newly_broken[source] = True
        result.x_adv[source] = points[row]
        result.margin[source] = margins[row]
    result.broken |= newly_broken
    return newly_broken
