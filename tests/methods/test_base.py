"""Batches, what losses take as the label, and the state of a method."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.tiny_networks import CLASSES, one_hot, probabilities, scene, tiny_batch
from robustill.core.errors import ConfigError
from robustill.methods import Batch, Method, build_method
from robustill.methods.base import in_range, label_ce, mixed_target

SHOWN = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.0, 0.2, 0.0, 0.8]]).repeat(3, 1)


def test_an_epoch_that_is_not_told_is_the_first_of_one() -> None:
    batch = Batch(x=torch.zeros(0), y=torch.zeros(0), index=torch.zeros(0))
    assert (batch.epoch, batch.epochs) == (0, 1)


def test_a_share_of_the_epochs_ends_where_it_does_for_whole_numbers() -> None:
    for epochs in range(1, 120):
        batches = [tiny_batch(epoch=epoch, epochs=epochs) for epoch in range(epochs)]
        for percent in range(101):
            behind = [batch.after(percent / 100) for batch in batches]
            assert behind == [100 * epoch >= percent * epochs for epoch in range(epochs)]


@pytest.mark.parametrize("mixed", [None, SHOWN])
@pytest.mark.parametrize(("count", "sizes"), [(1, [6]), (2, [3, 3]), (4, [2, 2, 1, 1]), (9, [1] * 6)])
def test_parts_hold_a_batch_in_order(count: int, sizes: list[int], mixed: torch.Tensor | None) -> None:
    batch = replace(tiny_batch(epoch=3, epochs=7), mixed=mixed, smoothing=0.1)
    parts = batch.split(count)
    assert [len(part.y) for part in parts] == sizes
    assert {(part.epoch, part.epochs, part.smoothing) for part in parts} == {(3, 7, 0.1)}
    for name in ("x", "y", "index", *(["mixed"] if mixed is not None else [])):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name)), name
    assert (parts[0] is batch) == (count == 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [None, SHOWN])
def test_the_label_is_smoothed_and_mixed(smoothing: float, mixed: torch.Tensor | None) -> None:
    batch = replace(tiny_batch(), mixed=mixed, smoothing=smoothing)
    shown = one_hot(batch.y) if mixed is None else mixed.double()
    expected = (1 - smoothing) * shown + smoothing / CLASSES
    target = batch.target(CLASSES)
    assert target.dtype == (torch.int64 if mixed is None and not smoothing else torch.float32)
    torch.testing.assert_close(one_hot(target) if target.ndim == 1 else target.double(), expected)
    logits = torch.linspace(-1, 2, 6 * CLASSES).view(6, CLASSES).sin()
    loss = -(expected * probabilities(logits).log()).sum(dim=1)
    torch.testing.assert_close(label_ce(logits, batch).double(), loss)
    mixture = 0.3 * probabilities(logits) + 0.7 * expected
    torch.testing.assert_close(mixed_target(logits, batch, 0.3).double(), mixture)


def test_a_method_without_a_loss_says_so() -> None:
    s = scene()
    with pytest.raises(NotImplementedError):
        Method().outer(s.batch, s.x_adv, s.student, nn.Identity())


def test_empty_buffers_alone_take_the_shape_of_what_is_loaded() -> None:
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


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (-1, (0,), "a is -1, expected a number of at least 0"),
        (2.5, (0, 1), "a is 2.5, expected a number of at least 0 and at most 1"),
        ("x", (0.5, 2), "a is 'x', expected a number of at least 0.5 and at most 2"),
    ],
)
def test_numbers_out_of_their_range(value: float, bounds: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        in_range("a", value, *bounds)
    assert str(refused.value) == message
