"""Passes through a model, against a linear one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from robustill.attacks import search as search_module
from robustill.attacks.search import Search
from robustill.threat import Threat

WEIGHT = torch.tensor([[0.0, 1.0, 2.0, 0.0], [1.0, -1.0, 0.0, 3.0], [0.5, 0.0, 0.0, -2.0]])
X = torch.linspace(0, 1, 8).view(2, 1, 2, 2)


def linear(x, scale=1.0):
    return scale * x.flatten(1) @ WEIGHT.T


def search(**options):
    return Search(linear, Threat(norm="linf", eps=0.1), **options)


def test_each_pass_is_counted():
    with_copies, calls = search(folded=lambda x: linear(x, 2), bf16=lambda x: linear(x, 4).bfloat16()), []
    with_copies.on_pass = lambda: calls.append((with_copies.passes, with_copies.seconds > 0))
    logits = with_copies.logits(X.clone().requires_grad_())
    torch.testing.assert_close(logits, linear(X, 2))
    assert not logits.requires_grad
    logits, losses, grad = with_copies.gradient(X, lambda z: z[:, 1] ** 2)
    torch.testing.assert_close(logits, linear(X, 4), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(losses, logits[:, 1] ** 2)
    expected = (2 * logits[:, 1, None] * 4 * WEIGHT[1]).view(2, 1, 2, 2)
    torch.testing.assert_close(grad, expected, rtol=1e-2, atol=1e-2)
    assert logits.dtype == losses.dtype == grad.dtype == torch.float32
    assert not any(each.requires_grad for each in (logits, losses, grad))
    logits, grads = with_copies.jacobian(X)
    assert not any(each.requires_grad for each in (logits, grads))
    torch.testing.assert_close(grads, (4 * WEIGHT).view(1, 3, 1, 2, 2).expand(2, -1, -1, -1, -1))
    torch.testing.assert_close(logits, linear(X, 4), rtol=1e-2, atol=1e-2)
    with_copies.confirm(X[:1], X[:1], torch.tensor([0]))
    assert not X.requires_grad
    # Two images: one pass, one and its gradient, one and three gradients; then one image.
    assert calls == [(count, True) for count in (2, 6, 8, 10, 12, 14, 15)]


def test_logits_and_margins_are_float32():
    half = Search(lambda x: linear(x).bfloat16(), Threat(norm="linf", eps=0.1))
    assert half.logits(X).dtype == torch.float32
    assert half.confirm(X, X, torch.tensor([0, 1]))[1].dtype == torch.float32


def test_passes_are_timed(monkeypatch):
    clock = iter([1.0, 1.5, 10.0, 12.0])
    monkeypatch.setattr(search_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    timed = search()
    seconds = []
    for _ in range(2):
        timed.logits(X)
        seconds.append(timed.seconds)
    assert seconds == [0.5, 2.5]


def test_without_copies_the_model_itself_is_used():
    plain = search()
    torch.testing.assert_close(plain.logits(X), linear(X))
    torch.testing.assert_close(
        plain.gradient(X, lambda z: z[:, 0])[2], WEIGHT[0].view(1, 1, 2, 2).expand(2, -1, -1, -1)
    )


@pytest.mark.parametrize("scales", [[6.0], [0.0, 6.0], [1.0, 2.0, 6.0]])
def test_repeats_are_averaged(scales):
    factors = iter(scales)
    repeated = Search(lambda x: linear(x, next(factors)), Threat(norm="linf", eps=0.1), repeats=len(scales))
    logits, losses, grad = repeated.gradient(X, lambda z: z[:, 2])
    mean = sum(scales) / len(scales)
    torch.testing.assert_close(grad, mean * WEIGHT[2].view(1, 1, 2, 2).expand(2, -1, -1, -1))
    torch.testing.assert_close(logits, linear(X, 6))
    torch.testing.assert_close(losses, linear(X, 6)[:, 2])
    assert repeated.passes == len(scales) * 2 * 2


@pytest.mark.parametrize(("options", "share"), [({}, 1e-5), ({"bf16": linear}, 2e-2)])
def test_points_within_rounding_of_the_boundary_are_candidates(options, share):
    logits = torch.tensor([[1.0, -4.0, 2.0]]).repeat(5, 1)
    logits[4] *= 100
    margins = torch.tensor([0.5, 0.0, -3.9 * share, -4.1 * share, -399 * share])
    assert search(**options).is_candidate(margins, logits).tolist() == [True, True, True, False, True]


def test_a_success_is_misclassified_inside_the_threat():
    x = torch.full((4, 1, 2, 2), 0.5)
    x_adv, y = x.clone(), torch.tensor([0, 1, 0, 0])
    x_adv[2, 0, 1, 1] += 0.05
    x_adv[3, 0, 1, 1] += 0.2
    # At the middle the classes have 1.5, 1.5 and −0.75; more of the last pixel raises class 1.
    success, margins = search().confirm(x_adv, x, y)
    assert success.tolist() == [False, True, True, False]
    torch.testing.assert_close(margins, torch.tensor([0.0, 0.0, 0.15, 0.6]))
