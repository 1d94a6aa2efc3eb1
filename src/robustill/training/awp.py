"""Adversarial weight perturbation: the loss is taken a little way up its own slope, in the space of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustill.core.distributed import all_reduce
from robustill.methods.base import Network


def perturb_weights(student: nn.Module, losses: Iterable[Callable[[Network], Tensor]], gamma: float) -> Network:
    """The student at weights w + γ·‖w‖·g/‖g‖, g = ∇_w Σ losses, for each weight of more than one dimension.

    The student keeps its own weights: they are never overwritten, and a loss of what comes back has its gradient, taken
    at the perturbed weights, on the student's own. A weight whose gradient is zero, that requires none or that has one
    dimension, as BatchNorm's and biases, stays where it is.

    Args:
        student: the network; its buffers move as often as `losses` move them (see `preserving_buffers`).
        losses: from a network to a scalar; their sum is climbed, over all processes of a training.
        gamma: γ ≥ 0, relative to the length of each weight; 0.005 to 0.01 are usual.

    Returns:
        Images to logits; it shares the student's buffers, mode and hooks.

    Example:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> _ = student.weight.data.fill_(2.0)
        >>> uphill(student, [lambda network: network(torch.ones(1, 1)).sum()], gamma=0.1)(torch.ones(1, 1))
        tensor([[2.2000]], grad_fn=<MmBackward0>)

    Reference: Wu et al. 2020, Adversarial weight perturbation helps robust generalization.
    """
    weights = {name: each for name, each in student.named_parameters() if each.ndim > 1 and each.requires_grad}
    slopes = [torch.zeros_like(each) for each in weights.values()]
    for loss in losses:
        found = torch.autograd.grad(loss(student), list(weights.values()), allow_unused=True)
        for slope, part in zip(slopes, found, strict=True):
            if part is not None:
                slope.add_(part)
    slopes = [all_reduce(slope) for slope in slopes]
    moved = {}
    for (name, weight), slope in zip(weights.items(), slopes, strict=True):
        # Its largest entry becomes 1, lest the squares of small ones vanish; a slope of zero gives a step of zero.
        slope = slope / slope.abs().amax().clamp_min(torch.finfo(slope.dtype).tiny)
        scale = gamma * weight.detach().norm() / slope.norm().clamp_min(1)
        moved[name] = weight + scale * slope

    def network(x: Tensor) -> Tensor:
        logits: Tensor = functional_call(student, moved, (x,))
        return logits

    return network
