"""Clean: ordinary training, for natural teachers and baselines."""

from __future__ import annotations

from torch import Tensor, nn

from robustill.methods.base import Batch, Method, Network, Outcome
from robustill.methods.targets import label_ce


class Clean(Method):
    """Cross-entropy on clean images; no adversary: CE(S(x), y)."""

    def inner(self, batch: Batch, student: Network, teacher: nn.Module) -> None:
        """Return None: there is no adversary."""
        return None

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute CE(S(x), y), [B]."""
        logits = student(batch.x)
        return Outcome(loss=label_ce(logits, batch), logits=logits)
