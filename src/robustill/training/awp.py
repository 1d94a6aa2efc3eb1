"""Adversarial weight perturbation: the loss is computed at weights moved a little along its own gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustill.core.distributed import all_reduce
from robustill.methods.base import Network


def perturb_weights(student: nn.Module, losses: Iterable[Callable[[Network], Tensor]], gamma: float) -> Network:
    """Return the student at weights w + γ·‖w‖·g/‖g‖ with g = ∇_w Σ losses, for each weight of two dimensions or more.

    The student's own weights are not changed, and the gradient of a loss of the returned network, taken at the
    perturbed weights, is that of the student's own weights. Weights of one dimension (biases and BatchNorm's), weights
    that require no gradient, and weights whose gradient is zero are not perturbed.

    Args:
        student: the network; `losses` update its buffers unless the caller prevents it (see `preserving_buffers`).
        losses: functions from a network to a scalar; the perturbation increases their sum over all processes.
        gamma: γ ≥ 0, relative to the norm of each weight; 0.005 to 0.01 are usual.

    Returns:
        A function from images to logits, which shares the student's buffers, mode and hooks.

    Example:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> _ = student.weight.data.fill_(2.0)
        >>> perturb_weights(student, [lambda network: network(torch.ones(1, 1)).sum()], gamma=0.1)(torch.ones(1, 1))
        tensor([[2.2000]], grad_fn=<MmBackward0>)

    Reference: Wu et al. 2020, Adversarial weight perturbation helps robust generalization.
    """
    weights = {name: each for name, each in student.named_parameters() if each.ndim > 1 and each.requires_grad}
    gradients = [torch.zeros_like(each) for each in weights.values()]
    for loss in losses:
        parts = torch.autograd.grad(loss(student), list(weights.values()), allow_unused=True)
        for gradient, part in zip(gradients, parts, strict=True):
            if part is not None:
                gradient.add_(part)
    gradients = [all_reduce(gradient) for gradient in gradients]
    perturbed = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        # Scaled to a largest entry of 1, so that the squares of small entries do not underflow; a gradient of zero
        # gives a perturbation of zero.
        gradient = gradient / gradient.abs().amax().clamp_min(torch.finfo(gradient.dtype).tiny)
        scale = gamma * weight.detach().norm() / gradient.norm().clamp_min(1)
        perturbed[name] = weight + scale * gradient

    def network(x: Tensor) -> Tensor:
        logits: Tensor = functional_call(student, perturbed, (x,))
        return logits

    return network
