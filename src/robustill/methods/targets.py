"""The training targets that methods share: the batch's label, and mixtures of the label with a teacher's output.

`mixed_target` is AKD's target, α·p_T + (1−α)·onehot(y); ARD, RSLAD and IAD can take the same mixture.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robustill.losses import ce
from robustill.methods.base import Batch


def label_ce(logits: Tensor, batch: Batch) -> Tensor:
    """Compute the cross-entropy with `Batch.target`: with the label, which may be smoothed or mixed.

    Args:
        logits: [B,K].
        batch: the batch with the labels.

    Returns:
        [B], float32, in nats.
    """
    return ce(logits, batch.target(logits.shape[-1]))


def label_probabilities(batch: Batch, num_classes: int) -> Tensor:
    """Return `Batch.target` as probabilities, float32 [B,K]: one-hot where the label is neither smoothed nor mixed."""
    label = batch.target(num_classes)
    return F.one_hot(label, num_classes).float() if label.ndim == 1 else label


def mixed_target(teacher_logits: Tensor, batch: Batch, alpha: float) -> Tensor:
    """Mix a teacher's probabilities with the label: α·p_T + (1−α)·onehot(y).

    Args:
        teacher_logits: [B,K].
        batch: the batch with the labels, which may be smoothed or mixed.
        alpha: weight of the teacher, in [0,1].

    Returns:
        Probabilities, float32 [B,K].

    Example:
        >>> batch = Batch(x=torch.zeros(1, 1, 1, 1), y=torch.tensor([0]), index=torch.tensor([0]))
        >>> mixed_target(torch.zeros(1, 2), batch, alpha=0.5)
        tensor([[0.7500, 0.2500]])
    """
    probabilities = teacher_logits.float().softmax(dim=-1)
    return alpha * probabilities + (1 - alpha) * label_probabilities(batch, probabilities.shape[-1])


def label_trust(teacher_logits: Tensor, y: Tensor, beta: float) -> Tensor:
    """Compute how far a teacher is trusted: p_T(y)^β, or Π_k p_T(k)^(β·y_k) where the label is mixed.

    Args:
        teacher_logits: [B,K].
        y: labels, int64 [B]; or probabilities, [B,K].
        beta: β ≥ 0; with 0 every trust is 1.

    Returns:
        [B], float32, in [0,1].

    Example:
        >>> label_trust(torch.zeros(1, 4), torch.tensor([0]), beta=0.5)
        tensor([0.5000])

    Reference: Zhu et al. 2022.
    """
    return torch.exp(-beta * ce(teacher_logits, y))
