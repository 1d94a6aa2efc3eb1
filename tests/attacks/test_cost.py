"""The time of a pass, by a clock that the network moves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustill.attacks import cost
from robustill.attacks.cost import seconds_per_pass
from robustill.threat import Threat

THREAT = Threat(norm="linf", eps=0.1)


class Timed(nn.Module):
    """Every image takes `seconds` forward and as long backward."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.now, self.batches = seconds, 0.0, list[int]()
        self.linear = nn.Linear(4, 3)
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.batches.append(len(x))
        self._spend(x)
        logits: Tensor = self.linear(x.flatten(1)) + 0 * torch.rand(())
        if logits.requires_grad:
            logits.register_hook(self._spend)  # type: ignore[no-untyped-call]
        return logits

    def _spend(self, values: Tensor) -> None:
        self.now += self.seconds * len(values)


def measured(network: Timed, monkeypatch: pytest.MonkeyPatch, number: int = 100, **options: Any) -> float:
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: network.now))
    return seconds_per_pass(network, torch.rand(number, 1, 2, 2), torch.zeros(number).long(), THREAT, **options)


@pytest.mark.parametrize("gradient", [True, False])
def test_a_pass_takes_its_time_forward_and_backward(monkeypatch: pytest.MonkeyPatch, gradient: bool) -> None:
    network = Timed(1e-5)
    assert measured(network, monkeypatch, gradient=gradient) == pytest.approx(1e-5)
    # Nothing is gained by more images than fill a batch.
    assert max(network.batches) == 64


def test_a_slow_network_is_timed_on_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Timed(0.3)
    assert measured(network, monkeypatch) == pytest.approx(0.3)
    assert set(network.batches) == {1}


def test_no_more_images_are_timed_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Timed(1e-4)
    assert measured(network, monkeypatch, number=3) == pytest.approx(1e-4)
    assert max(network.batches) == 3


def test_the_network_and_the_random_numbers_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Timed(1e-4)
    before = torch.get_rng_state()
    x, y = torch.full((5, 1, 2, 2), 0.5), torch.zeros(5).long()
    seconds_per_pass(network, x, y, THREAT)
    assert torch.equal(torch.get_rng_state(), before)
    assert network.training
    assert network.linear.weight.requires_grad
    assert network.linear.weight.grad is None
