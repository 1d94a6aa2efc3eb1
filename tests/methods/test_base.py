"""Batches, and the state of a method."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.tiny_networks import scene, tiny_batch
from robustill.core.errors import ConfigError
from robustill.methods import Batch, Method, build_method
from robustill.methods.base import in_range

MIXED = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.0, 0.2, 0.0, 0.8]]).repeat(3, 1)


def test_the_default_epoch_is_the_first_of_one() -> None:
    batch = Batch(x=torch.zeros(1, 1, 1, 1), y=torch.tensor([0]), index=torch.tensor([0]))
    assert (batch.epoch, batch.epochs) == (0, 1)


def test_a_share_of_the_epochs_ends_exactly() -> None:
    for epochs in range(1, 120):
        batches = [tiny_batch(epoch=epoch, epochs=epochs) for epoch in range(epochs)]
        for percent in range(101):
            behind = [batch.after(percent / 100) for batch in batches]
            assert behind == [100 * epoch >= percent * epochs for epoch in range(epochs)]


@pytest.mark.parametrize("mixed", [None, MIXED])
@pytest.mark.parametrize(("count", "sizes"), [(1, [6]), (2, [3, 3]), (4, [2, 2, 1, 1]), (9, [1] * 6)])
def test_the_parts_of_a_batch_are_in_order(count: int, sizes: list[int], mixed: torch.Tensor | None) -> None:
    batch = replace(tiny_batch(epoch=3, epochs=7), mixed=mixed, smoothing=0.1)
    parts = batch.split(count)
    assert [len(part.y) for part in parts] == sizes
    assert {(part.epoch, part.epochs, part.smoothing) for part in parts} == {(3, 7, 0.1)}
    for name in ("x", "y", "index", *(["mixed"] if mixed is not None else [])):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name)), name
    assert (parts[0] is batch) == (count == 1)


def test_a_method_without_a_loss_is_not_implemented() -> None:
    s = scene()
    with pytest.raises(NotImplementedError):
        Method().outer(s.batch, s.x_adv, s.student, nn.Identity())


def test_only_empty_buffers_take_a_loaded_shape() -> None:
    s, method = scene(), build_method("igdm", base="dkl")
    method.update(s.batch, method.outer(s.batch, s.x_adv, s.student, s.robust))
    again = build_method("igdm", base="dkl")
    attributes = set(vars(again))
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.base.total, method.base.total)
    assert set(vars(again)) == attributes
    mtard = build_method("mtard")
    with pytest.raises(RuntimeError, match="size mismatch for temperature"):
        mtard.load_state_dict({**mtard.state_dict(), "temperature": torch.ones(3)})


class Remembering(Method):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.empty(0))


@pytest.mark.parametrize("rows", [(5, 0), (4, 5), (5, 4), (0, 5)])
def test_a_buffer_that_was_registered_empty_takes_any_loaded_shape(rows: tuple[int, int]) -> None:
    # As a rollback to an epoch before it was filled, or an unfinished epoch after it has grown.
    method, state = Remembering(), {"memory": torch.rand(rows[1], 3)}
    method.memory = torch.zeros(rows[0], 3)
    method.load_state_dict(state)
    assert torch.equal(method.memory, state["memory"])


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (-1, (0,), "a is -1, expected a number of at least 0"),
        (2.5, (0, 1), "a is 2.5, expected a number of at least 0 and at most 1"),
        ("x", (0.5, 2), "a is 'x', expected a number of at least 0.5 and at most 2"),
    ],
)
def test_numbers_outside_their_range_are_refused(value: float, bounds: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        in_range("a", value, *bounds)
    assert str(refused.value) == message
