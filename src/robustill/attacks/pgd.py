"""Projected gradient ascent on any per-sample loss, without knowledge of a model, label or teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from robustill.core.contract import check_images
from robustill.core.errors import ConfigError, ModelError, did_you_mean, first_line
from robustill.core.randomness import Generators, gaussian
from robustill.threat import Threat

LossFn = Callable[[Tensor], Tensor]
"""Images [B,C,H,W] to one value a sample [B]; larger is worse for the defender."""

Start = Literal["uniform", "gaussian", "clean"]
"""Where the ascent starts: uniform in the ball, x + 0.001·N(0,1) (TRADES), or x itself."""


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
    check: bool = True,
) -> Tensor:
    """Return images in the threat with a high loss, by projected gradient ascent.

    One step of size eps from "clean" is FGSM.

    x'_0 = start, x'_{i+1} = project(x'_i + step_size · ascent(∇ loss(x'_i))).

    No parameter receives a gradient, and the model stays in the mode that the caller put it in (see `evaluating`).

    Args:
        loss_fn: images [B,C,H,W] to [B].
        x: clean images in [0,1], [B,C,H,W].
        threat: the images allowed, or text such as "linf:8/255".
        steps: gradient steps, one forward and one backward pass each; 0 returns the start.
        step_size: in units of [0,1], times `threat.ascent`.
        start: see `Start`; or the points themselves, [B,C,H,W], inside the threat.
        restarts: number of independent starts; with more than one, the final point of the largest loss is returned for
            each sample, which takes one more forward pass a restart.
        generator: of the random start; one for the batch, or a sequence with one a sample.
        check: check the images, the loss and the result, which waits for the device; a caller that has checked its
            network may leave that out.

    Returns:
        [B,C,H,W], detached, inside the threat.

    Raises:
        ConfigError: restarts below 1, steps below 0, an unknown start, or no threat.
        DataError: the images hold values outside [0,1] or NaN.
        ModelError: the loss fails, is not finite or not one value a sample, changes the images, or has no gradient
            towards them.

    Example:
        >>> x = torch.full((1, 1, 1, 2), 0.5)
        >>> pgd(lambda z: z[:, 0, 0, 0] - z[:, 0, 0, 1], x, Threat(norm="linf", eps=0.1),
        ...     steps=1, step_size=0.1, start="clean")
        tensor([[[[0.6000, 0.4000]]]])

    Reference: Madry et al. 2018.
    """
    if restarts < 1 or steps < 0:
        raise ConfigError(f"pgd with {steps} steps and {restarts} restarts: expected at least 0 and at least 1")
    if not isinstance(start, Tensor) and start not in get_args(Start):
        raise ConfigError(f"start {start!r} is unknown: {did_you_mean(str(start), get_args(Start))}")
    x, threat = x.detach(), Threat.parse(threat)
    if check:
        check_images(x)
        loss_fn = _CheckedLoss(loss_fn)
    if restarts == 1:
        return _checked(_ascend(loss_fn, x, threat, steps, step_size, start, generator), check=check)
    best = x
    best_loss = torch.full((len(x),), -torch.inf, device=x.device)
    for _ in range(restarts):
        x_adv = _ascend(loss_fn, x, threat, steps, step_size, start, generator)
        with torch.no_grad():
            loss = loss_fn(x_adv)
        better = loss > best_loss
        best = torch.where(better[:, None, None, None], x_adv, best)
        best_loss = torch.where(better, loss, best_loss)
    return _checked(best, check=check)


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
        except Exception as error:  # A user's loss may raise anything.
            raise ModelError(f"the loss fails on images of shape {list(x.shape)}: {first_line(error)}") from error
        if not isinstance(loss, Tensor) or loss.shape != x.shape[:1]:
            found = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise ModelError(f"the loss returns {found}, expected one value an image, [{len(x)}]")
        if not torch.equal(x.detach(), images):
            raise ModelError(
                "the loss changes its images in place: let the network's forward begin with x = x.clone(), or leave "
                "the in-place operation out"
            )
        if not bool(loss.isfinite().all()):
            raise ModelError("the loss is NaN or infinite at the start of the attack: look at the network's logits")
        return loss


def _checked(x_adv: Tensor, *, check: bool) -> Tensor:
    """Return the adversarial images; NaN in them is an error, because no NaN is a point of the threat."""
    if check and not bool(x_adv.isfinite().all()):
        raise ModelError(
            "the attack ends in NaN: the loss has NaN or infinite gradients near these images, look for a root, a norm "
            "or a division at zero"
        )
    return x_adv


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
            loss = loss_fn(x_adv).sum()
            if not loss.requires_grad:
                raise ModelError("the loss has no gradient towards the images: a gradient attack would prove nothing")
            (grad,) = torch.autograd.grad(loss, x_adv)
        with torch.no_grad():
            x_adv = threat.project(x_adv + step_size * threat.ascent(grad), x)
    return x_adv.detach()


def _start(x: Tensor, threat: Threat, start: Start, generator: Generators | None) -> Tensor:
    if start == "clean":
        return x.clone()
    if start == "gaussian":
        return threat.project(x + 0.001 * gaussian(x, generator), x)
    return threat.start(x, generator)
