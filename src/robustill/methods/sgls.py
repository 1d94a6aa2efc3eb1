"""SGLS: labels that follow the student's own predictions of each image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustill.losses import soft_ce
from robustill.methods.base import Batch, Method, Network, Outcome, in_range
from robustill.methods.image_state import ImageState
from robustill.methods.targets import label_ce, label_probabilities


class SGLS(Method):
    """softCE(q, S(x')), q ← m·q + (1−m)·(c·p_S(x) + (1−c)·p_S(x')) before every step; x' maximises CE(S(x'), y).

    Each training image has its own q, which begins as its label. The probabilities are detached. S(x) is computed in
    train mode, as in the authors' code, so that BatchNorm sees x too. Also known as SGLR.

    In the authors' code q begins to change in the first epoch; their script asks for the 90th of 200, by the name of an
    option that their program does not have.

    Args:
        momentum: m, in [0,1]; with 1 the label never changes.
        clean: c, the share of the clean prediction, in [0,1].
        begin: share of the epochs after which q begins to change, in [0,1]; until then the loss is CE(S(x'), y).

    Reference: Li et al. 2024, Soften to defend: towards adversarial robustness via self-guided label refinement.
    """

    reference = "Li et al. 2024"
    single_label = True

    def __init__(self, *, momentum: float = 0.9, clean: float = 0.2, begin: float = 0.0) -> None:
        super().__init__()
        self.momentum = in_range("momentum", momentum, 0, 1)
        self.clean = in_range("clean", clean, 0, 1)
        self.begin = in_range("begin", begin, 0, 1)
        self.targets = ImageState()

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute softCE(q, S(x')) with the q of this step, [B]."""
        adversarial = student(x_adv)
        if not batch.after(self.begin):
            return Outcome(loss=label_ce(adversarial, batch), logits=adversarial)
        with torch.no_grad():
            clean = student(batch.x)
        loss = soft_ce(adversarial, self._target(batch, clean, adversarial))
        return Outcome(loss=loss, logits=adversarial, clean_logits=clean)

    def update(self, batch: Batch, outcome: Outcome) -> None:
        """Store the q of this step."""
        if outcome.clean_logits is not None:
            self.targets.set(batch.index, self._target(batch, outcome.clean_logits, outcome.logits))

    def _target(self, batch: Batch, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Return the labels of this step, [B,K], from the stored ones and the predictions."""
        clean, adversarial = (logits.detach().float().softmax(dim=-1) for logits in (clean, adversarial))
        prediction = self.clean * clean + (1 - self.clean) * adversarial
        previous = self.targets.get(batch.index, default=label_probabilities(batch, prediction.shape[-1]))
        return self.momentum * previous + (1 - self.momentum) * prediction
