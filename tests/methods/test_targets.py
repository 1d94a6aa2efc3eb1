"""The label that the loss uses, smoothed and mixed, and its mixture with a teacher's output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.tiny_networks import CLASSES, one_hot, probabilities, tiny_batch
from robustill.methods.targets import label_ce, mixed_target

MIXED = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.0, 0.2, 0.0, 0.8]]).repeat(3, 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [None, MIXED])
def test_the_label_is_smoothed_and_mixed(smoothing: float, mixed: torch.Tensor | None) -> None:
    batch = replace(tiny_batch(), mixed=mixed, smoothing=smoothing)
    label = one_hot(batch.y) if mixed is None else mixed.double()
    expected = (1 - smoothing) * label + smoothing / CLASSES
    target = batch.target(CLASSES)
    assert target.dtype == (torch.int64 if mixed is None and not smoothing else torch.float32)
    torch.testing.assert_close(one_hot(target) if target.ndim == 1 else target.double(), expected)
    logits = torch.linspace(-1, 2, 6 * CLASSES).view(6, CLASSES).sin()
    loss = -(expected * probabilities(logits).log()).sum(dim=1)
    torch.testing.assert_close(label_ce(logits, batch).double(), loss)
    mixture = 0.3 * probabilities(logits) + 0.7 * expected
    torch.testing.assert_close(mixed_target(logits, batch, 0.3).double(), mixture)
