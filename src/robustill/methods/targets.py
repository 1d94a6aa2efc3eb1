"""The training targets that methods share: the batch's label, and mixtures of the label with a teacher's output.

`mixed_target` is AKD's target, α·p_T + (1−α)·onehot(y); ARD, RSLAD and IAD can take the same mixture. Two controls
take from a teacher's output what it says of the wrong classes, and leave its entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robustill.losses import ce
from robustill.methods.base import Batch

# Halvings that determine a share in [0,1] to the last digits of float32.
_BISECTIONS = 30


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


def permuted_wrong_classes(logits: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """Rotate the logits of the wrong classes by 1 to K−2 places, a number that is fixed for each image.

    Args:
        logits: [B,K]; with K = 2 there is one wrong class, and nothing to rotate.
        y: labels, int64 [B].
        index: ids of the images, int64 [B].

    Returns:
        [B,K], with the same entropy and the same logit of the label.

    Example:
        >>> permuted_wrong_classes(torch.tensor([[9.0, 1.0, 2.0]]), torch.tensor([0]), torch.tensor([0]))
        tensor([[9., 2., 1.]])
    """
    num_classes = logits.shape[1]
    if num_classes == 2:
        return logits
    places = 1 + index % (num_classes - 2)
    # The wrong classes in the order y+1, y+2 ... modulo K, counted from 0.
    wrong = torch.arange(num_classes - 1, device=y.device)
    to = (y[:, None] + 1 + wrong) % num_classes
    source = (y[:, None] + 1 + (wrong + places[:, None]) % (num_classes - 1)) % num_classes
    return logits.scatter(1, to, logits.gather(1, source))


def even_wrong_classes(logits: Tensor, y: Tensor) -> Tensor:
    """Replace a distribution by log q with q_y = 1 − e, q_k = e/(K−1) for k ≠ y, of the same entropy and e ≤ (K−1)/K.

    Args:
        logits: [B,K].
        y: labels, int64 [B].

    Returns:
        log q, float32 [B,K].

    Example:
        >>> even_wrong_classes(torch.tensor([[0.1, 0.6, 0.3]]).log(), torch.tensor([1])).exp()
        tensor([[0.1780, 0.6439, 0.1780]])
    """
    log_p = logits.float().log_softmax(dim=-1)
    entropy = torch.special.entr(log_p.exp()).sum(dim=-1)
    num_wrong = logits.shape[1] - 1
    low = torch.zeros_like(entropy)
    high = torch.full_like(entropy, num_wrong / (num_wrong + 1))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        value = torch.special.entr(1 - middle) + num_wrong * torch.special.entr(middle / num_wrong)
        low, high = torch.where(value < entropy, middle, low), torch.where(value < entropy, high, middle)
    share = ((low + high) / 2)[:, None]
    is_label = F.one_hot(y, logits.shape[1]).bool()
    return torch.where(is_label, 1 - share, share / num_wrong).log()
