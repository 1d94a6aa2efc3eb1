"""Is this a network that can be attacked and taught from?"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from robustill.core.contexts import evaluating, frozen
from robustill.core.errors import ConfigError, ModelError, first_line
from robustill.losses import ce, margin


def check_network(model: nn.Module, x: Tensor, num_classes: int, what: str) -> None:
    """One pass over a few images, before hours are spent.

    Args:
        model: the network.
        x: images in [0,1], [B,C,H,W].
        num_classes: K that is expected.
        what: how an error names the network, e.g. "teacher run:runs/t1@best".

    Raises:
        ModelError: it fails on such images, gives something else than logits [B,K], or gives NaN.
    """
    try:
        with evaluating(model), torch.no_grad():
            logits = model(x)
    except Exception as error:  # Somebody's own network: whatever it raises, it fails on such images.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{what} fails on images of shape {list(x.shape)}: {reason}") from error
    if not isinstance(logits, Tensor):
        raise ModelError(f"{what} returns a {type(logits).__name__}, expected a tensor of logits [B,{num_classes}]")
    if logits.ndim == 2 and len(logits) == len(x) and logits.shape[1] != num_classes:
        raise ModelError(
            f"{what} gives {logits.shape[1]} logits, but the data has {num_classes} classes: "
            "expected as many; labels count from 0"
        )
    if logits.shape != (len(x), num_classes):
        raise ModelError(f"{what} returns shape {list(logits.shape)}, expected [{len(x)}, {num_classes}]")
    if not torch.isfinite(logits).all():
        raise ModelError(f"{what} returns NaN or infinite logits on clean images: its weights are damaged")


def check_single_image(model: nn.Module, x: Tensor, what: str, mend: str) -> None:
    """That a network can be trained on one image alone, which BatchNorm after the last pixels cannot.

    Args:
        model: the network; left as it is.
        x: one image, [1,C,H,W].
        what: how an error says where one image comes from.
        mend: what it says to do.

    Raises:
        ConfigError: it cannot.
    """
    alone = copy.deepcopy(model).train()
    try:
        with torch.no_grad():
            alone(x)
    except ValueError as error:
        reason = first_line(error)
        raise ConfigError(f"{what} has one image, on which the student cannot be trained ({reason}): {mend}") from None


def check_contract(model: nn.Module, x: Tensor, y: Tensor, num_classes: int, what: str) -> list[str]:
    """What an attack relies on, tried on a few images before hours are spent.

    Args:
        model: the network, in the mode it was handed over in.
        x: images in [0,1], [B,C,H,W], a few.
        y: their labels, [B].
        num_classes: K.
        what: how an error names the network.

    Returns:
        What makes its robust accuracy doubtful, each in one line with what to do; empty for a sound network.

    Raises:
        ModelError: no number could come of it: see `check_network`; it changes its input, fails on one image alone, or
            its gradient is missing or NaN.
    """
    training = any(module.training for module in model.modules())
    check_network(model, x, num_classes, what)
    found = []
    if training:
        found.append(f"{what} was in train mode; it is judged in eval mode: call model.eval() before handing it over")
    with evaluating(model), frozen(model):
        with torch.no_grad():
            given = x.clone()
            raw = model(given)
            if not torch.equal(given, x):
                raise ModelError(
                    f"{what} changes its input in place: let its forward begin with x = x.clone(), "
                    "or leave the in-place operation out"
                )
            first, second = raw.float(), model(x.clone()).float()
        # Of what rounds to fewer digits than float32, twice the same is only nearly the same.
        rounding = 1e-4 if raw.dtype == torch.float32 else 1e-2
        if raw.dtype != torch.float32:
            found.append(f"{what} gives {raw.dtype} logits, so margins are rounded: let it compute in float32")
        if _apart(first, second) > rounding:
            found.append(
                f"{what} draws random numbers: two passes over the same images differ; "
                "take --suite rand, which averages gradients, or switch the randomness off in eval mode"
            )
        else:
            found += _dependence(model, x, first, what, rounding)
        found += _probabilities(first, what)
        found += _gradients(model, x, y, what)
    return found


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))


def _dependence(model: nn.Module, x: Tensor, together: Tensor, what: str, rounding: float) -> list[str]:
    try:
        with torch.no_grad():
            alone = model(x[:1].clone()).float()
    except Exception as error:  # As in check_network.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{what} fails on one image alone: {reason}") from error
    if _apart(together[:1], alone) <= 10 * rounding:
        return []
    return [
        f"{what} gives an image other logits alone than beside others, so its robust accuracy depends on the batch: "
        "look for BatchNorm without running statistics, or statistics over the batch"
    ]


def _probabilities(logits: Tensor, what: str) -> list[str]:
    if bool((logits >= 0).all()) and bool(((logits.sum(dim=1) - 1).abs() < 1e-3).all()):
        return [
            f"{what} returns probabilities, not logits, which weakens every attack on the cross-entropy: "
            "leave its last softmax out"
        ]
    return []


def _gradients(model: nn.Module, x: Tensor, y: Tensor, what: str) -> list[str]:
    largest = {}
    for loss in (margin, ce):
        leaf = x.clone().requires_grad_(True)
        with torch.enable_grad():
            value = loss(model(leaf), y).sum()
            if not value.requires_grad:
                raise ModelError(
                    f"{what} has no gradient towards the images, so a gradient attack would prove nothing: "
                    "look for detach(), no_grad() or numpy inside it"
                )
            (grad,) = torch.autograd.grad(value, leaf, materialize_grads=True)
        if not torch.isfinite(grad).all():
            raise ModelError(
                f"{what} has NaN or infinite gradients on clean images: look for a root, a norm or a division at zero"
            )
        largest[loss] = grad.flatten(1).abs().amax(dim=1)
    flat = int((largest[margin] == 0).sum())
    if flat:
        return [
            f"{what} has a gradient of zero on {flat} of {len(x)} images, where gradient attacks stand still: "
            "look for rounding, signs or thresholds, and believe Square or a transfer attack rather than PGD"
        ]
    saturated = int((largest[ce] == 0).sum())
    if 2 * saturated > len(x):
        return [
            f"{what} saturates the softmax on {saturated} of {len(x)} images: its cross-entropy has no gradient there; "
            "believe attacks on the margin or DLR, and look for a scale on its logits"
        ]
    return []
