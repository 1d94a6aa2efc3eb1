"""Losses: logits [B,K] to one value a sample, in log space, in float32, in nats.

Each checks the types, shapes and dtypes of its arguments, and no values, because to look at values waits for a GPU. A
label outside the classes is found by torch itself: on a CPU it is a DataError, on a GPU an assertion of the device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robustill.core.errors import DataError
from robustill.core.validation import (
    check_label_range,
    check_labels,
    check_number,
    check_same_shape,
    check_tensor,
    describe,
)

# `F.cross_entropy` gives 0 for labels of this value, whose default, -100, hides mistakes.
_NO_LABEL = -(2**62)


def probabilities(logits: Tensor) -> Tensor:
    """Compute the softmax such that the class of the largest logit has the largest probability in float32 too.

    Logits that differ by less than float32 resolves near 1/K have equal probabilities after rounding; the predicted
    class is then given the next larger number.

    Args:
        logits: [B, K].

    Returns:
        [B, K], float32.

    Example:
        >>> probabilities(torch.tensor([[0.0, 1e-10]])).argmax().item()
        1
    """
    logits = logits.float()
    softmax, predicted = logits.softmax(dim=1), logits.argmax(dim=1, keepdim=True)
    largest = softmax.amax(dim=1, keepdim=True)
    raised = torch.where(softmax.argmax(dim=1, keepdim=True) == predicted, largest, largest.nextafter(2 * largest))
    return softmax.scatter(1, predicted, raised)


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Compute the cross-entropy with the label, per sample: −log p_y, or −Σ_k y_k log p_k for a distribution y.

    Args:
        logits: [B, K].
        y: labels, int64 [B]; or probabilities, float32 [B, K].

    Returns:
        [B], float32, in nats.

    Raises:
        DataError: another type, shape or dtype, or on a CPU a label outside the classes; so for every loss.

    Example:
        >>> ce(torch.zeros(1, 2), torch.tensor([0]))   # log 2
        tensor([0.6931])
    """
    _check_logits("logits", logits)
    if isinstance(y, Tensor) and y.is_floating_point():
        check_same_shape("y", y, "logits", logits)
        return F.cross_entropy(logits.float(), y, reduction="none")
    check_labels(y, len(logits))
    try:
        return F.cross_entropy(logits.float(), y, reduction="none", ignore_index=_NO_LABEL)
    except IndexError:
        _check_labels_on_cpu(y, logits.shape[1])
        raise


def soft_ce(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the cross-entropy with a target distribution, per sample: −Σ_k q_k log p_k.

    Args:
        logits: [B, K].
        target: probabilities q, [B, K].

    Returns:
        [B], float32, in nats.

    Example:
        >>> soft_ce(torch.zeros(1, 2), torch.tensor([[0.3, 0.7]]))   # log 2
        tensor([0.6931])
    """
    _check_logits("logits", logits)
    check_same_shape("target", target, "logits", logits)
    return -(target.float() * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1)


def kl(prediction: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the KL divergence of the prediction from the target, per sample.

    t²·Σ_k p_k (log p_k − log q_k) with p = softmax(target / t), q = softmax(prediction / t).

    Args:
        prediction: logits, [B, K].
        target: logits, [B, K].
        temperature: t > 0.

    Returns:
        [B], float32, in nats, with a finite gradient towards both arguments even where a probability underflows.

    Example:
        >>> kl(torch.zeros(1, 2), torch.tensor([[0.0, 100.0]]))   # log 2
        tensor([0.6931])

    Reference: Hinton et al. 2015.
    """
    _check_logits("prediction", prediction)
    _check_logits("target", target)
    check_same_shape("target", target, "prediction", prediction)
    check_number("temperature", temperature, above=0)
    log_p = F.log_softmax(target.float() / temperature, dim=-1)
    log_q = F.log_softmax(prediction.float() / temperature, dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def soft_kl(prediction: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the KL divergence of the prediction from a fixed target distribution, per sample.

    t²·Σ_k q_k (log q_k − log p_k) with p = softmax(prediction / t); an entry q_k = 0 adds nothing.

    Args:
        prediction: logits, [B, K].
        target: probabilities q, [B, K], a constant that needs no gradient.
        temperature: t > 0; the target must already be at this temperature.

    Returns:
        [B], float32, in nats.

    Example:
        >>> soft_kl(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))   # log 2
        tensor([0.6931])
    """
    _check_logits("prediction", prediction)
    check_same_shape("target", target, "prediction", prediction)
    check_number("temperature", temperature, above=0)
    log_p = F.log_softmax(prediction.float() / temperature, dim=-1)
    target = target.float()
    log_q = target.clamp_min(torch.finfo(torch.float32).tiny).log()
    return temperature**2 * (target * (log_q - log_p)).sum(dim=-1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Compute the margin of the best wrong class over the label, per sample: max_{k≠y} z_k − z_y.

    Args:
        logits: z, [B, K], K ≥ 2.
        y: labels, int64 [B].

    Returns:
        [B], float32; positive where the prediction is wrong.

    Example:
        >>> margin(torch.tensor([[1.0, 3.0]]), torch.tensor([0]))
        tensor([2.])
    """
    _check_logits("logits", logits, num_classes=2)
    check_labels(y, len(logits))
    logits = logits.float()
    try:
        return _best_other_logit(logits, y) - _label_logit(logits, y)
    except RuntimeError:
        _check_labels_on_cpu(y, logits.shape[1])
        raise


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Compute the difference of logits ratio, per sample: −(z_y − max_{k≠y} z_k) / (z_(1) − z_(3)).

    z_(1) ≥ z_(2) ≥ z_(3) are the largest logits. The ratio is invariant to shift and scale of the logits.

    Args:
        logits: z, [B, K], K ≥ 3.
        y: labels, int64 [B].

    Returns:
        [B], float32; positive where the prediction is wrong.

    Example:
        >>> dlr(torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([0]))
        tensor([-0.5000])

    Reference: Croce and Hein 2020, eq. 6.
    """
    _check_logits("logits", logits, num_classes=3)
    logits = logits.float()
    largest = logits.topk(3, dim=-1).values
    return margin(logits, y) / (largest[:, 0] - largest[:, 2] + 1e-12)


def _check_logits(name: str, logits: Tensor, num_classes: int = 1) -> None:
    if not isinstance(logits, Tensor):
        check_tensor(name, logits, "logits [B,K]")
    if logits.ndim != 2 or logits.shape[1] < num_classes or not logits.is_floating_point():
        at_least = "" if num_classes == 1 else f" of at least {num_classes} classes"
        raise DataError(f"{name} is {describe(logits)}, expected floating-point logits [B,K]{at_least}")


def _check_labels_on_cpu(y: Tensor, num_classes: int) -> None:
    """Raise a DataError for labels outside the classes, after an error of torch; a GPU could no longer be asked."""
    if y.device.type == "cpu":
        check_label_range(y, num_classes)


def _label_logit(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def _best_other_logit(logits: Tensor, y: Tensor) -> Tensor:
    own = F.one_hot(y, logits.shape[-1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(dim=-1)
