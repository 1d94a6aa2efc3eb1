"""The model during an attack: fast copies to search with, the model itself to confirm successes; passes are counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from robustill.core.errors import ModelError
from robustill.losses import margin
from robustill.threat import Threat

Predict = Callable[[Tensor], Tensor]
"""Images [B,C,H,W] in [0,1] to logits [B,K]."""

LogitLoss = Callable[[Tensor], Tensor]
"""Logits [B,K] to one value a sample [B]; larger is worse for the defender."""

# A copy may round a margin of zero to either side: points whose margin is this close to zero, as a share of the largest
# logit, are confirmed by the model too. The second is the rounding of bfloat16 in a ResNet.
_TOLERANCE_FLOAT32 = 1e-5
_TOLERANCE_BFLOAT16 = 2e-2


class Search:
    """Passes through a model, counted and timed.

    Args:
        predict: the model itself; it alone confirms a success.
        threat: the images allowed.
        folded: computes the same logits in less time; None searches with the model itself.
        bf16: computes them in lower precision, for gradients only; None takes `folded`.
        repeats: number of gradients that are averaged, for models that draw random numbers.
    """

    def __init__(
        self,
        predict: Predict,
        threat: Threat,
        *,
        folded: Predict | None = None,
        bf16: Predict | None = None,
        repeats: int = 1,
    ) -> None:
        self.predict = predict
        self.threat = threat
        self.folded = folded or predict
        self.for_gradients = bf16 or self.folded
        self.tolerance = _TOLERANCE_FLOAT32 if bf16 is None else _TOLERANCE_BFLOAT16
        self.repeats = repeats
        self.passes = 0
        self.seconds = 0.0
        self.on_pass: Callable[[], None] = lambda: None
        # Whether all logits so far were finite, on the device; reading it would wait for the device.
        self._finite: Tensor | None = None

    def logits(self, x: Tensor, *, watch: bool = True) -> Tensor:
        """Return logits without a gradient, [R,C,H,W] -> float32 [R,K]; see `gradient` for `watch`."""
        with self.counting(len(x)), torch.no_grad():
            logits = self.folded(x).float()
        return self.watch(logits) if watch else logits

    def watch(self, logits: Tensor) -> Tensor:
        """Return logits [R,K] of images inside the threat, and remember whether they are finite."""
        finite = logits.detach().isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        return logits

    def check_finite(self) -> None:
        """Check that the watched logits were finite.

        Raises:
            ModelError: some were not. They can count neither as a success nor as a failure: the failure would make a
                broken model look robust.
        """
        if self._finite is not None and not bool(self._finite):
            raise ModelError(
                "the model gives NaN or infinite logits or gradients on images of the attack, although its clean "
                "logits are finite: look for a root, a norm, a logarithm or a division at zero"
            )

    def gradient(self, x: Tensor, loss: LogitLoss, *, watch: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [R,K], losses [R] and the mean gradient [R,C,H,W] of each row's loss towards its image.

        With several repeats, logits and losses are those of the last one. Images that may lie outside the threat, where
        a model need not be finite, are not watched.
        """
        total: Tensor | None = None
        for _ in range(self.repeats):
            with self.counting(2 * len(x)), torch.enable_grad():
                leaf = x.detach().requires_grad_(True)
                logits = self.for_gradients(leaf).float()
                if watch:
                    self.watch(logits)
                losses = loss(logits)
                (grad,) = torch.autograd.grad(losses.sum(), leaf)
            total = grad if total is None else total + grad
        assert total is not None
        return logits.detach(), losses.detach(), total if self.repeats == 1 else total / self.repeats

    def jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [R,K] and the gradient of each, [R,K,C,H,W]."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            with self.counting(len(x)):
                logits = self.for_gradients(leaf).float()
            grads: list[Tensor] = []
            num_classes = logits.shape[1]
            for k in range(num_classes):
                with self.counting(len(x)):
                    grads += torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=k + 1 < num_classes)
        return logits.detach(), torch.stack(grads, dim=1)

    def is_candidate(self, margins: Tensor, logits: Tensor) -> Tensor:
        """Return which rows the model may misclassify, bool [R]: a margin is above zero, or within rounding of it."""
        return margins >= -self.tolerance * logits.abs().amax(dim=1)

    def confirm(self, x_adv: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return which rows the model misclassifies inside the threat, bool [R], and their margins [R]."""
        with self.counting(len(x)), torch.no_grad():
            logits = self.watch(self.predict(x_adv.contiguous()))
        return (logits.argmax(dim=1) != y) & self.threat.contains(x_adv, x), margin(logits, y)

    @contextmanager
    def counting(self, images: int) -> Iterator[None]:
        """Count and time the passes made inside, of so many images."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
        self.passes += images
        self.on_pass()
