"""AT: adversarial training with PGD."""

from __future__ import annotations

from torch import Tensor, nn

from robustill.methods.base import Batch, Method, Network, Outcome
from robustill.methods.targets import label_ce


class AT(Method):
    """Adversarial training on the hard label: CE(S(x'), y), x' maximising the same.

    Reference: Madry et al. 2018, Towards deep learning models resistant to adversarial attacks; Rice et al. 2020.
    """

    reference = "Madry et al. 2018"

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute CE(S(x'), y), [B]."""
        logits = student(x_adv)
        return Outcome(loss=label_ce(logits, batch), logits=logits)
