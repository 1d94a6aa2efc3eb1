"""PeerAiD: in place of a teacher, a peer network that is trained together with the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import LossFn
from robustill.core.contexts import evaluating
from robustill.losses import kl
from robustill.methods.base import Batch, Method, Network, Outcome, forward_pair, in_range
from robustill.methods.targets import label_ce


class PeerAD(Method):
    """Student: λ₁·CE(S(x'), y) + λ₂·t²·KL(P(x')/t ‖ S(x')/t) + λ₃·t²·KL(S(x)/t ‖ S(x')/t), P(x') fixed, S(x) not;
    peer: γ₁·CE(P(x'), y) + γ₂·KL(S(x') ‖ P(x')), S(x') fixed. The loss is their sum.

    x' maximises KL(P(x) ‖ S(x')) from x + 0.001·N(0,1), with the peer in eval mode. The peer is trained on the same x'.
    Its parameters belong to the method and are trained by the student's optimizer, at its learning rate, as published.
    Published together with stochastic weight averaging of the student, which is a setting of the training.

    The authors' code divides every KL by the number of classes K, since its `nn.KLDivLoss` averages over them too, and
    the gradient of the peer's KL reaches the student. The published λ and γ were chosen with this code, so that
    `as_coded` does the same by default. Without it the KLs are those of the equations: the student's whole loss is K
    times larger at the same learning rate and weight decay, and the peer's weighs K times more beside its
    cross-entropy.

    Args:
        label: λ₁ ≥ 0.
        from_peer: λ₂ ≥ 0.
        from_self: λ₃ ≥ 0.
        temperature: t > 0.
        peer_label: γ₁ ≥ 0.
        peer_from_student: γ₂ ≥ 0; 0.1 for CIFAR-10, 1 for CIFAR-100.
        peer: the architecture of the peer; null takes the student's, as published.
        peer_options: options of that architecture.
        as_coded: follow the authors' code where it differs from the equations, which false follows.
        joint_forward: x and x' in one forward pass of the student's outer loss; as published, in two.

    Reference: Jung et al. 2024, PeerAiD: improving adversarial distillation from a specialized peer tutor.
    """

    start = "gaussian"
    reference = "Jung et al. 2024"

    def __init__(
        self,
        *,
        label: float = 0.0,
        from_peer: float = 1.0,
        from_self: float = 1.0,
        temperature: float = 5.0,
        peer_label: float = 1.0,
        peer_from_student: float = 0.1,
        peer: str | None = None,
        peer_options: Mapping[str, Any] | None = None,
        as_coded: bool = True,
        joint_forward: bool = False,
    ) -> None:
        super().__init__()
        self.label = in_range("label", label, 0)
        self.from_peer = in_range("from_peer", from_peer, 0)
        self.from_self = in_range("from_self", from_self, 0)
        self.temperature = in_range("temperature", temperature, 1e-3)
        self.peer_label = in_range("peer_label", peer_label, 0)
        self.peer_from_student = in_range("peer_from_student", peer_from_student, 0)
        self.peer_name, self.peer_options = peer, dict(peer_options or {})
        self.as_coded = as_coded
        self.joint_forward = joint_forward

    def set_up(self, network: Callable[..., nn.Module]) -> None:
        """Build the peer."""
        self.peer = network(self.peer_name, **self.peer_options)

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> LossFn:
        """Return the adversary's objective, KL(P(x) ‖ S(x'))."""
        with evaluating(self.peer), torch.no_grad():
            target = self.peer(batch.x)
        return lambda x_adv: kl(student(x_adv), target)

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute the sum of the student's and the peer's loss, [B]."""
        t = self.temperature
        peer = self.peer(x_adv)
        clean, adversarial = forward_pair(student, batch.x, x_adv, joint=self.joint_forward)
        terms = {
            "ce": label_ce(adversarial, batch),
            "kl_peer": kl(adversarial, peer.detach(), t),
            "kl_self": kl(adversarial, clean, t),
            "peer_ce": label_ce(peer, batch),
            "peer_kl": kl(peer, adversarial if self.as_coded else adversarial.detach()),
        }
        scale = 1 / adversarial.shape[-1] if self.as_coded else 1.0
        loss = (
            self.label * terms["ce"]
            + scale * (self.from_peer * terms["kl_peer"] + self.from_self * terms["kl_self"])
            + self.peer_label * terms["peer_ce"]
            + scale * self.peer_from_student * terms["peer_kl"]
        )
        return Outcome(loss=loss, logits=adversarial, terms=terms, clean_logits=clean)
