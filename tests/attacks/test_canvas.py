from __future__ import annotations

import torch

from robustill.attacks.canvas import PlainCanvas
from robustill.attacks.search import Search
from robustill.threat import Threat


def test_patches_of_any_shape_are_tried_and_accepted():
    images = torch.rand(3, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    search = Search(lambda x: x.flatten(1), Threat(norm="linf", eps=0.1))
    canvas, expected = PlainCanvas(search, images.clone()), images.clone()
    patch = torch.full((3, 2, 2, 3), 9.0)
    tried = images.clone()
    tried[:, :, 1:3, 2:5] = 9.0
    assert torch.equal(canvas.try_patch(1, 2, patch), tried.flatten(1))
    assert torch.equal(canvas.images, images)
    canvas.accept(torch.tensor([True, False, True]))
    expected[[0, 2]] = tried[[0, 2]]
    assert torch.equal(canvas.images, expected)
    whole = tried + 1
    assert torch.equal(canvas.try_patch(0, 0, whole), whole.flatten(1))
    canvas.accept(torch.tensor([False, True, False]))
    expected[1] = whole[1]
    assert torch.equal(canvas.images, expected)
    canvas.select(torch.tensor([False, True, True]))
    assert torch.equal(canvas.logits(), expected[1:].flatten(1))
    assert search.passes == 3 + 3 + 2
