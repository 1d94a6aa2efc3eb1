"""PeerAiD against its formula, its two gradients, and its peer's training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.companions import train_both, with_companion
from helpers.tiny_networks import (
    CLASSES,
    assert_formula,
    cross_entropy,
    divergence,
    logits,
    probabilities,
    scene,
    tiny_network,
)
from robustill.methods import build_method


@pytest.mark.parametrize("as_coded", [False, True])
def test_equals_the_formula(as_coded: bool) -> None:
    s, method = (
        scene(),
        with_companion("peerad", label=0.5, from_peer=2.0, from_self=3.0, peer_label=0.7, as_coded=as_coded),
    )
    outcome = method.outer(s.batch, s.x_adv, s.student, nn.Identity())
    student, clean, peer = logits(s.student, s.x_adv), logits(s.student, s.batch.x), logits(method.peer, s.x_adv)
    scale = 1 / CLASSES if as_coded else 1
    warm = probabilities(student, 5.0)
    from_peer, from_self = (25 * divergence(probabilities(other, 5.0), warm) * scale for other in (peer, clean))
    own = 0.5 * cross_entropy(probabilities(student), s.batch.y) + 2 * from_peer + 3 * from_self
    theirs = 0.7 * cross_entropy(probabilities(peer), s.batch.y)
    theirs = theirs + 0.1 * scale * divergence(probabilities(student), probabilities(peer))
    assert_formula(outcome.loss, own + theirs)
    objective = method.inner(s.batch, s.student, nn.Identity())
    assert_formula(
        objective(s.x_adv), divergence(probabilities(logits(method.peer, s.batch.x)), probabilities(student))
    )


@pytest.mark.parametrize("as_coded", [False, True])
def test_each_network_has_the_gradient_of_its_loss(as_coded: bool) -> None:
    def gradient(**options: float) -> torch.Tensor:
        s, method = scene(), with_companion("peerad", as_coded=as_coded, **options)
        loss = method.outer(s.batch, s.x_adv, s.student, nn.Identity()).loss.sum()
        return torch.autograd.grad(loss, s.student[-1].weight)[0]

    def gradient_of_peer(**options: float) -> torch.Tensor:
        s, method = scene(), with_companion("peerad", as_coded=as_coded, **options)
        loss = method.outer(s.batch, s.x_adv, s.student, nn.Identity()).loss.sum()
        return torch.autograd.grad(loss, method.peer[-1].weight)[0]

    torch.testing.assert_close(gradient_of_peer(from_peer=9.0), gradient_of_peer(from_peer=0.0))
    torch.testing.assert_close(gradient_of_peer(label=9.0), gradient_of_peer(label=0.0))
    torch.testing.assert_close(gradient(peer_label=9.0), gradient(peer_label=0.0))
    assert torch.allclose(gradient(peer_from_student=9.0), gradient(peer_from_student=0.0)) != as_coded


def test_the_optimizer_trains_the_peer_too() -> None:
    method, losses = train_both("peerad", 0.05, ("peer_ce",))
    assert losses[-1][0] < 0.5 * losses[0][0]
    # Once a step: the look at x for the adversary leaves the peer's statistics alone.
    assert int(method.peer[1].num_batches_tracked) == 15


def test_the_peers_architecture_is_given_by_name() -> None:
    asked: list[tuple[str | None, dict[str, object]]] = []

    def network(name: str | None = None, **options: object) -> nn.Module:
        asked.append((name, options))
        return tiny_network(7)

    build_method("peerad", peer="resnet18", peer_options={"width": 8}).set_up(network)
    build_method("peerad").set_up(network)
    assert asked == [("resnet18", {"width": 8}), (None, {})]
