"""Searches side by side, against what each image's own script says."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from robustill.attacks.pool import Rows, StepResult, run_pool
from robustill.attacks.search import Search
from robustill.losses import margin
from robustill.threat import Threat

NEVER = 99
LENGTH = 3
# By image and variant: the step at which a search succeeds. The third image's first success is a later variant's; in
# the fifth, two succeed at once.
SCRIPT = torch.tensor([[NEVER, NEVER], [0, 0], [2, 1], [NEVER, 2], [1, 1], [NEVER, NEVER], [NEVER, 0], [2, NEVER]])


def bright(x):
    """Class 1 where the pixel is above a half."""
    return torch.stack([torch.full((len(x),), 0.5), x[:, 0, 0, 0]], dim=1)


@dataclass
class ScriptedRows(Rows):
    variant: torch.Tensor


class Scripted:
    """Searches whose points are 0.6 + variant / 100 where they succeed, else 0.1 + age / 10 + variant / 100."""

    length = LENGTH

    def __init__(self, search):
        self.search, self.started, self.sizes = search, [], []

    def start(self, image, variant, x, y):
        assert x.shape == (len(image), 1, 1, 1)
        assert torch.equal(y, torch.zeros_like(image))
        self.started.append((len(self.sizes), image.tolist(), variant.tolist()))
        return ScriptedRows(image=image, age=torch.zeros_like(image), variant=variant)

    def advance(self, rows):
        self.sizes.append(len(rows))
        succeeds = rows.age == SCRIPT[rows.image, rows.variant]
        points = (torch.where(succeeds, 0.6, 0.1 + rows.age / 10) + rows.variant / 100)[:, None, None, None]
        margins = margin(bright(points), torch.zeros_like(rows.image))
        # The first image's points are always put to the model, which says that they are none.
        return StepResult(points, margins, succeeds | (rows.image == 0))


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
@pytest.mark.parametrize("variants", [1, 2])
def test_every_image_has_the_result_of_its_script(batch_size, variants):
    search = Search(bright, Threat(norm="linf", eps=1.0))
    attack, decided = Scripted(search), []

    def on_decided(images, found):
        decided.extend(images.tolist())
        assert len(images)

    x, y = torch.zeros(8, 1, 1, 1), torch.zeros(8, dtype=torch.int64)
    found = run_pool(attack, search, x, y, num_variants=variants, batch_size=batch_size, on_decided=on_decided)
    for image, script in enumerate(SCRIPT[:, :variants].tolist()):
        succeeds = min(script) < NEVER
        # The last step of the last variant reaches the most, and the earliest success counts.
        value = 0.6 + script.index(min(script)) / 100 if succeeds else 0.0
        reached = value if succeeds else 0.1 + (LENGTH - 1) / 10 + (variants - 1) / 100
        assert found.broken[image] == succeeds
        assert found.x_adv[image].item() == pytest.approx(value)
        assert found.margin[image].item() == pytest.approx(reached - 0.5, abs=1e-6)
    assert not x.any()
    assert sorted(decided) == list(range(8))
    assert max(attack.sizes) <= max(batch_size, variants)


def test_a_batch_is_refilled_when_a_quarter_is_free():
    search = Search(bright, Threat(norm="linf", eps=1.0))
    attack = Scripted(search)
    x, y = torch.zeros(8, 1, 1, 1), torch.zeros(8, dtype=torch.int64)
    run_pool(attack, search, x, y, num_variants=2, batch_size=9, on_decided=lambda images, found: None)
    # Four images at once. The second ends after a step, the third after two, the others after three.
    pairs = [0, 1] * 4
    assert attack.started[0] == (0, [0, 0, 1, 1, 2, 2, 3, 3], pairs)
    assert attack.started[1:] == [
        (1, [4, 4], [0, 1]),
        (2, [5, 5], [0, 1]),
        (3, [6, 6, 7, 7], pairs[:4]),
    ]
    six = Scripted(search)
    run_pool(six, search, x, y, num_variants=1, batch_size=6, on_decided=lambda images, found: None)
    # Of six, a single free place is less than a quarter.
    assert [(step, images) for step, images, _ in six.started] == [(0, [0, 1, 2, 3, 4, 5]), (2, [6, 7])]


def test_unconfirmed_points_have_a_margin_of_zero():
    search = Search(bright, Threat(norm="linf", eps=1.0))

    class Hopeful(Scripted):
        def advance(self, rows):
            reached = super().advance(rows)
            return StepResult(reached.points, reached.margins + 9, torch.ones_like(reached.candidates))

    x, y = torch.zeros(8, 1, 1, 1), torch.zeros(8, dtype=torch.int64)
    found = run_pool(Hopeful(search), search, x, y, num_variants=1, batch_size=8, on_decided=lambda images, found: None)
    assert torch.equal(found.broken, SCRIPT[:, 0] < NEVER)
    assert not found.margin[~found.broken].any()
