"""The worst case over the attacks of a suite: a network that answers differently each time, and the passes it takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustill.attacks.suites import find_suite
from robustill.evaluation.worst_case import WorstCase
from robustill.runs.records import WRONG_ON_CLEAN
from robustill.threat import Threat


class Decided(nn.Module):
    """Says class 0 of every image, whatever an attack does, with a gradient all the same."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0]) + 1e-6 * x.flatten(1)


class Followed(nn.Module):
    """Sure of class 0, however bright an image is; records the images that an attack asks for gradients of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.seen.append(x.detach().clone())
        brightness = x.flatten(1).sum(dim=1)
        return torch.stack([torch.full_like(brightness, 100.0), 50 + brightness], dim=1)


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


@pytest.mark.parametrize("suite", ["pgd", "pgd-20", "quick", "apgd-ce,square"])
def test_the_expected_passes_are_those_of_images_half_of_which_no_attack_breaks(suite: str) -> None:
    x, y = torch.full((8, 1, 2, 2), 0.5), torch.tensor([0, 1] * 4)
    worst_case = WorstCase(Decided(), Threat(norm="linf", eps=0.01), find_suite(suite), [0.005, 0.01], 0, 8)
    rows, _ = worst_case.attack(x, y, torch.arange(8))
    assert rows["robust"].float().mean() == 0.5
    # AutoAttack looks at every clean image once, which is not counted as an attack.
    assert worst_case.passes / 8 == pytest.approx(worst_case.expected_passes(num_classes=4), abs=1)


def test_every_radius_of_the_curve_is_searched_in_steps_of_a_quarter_of_it() -> None:
    network, x = Followed(), torch.full((16, 1, 2, 2), 0.5)
    radii = [0.05, 0.1, 0.2]
    worst_case = WorstCase(network, Threat(norm="linf", eps=0.1), find_suite("pgd-20"), radii, 0, 16)
    worst_case.attack(x, torch.zeros(16, dtype=torch.long), torch.arange(16))
    searches = torch.stack(network.seen).split(20)
    assert len(searches) == 1 + len(radii)
    for eps, images in zip(radii, searches[1:], strict=True):
        # Up to the edge of the ball every step has its whole length.
        assert float(images.diff(dim=0).max()) == pytest.approx(eps / 4, rel=1e-3)
        assert float((images - x).max()) == pytest.approx(eps, rel=1e-3)
