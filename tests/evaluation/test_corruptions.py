"""Accuracy on rotated and shifted images, against a loop over the copies of all images at once."""

from __future__ import annotations

import pytest
import torch

from helpers.evaluation_cases import made_up, trained
from robustill.data.corruptions import moved_copies
from robustill.evaluation.corruptions import NUM_MOVES, moved_accuracy


@pytest.mark.parametrize("batch_size", [256, 25])
def test_the_worst_copy_of_an_image_counts_and_the_mean_is_over_all_copies(batch_size: int) -> None:
    model, dataset, ids = trained().eval(), made_up(), torch.arange(60)
    with torch.no_grad():
        x = dataset.read(ids).float() / 255
        right = torch.stack([model(copy).argmax(dim=1) == dataset.labels[ids] for copy in moved_copies(x)])
    assert len(right) == NUM_MOVES
    worst, mean = moved_accuracy(model, dataset, ids, batch_size=batch_size)
    assert worst == pytest.approx(float(right.all(dim=0).float().mean()))
    assert mean == pytest.approx(float(right.float().mean()))
    assert 0 < worst < float(right.float().mean(dim=1).min())
