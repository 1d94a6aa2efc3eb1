"""Projected gradient ascent on any per-sample loss, without knowledge of a model, label or teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from robustill.core.device import is_out_of_memory
from robustill.core.errors import ConfigError, DataError, ModelError, RobustillError, first_line
from robustill.core.randomness import Generators, gaussian
from robustill.core.validation import (
    check_callable,
    check_choice,
    check_generators,
    check_images,
    check_integer,
    check_number,
    check_same_shape,
    describe,
)
from robustill.threat import Threat

LossFn = Callable[[Tensor], Tensor]
"""Images [B,C,H,W] to one value a sample [B]; larger is worse for the defender."""

Start = Literal["uniform", "gaussian", "clean"]
"""Where the ascent starts: uniform in the ball, x + 0.001·N(0,1) (TRADES), or x itself."""

ROUNDING = 1e-5
"""How far images may lie outside [0,1], since resizing and averaging round."""


def pgd(
    loss_fn: LossFn,
    x: Tensor,
    threat: Threat | str,
    *,
    steps: int,
    step_size: float,
    start: Start | Tensor = "uniform",
    restarts: int = 1,
    generator: Generators | None = None,
) -> Tensor:
    """Return images in the threat with a high loss, by projected gradient ascent.

    One step of size eps from "clean" is FGSM.

    x'_0 = start, x'_{i+1} = project(x'_i + step_size · ascent(∇ loss(x'_i))).

    No parameter receives a gradient, and the model stays in the mode that the caller put it in.

    Args:
        loss_fn: images [B,C,H,W] to [B].
        x: clean images in [0,1], [B,C,H,W].
        threat: the images allowed, or text such as "linf:8/255".
        steps: gradient steps, one forward and one backward pass each; 0 returns the start.
        step_size: in units of [0,1], times `threat.ascent`.
        start: "uniform" in the ball, "gaussian", x + 0.001·N(0,1) as in TRADES, or "clean", x itself; or the points
            themselves, [B,C,H,W], inside the threat.
        restarts: number of independent starts; with more than one, the final point of the largest loss is returned for
            each sample, which takes one more forward pass a restart.
        generator: of the random start; one for the batch, or a sequence with one a sample.

    Returns:
        [B,C,H,W], detached, inside the threat.

    Raises:
        ConfigError: an option has another type or is outside its range, an unknown start, or no threat.
        DataError: the images are no tensor of floating-point numbers in [0,1], or the start lies outside the threat.
        ModelError: the loss fails, is not finite or not one value a sample, changes the images, or has no gradient
            towards them.

    Example:
        >>> x = torch.full((1, 1, 1, 2), 0.5)
        >>> pgd(lambda z: z[:, 0, 0, 0] - z[:, 0, 0, 1], x, Threat(norm="linf", eps=0.1),
        ...     steps=1, step_size=0.1, start="clean")
        tensor([[[[0.6000, 0.4000]]]])

    Reference: Madry et al. 2018.
    """
    check_callable("loss_fn", loss_fn, "a function of the images, such as lambda z: robustill.losses.ce(model(z), y)")
    threat = Threat.parse(threat)
    check_images(x, values=True, rounding=ROUNDING)
    check_attack_settings(threat, steps, step_size)
    check_integer("restarts", restarts, at_least=1)
    check_generators("generator", generator, len(x), x.device)
    if isinstance(start, Tensor):
        _check_start(start, x, threat)
    else:
        check_choice("start", start, get_args(Start))
    try:
        x_adv = run_pgd(
            _CheckedLoss(loss_fn),
            x,
            threat,
            steps=steps,
            step_size=step_size,
            start=start,
            restarts=restarts,
            generator=generator,
        )
    except RobustillError:
        raise
    except Exception as error:  # A user's loss may raise anything.
        if is_out_of_memory(error):
            raise
        raise ModelError(f"the loss fails in the attack, forward or backward: {first_line(error)}") from error
    # No NaN is a point of the threat.
    if not bool(x_adv.isfinite().all()):
        raise ModelError(
            "the attack ends in NaN: the loss has NaN or infinite gradients near these images, look for a root, a norm "
            "or a division at zero"
        )
    return x_adv


def check_attack_settings(threat: Threat, steps: int, step_size: float) -> None:
    """Check the number and the size of the steps of an attack.

    Raises:
        ConfigError: they are no numbers of at least 0, or an l∞ step is longer than any two pixels are apart.
    """
    check_integer("steps", steps, at_least=0)
    check_number("step_size", step_size, at_least=0)
    if threat.norm == "linf" and step_size > 1:
        raise ConfigError(f"step_size is {step_size:g}, but images are in [0,1]: did you mean {step_size:g}/255?")


def check_noise(threat: Threat, start: Start | None) -> None:
    """Check that an attack of this threat can start from noise and go on without projection.

    Raises:
        ConfigError: it has another start, or its steps are made by the projection, as those of l1 are.
    """
    if start is not None:
        raise ConfigError(f"noise with the start {start}: an attack has one start, leave one of the two out")
    if threat.norm == "l1":
        raise ConfigError("noise with l1, whose steps need the projection: leave noise out, or take linf or l2")


def _check_start(start: Tensor, x: Tensor, threat: Threat) -> None:
    check_same_shape("start", start, "x", x)
    if start.dtype != x.dtype or start.device != x.device:
        raise DataError(f"start is {start.dtype} on {start.device}, expected {x.dtype} on {x.device}, as x is")
    outside = int((~threat.contains(start.detach(), x.detach().clamp(0, 1))).sum())
    if outside:
        raise DataError(f"start is outside {threat} for {outside} of {len(x)} images: project it with threat.project")


def run_pgd(
    loss_fn: LossFn,
    x: Tensor,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    start: Start | Tensor = "uniform",
    restarts: int = 1,
    generator: Generators | None = None,
) -> Tensor:
    """Return what `pgd` does for arguments and a network that were checked before, without waiting for a GPU.

    Raises:
        ModelError: the loss is not one value a sample, or has no gradient towards the images.
    """
    x = x.detach()
    if restarts == 1:
        return _ascend(loss_fn, x, threat, steps, step_size, start, generator)
    best = x
    best_loss = torch.full((len(x),), -torch.inf, device=x.device)
    for _ in range(restarts):
        x_adv = _ascend(loss_fn, x, threat, steps, step_size, start, generator)
        with torch.no_grad():
            loss = _losses(loss_fn, x_adv)
        better = loss > best_loss
        best = torch.where(better[:, None, None, None], x_adv, best)
        best_loss = torch.where(better, loss, best_loss)
    return best


def noisy_start(x: Tensor, threat: Threat, noise: float, generator: Generators | None = None) -> Tensor:
    """Return x with noise that is uniform in the ball of `noise` radii, in [0,1]."""
    return _ball(threat, noise * threat.eps).start(x, generator)


def within_reach(threat: Threat, noise: float, steps: int, step_size: float) -> Threat:
    """Return the ball that holds all points of an attack from a noisy start, so that no step is projected but to [0,1].

    Example:
        >>> str(within_reach(Threat(norm="linf", eps=0.1), noise=2, steps=1, step_size=0.1))
        'linf:0.3'
    """
    return _ball(threat, noise * threat.eps + steps * step_size)


def _ball(threat: Threat, eps: float) -> Threat:
    return Threat(norm=threat.norm, eps=min(eps, 1.0) if threat.norm == "linf" else eps)


class _CheckedLoss:
    """A loss whose values are checked in its first pass.

    Args:
        loss_fn: images [B,C,H,W] to [B].
    """

    def __init__(self, loss_fn: LossFn) -> None:
        self.loss_fn = loss_fn
        self.is_checked = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_checked:
            return self.loss_fn(x)
        self.is_checked = True
        images = x.detach().clone()
        try:
            loss = self.loss_fn(x)
        except RobustillError:
            raise
        except Exception as error:  # A user's loss may raise anything.
            if is_out_of_memory(error):
                raise
            raise ModelError(f"the loss fails on images of shape {list(x.shape)}: {first_line(error)}") from error
        if not torch.equal(x.detach(), images):
            raise ModelError(
                "the loss changes its images in place: let the network's forward begin with x = x.clone(), or leave "
                "the in-place operation out"
            )
        if isinstance(loss, Tensor) and not bool(loss.isfinite().all()):
            raise ModelError("the loss is NaN or infinite at the start of the attack: look at the network's logits")
        return loss


def _ascend(
    loss_fn: LossFn,
    x: Tensor,
    threat: Threat,
    steps: int,
    step_size: float,
    start: Start | Tensor,
    generator: Generators | None,
) -> Tensor:
    x_adv = start if isinstance(start, Tensor) else _start(x, threat, start, generator)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        with torch.enable_grad():
            # Samples are independent, so the gradient of the sum is each sample's own.
            loss = _losses(loss_fn, x_adv).sum()
            if not loss.requires_grad:
                raise ModelError("the loss has no gradient towards the images: a gradient attack would prove nothing")
            (grad,) = torch.autograd.grad(loss, x_adv)
        with torch.no_grad():
            x_adv = threat.project(x_adv + step_size * threat.ascent(grad), x)
    return x_adv.detach()


def _losses(loss_fn: LossFn, x: Tensor) -> Tensor:
    """Return the loss of each image, [B]; its shape is checked, which does not wait for a GPU."""
    losses = loss_fn(x)
    if not isinstance(losses, Tensor) or losses.shape != x.shape[:1]:
        raise ModelError(
            f"loss_fn returns {describe(losses)}, expected one value for each image, [{len(x)}]: "
            'leave the mean out, e.g. with reduction="none"'
        )
    return losses


def _start(x: Tensor, threat: Threat, start: Start, generator: Generators | None) -> Tensor:
    if start == "clean":
        return x.clone()
    if start == "gaussian":
        return threat.project(x + 0.001 * gaussian(x, generator), x)
    return threat.start(x, generator)
