"""The contract of a network, images [B,C,H,W] in [0,1] to finite logits [B,K], checked before the network is used.

A network is tried on a few images, once, before it is trained, attacked, exported or taught from: in eval mode, with
one image alone and with a gradient towards the images; a student also in train mode, with a gradient of its weights.
It is left unchanged, and the random numbers of torch are those that would be drawn without the check.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from robustill.core.contexts import evaluating, frozen, preserving_buffers
from robustill.core.errors import ConfigError, ModelError, first_line

Network = Callable[[Tensor], Tensor]
"""A module, or any function: images [B,C,H,W] in [0,1] to logits [B,K]."""

# Layers after which outputs are probabilities, or other bounded values, by the names of their gradients.
_BOUNDING = {
    "SoftmaxBackward0": "a softmax",
    "SigmoidBackward0": "a sigmoid",
    "HardsigmoidBackward0": "a sigmoid",
    "TanhBackward0": "a tanh",
    "HardtanhBackward0": "a clamp",
    "ClampBackward1": "a clamp",
}
_IN_PLACE = "let its forward begin with x = x.clone(), or leave the in-place operation out"


def check_network(
    model: Network, x: Tensor, num_classes: int | None, label: str, *, differentiable: bool = False
) -> list[str]:
    """Check on a few images, in eval mode, that a network returns finite logits of the right shape.

    Args:
        model: the network, in any mode.
        x: images in [0,1], [B,C,H,W].
        num_classes: the expected K; None accepts any of at least 2.
        label: how an error names the network, e.g. "teacher run:runs/t1@best".
        differentiable: whether a gradient must reach the images.

    Returns:
        Warnings of one line each: outputs that are bounded, such as probabilities.

    Raises:
        ModelError: the network fails on such images or on one of them alone, changes them, returns something other
            than logits [B,K], returns NaN, or has no gradient where one is needed.
    """
    check_weights_exist(model, label)
    with _trying(model, x):
        images = x.clone()
        with torch.no_grad():
            logits = _outputs(model, images, label)
        _check_unchanged(images, x, label)
        _check_logits(logits, x, num_classes, label)
        with torch.no_grad():
            try:
                single = model(x[:1].clone())
            except Exception as error:  # As in _outputs.
                raise ModelError(f"{label} fails on one image alone: {first_line(error)}") from error
        if not isinstance(single, Tensor) or single.shape != logits[:1].shape:
            raise ModelError(
                f"{label} returns {_describe(single)} for one image alone, expected {list(logits[:1].shape)}: "
                "look for squeeze()"
            )
        output = _differentiable_outputs(model, x, label) if differentiable else _traced_outputs(model, x, logits)
    return _probability_warnings(output, label)


def check_training(model: nn.Module, x: Tensor, num_classes: int, label: str) -> None:
    """Check on a few images that a network can be trained, in the mode that each of its modules is in.

    Args:
        model: the network.
        x: images in [0,1], [B,C,H,W].
        num_classes: the expected K.
        label: how an error names the network.

    Raises:
        ModelError: it fails on such images, changes them, returns something other than finite logits [B,K], has no
            weights to train, or its weights get no gradient, or NaN; or a buffer cannot be written to.
    """
    check_weights_exist(model, label)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        raise ModelError(f"{label} has no weights to train: call requires_grad_(True) on those that are to learn")
    for name, buffer in model.named_buffers():
        if torch._debug_has_internal_overlap(buffer) == 1:
            raise ModelError(f"{label} has an expanded buffer, {name}, which cannot be restored: register its clone()")
    label = f"{label} in train mode" if model.training else label
    with preserving_random_numbers(x.device), preserving_buffers(model), torch.enable_grad():
        images = x.clone()
        logits = _outputs(model, images, label)
        _check_unchanged(images, x, label)
        _check_logits(logits, x, num_classes, label)
        if not logits.requires_grad:
            raise ModelError(f"{label} gives its weights no gradient: look for detach(), no_grad() or numpy inside it")
        try:
            grads = torch.autograd.grad(logits.float().logsumexp(dim=1).sum(), weights, allow_unused=True)
        except Exception as error:  # As in _outputs.
            raise ModelError(f"{label} fails in its backward pass: {first_line(error)}") from error
    if all(grad is None for grad in grads):
        raise ModelError(f"{label} gives its weights no gradient: its outputs do not depend on them")
    if not all(bool(grad.isfinite().all()) for grad in grads if grad is not None):
        raise ModelError(f"{label} has NaN or infinite gradients of its weights on clean images")


def check_state(model: nn.Module, label: str) -> None:
    """Check that the state of a network consists of tensors, so that a checkpoint can hold it.

    Raises:
        ModelError: it has an extra state.
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{label} has a {type(value).__name__} in its state, {name}, which no checkpoint can hold: "
                "keep it out of get_extra_state(), or register it as a buffer"
            )


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
    except Exception as error:  # A ValueError of BatchNorm, which a ScriptModule wraps in an error of its own.
        reason = first_line(error)
        raise ConfigError(
            f"{label} has one image, on which the student cannot be trained ({reason}): {remedy}"
        ) from None


def check_contract(model: Network, x: Tensor, y: Tensor, num_classes: int, label: str) -> list[str]:
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
        ModelError: the network cannot be evaluated: see `check_network`; or it has a gradient that is missing or NaN.
    """
    was_training = any(module.training for each in _modules(model) for module in each.modules())
    bounded = check_network(model, x, num_classes, label, differentiable=True)
    warnings = []
    if was_training:
        warnings.append(f"{label} was in train mode; it is evaluated in eval mode: call model.eval() before passing it")
    with _trying(model, x):
        with torch.no_grad():
            output, single = model(x.clone()), model(x[:1].clone()).float()
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
        elif _relative_difference(logits[:1], single) > 10 * rounding:
            warnings.append(
                f"{label} gives an image other logits alone than in a batch, so its robust accuracy depends on the "
                "batch: look for BatchNorm without running statistics, or statistics over the batch"
            )
        warnings += bounded
        warnings += _check_gradients(model, x, y, label)
    return warnings


@contextmanager
def preserving_random_numbers(device: torch.device) -> Iterator[None]:
    """Restore the state of torch's random numbers afterwards, also after an exception."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _modules(model: Network) -> list[nn.Module]:
    return [model] if isinstance(model, nn.Module) else []


@contextmanager
def _trying(model: Network, x: Tensor) -> Iterator[None]:
    """Put a network in eval mode without gradients of its weights; it and the random numbers are restored."""
    modules = _modules(model)
    with ExitStack() as stack:
        stack.enter_context(evaluating(*modules))
        stack.enter_context(frozen(*modules))
        stack.enter_context(preserving_random_numbers(x.device))
        yield


def check_weights_exist(model: Network, label: str) -> None:
    """Check that a network has no lazy layers without weights, which cannot even be moved to a device.

    Raises:
        ModelError: it has.
    """
    for each in _modules(model):
        if any(is_lazy(tensor) for tensor in (*each.parameters(), *each.buffers())):
            raise ModelError(
                f"{label} has lazy layers, whose weights do not exist yet: call it once on a batch of images before"
            )


def _outputs(model: Network, images: Tensor, label: str) -> Tensor:
    try:
        return model(images)
    except Exception as error:  # A user's network may raise anything; each of them means that it fails on such images.
        raise ModelError(f"{label} fails on images of shape {list(images.shape)}: {first_line(error)}") from error


def _check_unchanged(images: Tensor, x: Tensor, label: str) -> None:
    if not torch.equal(images, x):
        raise ModelError(f"{label} changes its input in place: {_IN_PLACE}")


def _check_logits(logits: Tensor, x: Tensor, num_classes: int | None, label: str) -> None:
    """Raise ModelError unless these are finite logits [B,K]."""
    K = "K" if num_classes is None else num_classes
    if not isinstance(logits, Tensor):
        raise ModelError(f"{label} returns a {type(logits).__name__}, expected a tensor of logits [B,{K}]")
    is_batch = logits.ndim == 2 and len(logits) == len(x)
    if is_batch and num_classes is not None and logits.shape[1] != num_classes:
        raise ModelError(
            f"{label} gives {logits.shape[1]} logits, but the data has {num_classes} classes: "
            "expected as many; labels count from 0"
        )
    if not is_batch or logits.shape[1] < 2:
        raise ModelError(f"{label} returns shape {list(logits.shape)}, expected [{len(x)}, {K}] with K of at least 2")
    if not logits.is_floating_point():
        raise ModelError(f"{label} returns {logits.dtype}, expected logits of floating point: leave its argmax out")
    if not torch.isfinite(logits).all():
        raise ModelError(f"{label} returns NaN or infinite logits on clean images: its weights are damaged")


def _describe(output: object) -> str:
    return f"shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _differentiable_outputs(model: Network, x: Tensor, label: str) -> Tensor:
    """Return the outputs, after checking that a finite gradient reaches the images."""
    leaf = x.clone().requires_grad_(True)
    with torch.enable_grad():
        try:
            output = model(leaf)
        except Exception as error:  # As in _outputs.
            if "in-place" in str(error):
                raise ModelError(f"{label} changes its input in place: {_IN_PLACE}") from error
            raise ModelError(f"{label} fails on images that need a gradient: {first_line(error)}") from error
        if not torch.equal(leaf, x):
            raise ModelError(f"{label} changes its input in place: {_IN_PLACE}")
        _gradient(output.float().logsumexp(dim=1), leaf, label)
    return output


def _traced_outputs(model: Network, x: Tensor, logits: Tensor) -> Tensor:
    """Return the outputs with the graph that led to them, or the given logits where there is no graph."""
    with torch.enable_grad():
        try:
            return model(x.clone().requires_grad_(True))
        except Exception:  # Such a network need not have a gradient.
            return logits


def _gradient(values: Tensor, leaf: Tensor, label: str) -> Tensor:
    """Return the gradient of per-sample values with respect to the images."""
    if not values.requires_grad:
        raise ModelError(
            f"{label} has no gradient towards the images, so a gradient attack would prove nothing: "
            "look for detach(), no_grad() or numpy inside it"
        )
    try:
        (grad,) = torch.autograd.grad(values.sum(), leaf, materialize_grads=True)
    except Exception as error:  # As in _outputs.
        raise ModelError(f"{label} fails in its backward pass: {first_line(error)}") from error
    if not torch.isfinite(grad).all():
        raise ModelError(
            f"{label} has NaN or infinite gradients on clean images: look for a root, a norm or a division at zero"
        )
    return grad


def _relative_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the largest logit of `a`."""
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))


def _probability_warnings(logits: Tensor, label: str) -> list[str]:
    """Warn if the outputs are probabilities, or bounded by a sigmoid or a tanh."""
    layer = type(logits.grad_fn).__name__
    bounding = _BOUNDING.get(layer)
    # TorchScript and functions without a gradient hide the last layer; the values of an untrained network may lie in
    # [0,1] by chance, so few of them tell nothing.
    is_hidden = (logits.grad_fn is None or "Graph" in layer or layer == "CppFunction") and logits.numel() >= 64
    logits = logits.detach().float()
    is_positive = bool((logits >= 0).all())
    if is_positive and len(logits) > 1 and bool(((logits.sum(dim=1) - 1).abs() < 1e-3).all()):
        bounding = "a softmax"
    if bounding == "a softmax":
        return [
            f"{label} returns probabilities, not logits, which weakens every attack on the cross-entropy: "
            "leave its last softmax out"
        ]
    if bounding is None and is_hidden and is_positive and bool((logits <= 1).all()) and bool((logits > 0).any()):
        bounding = "a sigmoid"
    if bounding is not None:
        return [
            f"{label} returns bounded values (as of {bounding}), not logits, which weakens attacks and flattens its "
            "probabilities: leave its last layer, the bound, out"
        ]
    return []


def _check_gradients(model: Network, x: Tensor, y: Tensor, label: str) -> list[str]:
    """Warn if gradients vanish; raise ModelError if there are none, or NaN."""
    num_flat = int((_gradient_norm(model, x, y, _margin, label) == 0).sum())
    ce_norm = _gradient_norm(model, x, y, _cross_entropy, label)
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
    model: Network, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor], label: str
) -> Tensor:
    """Compute the largest absolute value of the gradient of a loss with respect to each image, [B]."""
    leaf = x.clone().requires_grad_(True)
    with torch.enable_grad():
        grad = _gradient(loss(model(leaf).float(), y), leaf, label)
    return grad.flatten(1).abs().amax(dim=1)


# `robustill.losses` stands on this package, so its two losses are written again here.


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    others = logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf)
    return others.amax(dim=1) - logits.gather(1, y[:, None]).squeeze(1)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")
