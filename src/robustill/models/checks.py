"""Checks of a network before it is trained, attacked or taught from."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustill.core.contexts import evaluating, frozen
from robustill.core.errors import ConfigError, ModelError, first_line
from robustill.losses import ce, margin


def check_network(model: nn.Module, x: Tensor, num_classes: int, label: str) -> None:
    """Check in one pass over a few images that a network returns finite logits of the right shape.

    Args:
        model: the network.
        x: images in [0,1], [B,C,H,W].
        num_classes: the expected K.
        label: how an error names the network, e.g. "teacher run:runs/t1@best".

    Raises:
        ModelError: the network fails on such images, returns something other than logits [B,K], or returns NaN.
    """
    try:
        with evaluating(model), torch.no_grad():
            logits = model(x)
    except Exception as error:  # A user's network may raise anything; each of them means that it fails on such images.
        raise ModelError(f"{label} fails on images of shape {list(x.shape)}: {first_line(error)}") from error
    if not isinstance(logits, Tensor):
        raise ModelError(f"{label} returns a {type(logits).__name__}, expected a tensor of logits [B,{num_classes}]")
    if logits.ndim == 2 and len(logits) == len(x) and logits.shape[1] != num_classes:
        raise ModelError(
            f"{label} gives {logits.shape[1]} logits, but the data has {num_classes} classes: "
            "expected as many; labels count from 0"
        )
    if logits.shape != (len(x), num_classes):
        raise ModelError(f"{label} returns shape {list(logits.shape)}, expected [{len(x)}, {num_classes}]")
    if not torch.isfinite(logits).all():
        raise ModelError(f"{label} returns NaN or infinite logits on clean images: its weights are damaged")


def check_single_image(model: nn.Module, x: Tensor, label: str, remedy: str) -> None:
    """Check that a network can be trained on a single image; BatchNorm on a 1x1 feature map cannot.

    Args:
        model: the network; it is left unchanged.
        x: one image, [1,C,H,W].
        label: how an error names the batch of one image.
        remedy: what an error tells the user to do.

    Raises:
        ConfigError: the network cannot be trained on it.
    """
    trial = copy.deepcopy(model).train()
    try:
        with torch.no_grad():
            trial(x)
    except ValueError as error:
        reason = first_line(error)
        raise ConfigError(
            f"{label} has one image, on which the student cannot be trained ({reason}): {remedy}"
        ) from None


def check_contract(model: nn.Module, x: Tensor, y: Tensor, num_classes: int, label: str) -> list[str]:
    """Check on a few images what an attack relies on.

    Args:
        model: the network, in the mode in which the user passed it.
        x: a few images in [0,1], [B,C,H,W].
        y: their labels, [B].
        num_classes: K.
        label: how errors and warnings name the network.

    Returns:
        Warnings about what makes the robust accuracy doubtful, each in one line with what to do; empty for a sound
        network.

    Raises:
        ModelError: the network cannot be evaluated: see `check_network`; or it changes its input, fails on a single
            image, or has a gradient that is missing or NaN.
    """
    was_training = any(module.training for module in model.modules())
    check_network(model, x, num_classes, label)
    warnings = []
    if was_training:
        warnings.append(f"{label} was in train mode; it is evaluated in eval mode: call model.eval() before passing it")
    with evaluating(model), frozen(model):
        with torch.no_grad():
            images = x.clone()
            output = model(images)
            if not torch.equal(images, x):
                raise ModelError(
                    f"{label} changes its input in place: let its forward begin with x = x.clone(), "
                    "or leave the in-place operation out"
                )
            logits, repeated = output.float(), model(x.clone()).float()
        # With fewer digits than float32, two equal computations are only approximately equal.
        rounding = 1e-4 if output.dtype == torch.float32 else 1e-2
        if output.dtype != torch.float32:
            warnings.append(f"{label} gives {output.dtype} logits, so margins are rounded: let it compute in float32")
        if _relative_difference(logits, repeated) > rounding:
            warnings.append(
                f"{label} draws random numbers: two passes over the same images differ; "
                "take --suite rand, which averages gradients, or switch the randomness off in eval mode"
            )
        else:
            warnings += _check_batch_dependence(model, x, logits, label, rounding)
        warnings += _check_for_probabilities(logits, label)
        warnings += _check_gradients(model, x, y, label)
    return warnings


def _relative_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the largest logit of `a`."""
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))


def _check_batch_dependence(model: nn.Module, x: Tensor, logits: Tensor, label: str, rounding: float) -> list[str]:
    """Warn if the logits of an image depend on the other images of the batch."""
    try:
        with torch.no_grad():
            single = model(x[:1].clone()).float()
    except Exception as error:  # As in check_network.
        raise ModelError(f"{label} fails on one image alone: {first_line(error)}") from error
    if _relative_difference(logits[:1], single) <= 10 * rounding:
        return []
    return [
        f"{label} gives an image other logits alone than in a batch, so its robust accuracy depends on the batch: "
        "look for BatchNorm without running statistics, or statistics over the batch"
    ]


def _check_for_probabilities(logits: Tensor, label: str) -> list[str]:
    """Warn if the outputs look like probabilities."""
    are_positive = bool((logits >= 0).all())
    sum_to_one = bool(((logits.sum(dim=1) - 1).abs() < 1e-3).all())
    if are_positive and sum_to_one:
        return [
            f"{label} returns probabilities, not logits, which weakens every attack on the cross-entropy: "
            "leave its last softmax out"
        ]
    return []


def _check_gradients(model: nn.Module, x: Tensor, y: Tensor, label: str) -> list[str]:
    """Warn if gradients vanish; raise ModelError if there are none, or NaN."""
    margin_norm = _gradient_norm(model, x, y, margin, label)
    ce_norm = _gradient_norm(model, x, y, ce, label)
    num_flat = int((margin_norm == 0).sum())
    if num_flat > 0:
        return [
            f"{label} has a gradient of zero on {num_flat} of {len(x)} images, where gradient attacks do not "
            "move: look for rounding, signs or thresholds, and rely on Square or a transfer attack rather than PGD"
        ]
    num_saturated = int((ce_norm == 0).sum())
    if 2 * num_saturated > len(x):
        return [
            f"{label} saturates the softmax on {num_saturated} of {len(x)} images: its cross-entropy has no gradient "
            "there; rely on attacks on the margin or DLR, and look for a scale on its logits"
        ]
    return []


def _gradient_norm(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor], label: str
) -> Tensor:
    """Compute the largest absolute value of the gradient of a loss with respect to each image, [B]."""
    leaf = x.clone().requires_grad_(True)
    with torch.enable_grad():
        value = loss(model(leaf), y).sum()
        if not value.requires_grad:
            raise ModelError(
                f"{label} has no gradient towards the images, so a gradient attack would prove nothing: "
                "look for detach(), no_grad() or numpy inside it"
            )
        (grad,) = torch.autograd.grad(value, leaf, materialize_grads=True)
    if not torch.isfinite(grad).all():
        raise ModelError(
            f"{label} has NaN or infinite gradients on clean images: look for a root, a norm or a division at zero"
        )
    return grad.flatten(1).abs().amax(dim=1)
