"""The worst case over the attacks of a suite, where the network answers differently each time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.attacks.suites import find_suite
from robustill.evaluation.worst_case import WorstCase
from robustill.runs.records import WRONG_ON_CLEAN
from robustill.threat import Threat


class Noisy(nn.Module):
    """Draws a sign for every logit, so that two passes over an image often disagree."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)[:, :2]
        return z * torch.randn_like(z).sign()


def test_rows_of_a_network_that_draws_random_numbers_agree_with_their_recorded_probabilities() -> None:
    x, y = torch.rand(32, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 2
    suite = find_suite("apgd-ce")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        worst_case = WorstCase(Noisy(), Threat(norm="linf", eps=0.01), suite, [], 0, 32)
        rows, _ = worst_case.attack(x, y, torch.arange(32))
    is_wrong = rows["clean_probabilities"].argmax(dim=1) != y
    assert 0 < is_wrong.sum() < 32
    assert torch.equal(rows["broken_by"] == WRONG_ON_CLEAN, is_wrong)
    assert not rows["robust"][is_wrong].any()
