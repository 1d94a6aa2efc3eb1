"""AKD: adversarial training on a mixture of the label and a robust teacher's output."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustill.core.validation import check_choice
from robustill.losses import soft_ce
from robustill.methods.base import Batch, Method, Network, Outcome, in_range
from robustill.methods.targets import even_wrong_classes, mixed_target, permuted_wrong_classes

WrongClasses = Literal["teacher", "permuted", "even"]


class AKD(Method):
    """Soft cross-entropy at x' against α·p_T(x') + (1−α)·onehot(y); x' maximises CE(S(x'), y) on the hard label.

    The teacher's output is the one at x', the student's own adversarial image. There is no term for clean images.
    α = 0 is PGD-AT; α = 1 has the gradient of KL(T(x') ‖ S(x')).

    Args:
        alpha: weight of the teacher in the mixture, in [0,1]. The default is our choice: the authors' later public code
            searches 0.2 to 1.0.
        temperature: t > 0: p_T is softmax(T(x')/t). The student has none, nor is there a factor t². 1 as published.
        wrong_classes: what p_T says of the wrong classes. "teacher": what the teacher says. Two controls ask what a
            teacher teaches: "permuted" gives each wrong class the probability of another one, by a permutation that is
            fixed for each image; "even" replaces p_T by the distribution of the same entropy that gives every wrong
            class the same probability.

    Reference: Maroto, Ortiz-Jiménez and Frossard 2022, arXiv 2203.07159.
    """

    roles = ("robust",)
    reference = "Maroto et al. 2022"

    def __init__(
        self, *, alpha: float = 0.8, temperature: float = 1.0, wrong_classes: WrongClasses = "teacher"
    ) -> None:
        super().__init__()
        self.alpha = in_range("alpha", alpha, 0, 1)
        self.temperature = in_range("temperature", temperature, 1e-3)
        check_choice("wrong_classes", wrong_classes, get_args(WrongClasses))
        self.wrong_classes = wrong_classes
        # The controls need a right class.
        self.single_label = wrong_classes != "teacher"  # type: ignore[misc]

    def outer(self, batch: Batch, x_adv: Tensor, student: Network, teacher: nn.Module) -> Outcome:
        """Compute the soft CE(S(x'), α·p_T(x') + (1−α)·onehot(y)), [B]."""
        with torch.no_grad():
            target = mixed_target(self._teacher_logits(batch, teacher(x_adv)), batch, self.alpha)
        logits = student(x_adv)
        return Outcome(loss=soft_ce(logits, target), logits=logits)

    def _teacher_logits(self, batch: Batch, logits: Tensor) -> Tensor:
        logits = logits.float() / self.temperature
        if self.wrong_classes == "permuted":
            return permuted_wrong_classes(logits, batch.y, batch.index)
        return even_wrong_classes(logits, batch.y) if self.wrong_classes == "even" else logits
