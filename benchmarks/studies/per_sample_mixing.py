"""Should each image have its own weight of the teacher, chosen by how the student has held it so far?

    robustill study benchmarks.studies.per_sample_mixing:per_sample_mixing --seeds 5 --recipe digits_at \
        --suite standard

From the root of the repository. An image counts as hard while the average of its margins under attack is on the wrong
side. Hard images learn from the teacher alone, or easy ones do; the control gives the same number of images of each
batch the teacher alone, drawn at random.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill import Batch, ImageState, Method, Outcome, losses
from robustill.methods.targets import mixed_target
from robustill.studies import Design, Row, StudyRuns

MOMENTUM = 0.9
WHOLE, MIXED = 1.0, 0.5


class PerSampleAKD(Method):
    """Soft cross-entropy at x' against α_i·p_T(x') + (1−α_i)·onehot(y), α_i = 1 for the chosen images, else ½.

    An image is hard while the moving average (.9, from the second epoch on) of max_{k≠y} p_k − p_y at x' is positive.

    Args:
        chosen: the images with α_i = 1: the "hard" ones, the "easy" ones, or as many as are hard, at "random".
    """

    roles = ("robust",)
    single_label = True

    def __init__(self, *, chosen: Literal["hard", "easy", "random"] = "hard") -> None:
        super().__init__()
        self.chosen = chosen
        self.margins = ImageState()

    def outer(self, batch: Batch, x_adv: Tensor, student: nn.Module, teacher: nn.Module) -> Outcome:
        """Compute the soft CE(S(x'), α_i·p_T(x') + (1−α_i)·onehot(y)), [B]."""
        is_hard = self.margins.get(batch.index, torch.zeros(len(batch.y), 1, device=batch.y.device))[:, 0] > 0
        if self.chosen == "random":
            is_hard = is_hard[torch.randperm(len(is_hard), device=is_hard.device)]
        alpha = torch.where(is_hard == (self.chosen != "easy"), WHOLE, MIXED)[:, None]
        with torch.no_grad():
            logits = teacher(x_adv)
            target = alpha * mixed_target(logits, batch, 1.0) + (1 - alpha) * mixed_target(logits, batch, 0.0)
        adversarial = student(x_adv)
        return Outcome(loss=losses.soft_ce(adversarial, target), logits=adversarial)

    def update(self, batch: Batch, outcome: Outcome) -> None:
        """Take the margins of this step into their averages."""
        probabilities = outcome.logits.detach().float().softmax(dim=1)
        is_label = F.one_hot(batch.y, probabilities.shape[1]).bool()
        margin = (probabilities.masked_fill(is_label, 0).amax(dim=1) - probabilities[is_label])[:, None]
        before = self.margins.get(batch.index, margin)
        self.margins.set(batch.index, MOMENTUM * before + (1 - MOMENTUM) * margin)


def per_sample_mixing(runs: StudyRuns) -> Design:
    """AKD with a weight of the teacher for each image, by the student's margins so far, beside a random choice."""
    baseline, name = runs.baseline_label, "benchmarks.studies.per_sample_mixing:PerSampleAKD"
    run = {
        chosen: runs.student(chosen, method=name, options={"chosen": chosen}) for chosen in ("random", "hard", "easy")
    }
    rows = [
        Row(label=baseline, run=runs.baseline()),
        Row(label="akd", run=runs.student("", method="akd"), against=baseline),
        Row(label="random images", run=run["random"], against="akd"),
        Row(label="hard images", run=run["hard"], against="random images"),
        Row(label="easy images", run=run["easy"], against="random images"),
    ]
    return Design(rows=tuple(rows))
