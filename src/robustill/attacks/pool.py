"""Many searches in one batch: each leaves at its first confirmed success, and the next one takes its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from robustill.attacks.search import Search


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


R = TypeVar("R", bound=Rows)
# A batch is filled up once this share of it is free: joining tensors for every single search would cost more.
_REFILL = 0.25


class Attack(Protocol[R]):
    """An attack that advances many searches by one step each."""

    length: int
    """Steps of a search."""

    def start(self, image: Tensor, variant: Tensor, x: Tensor, y: Tensor) -> R:
        """New searches: for the variant (a restart or a target) of each image x [R,C,H,W] with label y [R]."""
        ...

    def advance(self, rows: R) -> Reached:
        """One step of each search."""
        ...


@dataclass
class Found:
    """What the searches of one stage came to, one entry an image.

    Args:
        broken: a success was confirmed, bool [M].
        x_adv: the confirmed success; elsewhere the clean image, [M,C,H,W].
        margin: of x_adv by the real model where broken, else the largest that a search saw inside the threat, [M].
    """

    broken: Tensor
    x_adv: Tensor
    margin: Tensor


def run_pool(
    attack: Attack[R],
    search: Search,
    x: Tensor,
    y: Tensor,
    *,
    num_variants: int,
    batch_size: int,
    on_done: Callable[[Tensor, Found], None],
) -> Found:
    """Search around every image, with every variant until one succeeds.

    Args:
        attack: what a search does.
        search: confirms successes.
        x: clean images, [M,C,H,W].
        y: labels, [M].
        num_variants: searches an image.
        batch_size: searches side by side, rounded to whole images.
        on_done: called with the images that are decided, after each step that decided some.
    """
    lowest = torch.full_like(y, -torch.inf, dtype=torch.float32)
    found = Found(torch.zeros_like(y, dtype=torch.bool), x.clone(), lowest)
    room_for = max(1, batch_size // num_variants)
    waiting = torch.arange(len(x), device=x.device)
    live: R | None = None
    while True:
        room = room_for - (len(live) // num_variants if live is not None else 0)
        if len(waiting) and room >= _REFILL * room_for:
            fresh = _started(attack, waiting[:room], num_variants, x, y)
            live = fresh if live is None else live.join(fresh)
            waiting = waiting[room:]
        if live is None or not len(live):
            return found
        reached = attack.advance(live)
        newly = _confirmed(search, live.image, reached, x, y, found)
        live.age += 1
        ended = live.age >= attack.length
        if newly.any() or ended.any():
            # All searches of an image began together, so they end together.
            exhausted = torch.unique(live.image[ended & ~found.broken[live.image]])
            live = live.pick(~ended & ~found.broken[live.image])
            on_done(torch.cat([newly.nonzero().squeeze(1), exhausted]), found)


def _started(attack: Attack[R], images: Tensor, num_variants: int, x: Tensor, y: Tensor) -> R:
    # All variants of an image start together: then which success comes first depends on no other image.
    image = images.repeat_interleave(num_variants)
    variant = torch.arange(num_variants, device=image.device).repeat(len(images))
    return attack.start(image, variant, x[image].contiguous(memory_format=torch.channels_last), y[image])


def _confirmed(search: Search, image: Tensor, reached: Reached, x: Tensor, y: Tensor, found: Found) -> Tensor:
    """Write confirmed successes into `found`; the images newly broken, bool [M]."""
    newly = torch.zeros_like(found.broken)
    # Rounding may put an unconfirmed point beyond the boundary, but a robust image's margin is not positive.
    found.margin.scatter_reduce_(0, image, reached.margins.clamp(max=0), reduce="amax")
    rows = reached.candidates.nonzero().squeeze(1)
    if not len(rows):
        return newly
    sources = image[rows]
    points = reached.points[rows]
    success, margins = search.confirm(points, x[sources], y[sources])
    # From the last row to the first, so that of several successes on one image the earliest variant's stays.
    for row in success.nonzero().squeeze(1).flip(0).tolist():
        source = int(sources[row])
        newly[source] = True
        found.x_adv[source] = points[row]
        found.margin[source] = margins[row]
    found.broken |= newly
    return newly
