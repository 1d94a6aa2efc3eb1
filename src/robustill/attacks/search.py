"""The model as an attack sees it: a light copy to search on, the real one to decide."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from robustill.losses import margin
from robustill.threat import Threat

Predict = Callable[[Tensor], Tensor]
"""Images [B,C,H,W] in [0,1] to logits [B,K]."""

LogitLoss = Callable[[Tensor], Tensor]
"""Logits [B,K] to one value a sample [B]; larger is worse for the defender."""

# A light copy may round a margin of zero to the other side: points this near to the boundary are put to the real model
# as well. Relative to the largest logit; the second is what bfloat16 loses in a ResNet.
_NEAR_FLOAT32 = 1e-5
_NEAR_BFLOAT16 = 2e-2


class Search:
    """Passes through a model, counted and timed.

    Args:
        predict: the real model; it alone confirms a success.
        threat: the images allowed.
        light: computes the same logits faster; None searches on the real model.
        rough: as `light`, in lower precision, for gradients only; None takes `light`.
        repeats: gradients are averaged over so many passes, for models that draw random numbers.
    """

    def __init__(
        self,
        predict: Predict,
        threat: Threat,
        *,
        light: Predict | None = None,
        rough: Predict | None = None,
        repeats: int = 1,
    ) -> None:
        self.real = predict
        self.threat = threat
        self.light = light or predict
        self.rough = rough or self.light
        self.is_rough = rough is not None
        self.repeats = repeats
        self.passes = 0
        self.seconds = 0.0
        self.on_pass: Callable[[], None] = lambda: None

    def logits(self, x: Tensor) -> Tensor:
        """[R,C,H,W] -> [R,K], float32, without a gradient."""
        with self.counted(len(x)), torch.no_grad():
            return self.light(x).float()

    def gradient(self, x: Tensor, loss: LogitLoss) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [R,K], losses [R] and the mean gradient [R,C,H,W] of each row's loss with respect to its image.

        With several repeats, logits and losses are those of the last.
        """
        total: Tensor | None = None
        for _ in range(self.repeats):
            with self.counted(2 * len(x)), torch.enable_grad():
                leaf = x.detach().requires_grad_(True)
                logits = self.rough(leaf).float()
                losses = loss(logits)
                (grad,) = torch.autograd.grad(losses.sum(), leaf)
            total = grad if total is None else total + grad
        assert total is not None
        return logits.detach(), losses.detach(), total if self.repeats == 1 else total / self.repeats

    def jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [R,K] and the gradient of each, [R,K,C,H,W]."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            with self.counted(len(x)):
                logits = self.rough(leaf).float()
            grads: list[Tensor] = []
            num_classes = logits.shape[1]
            for k in range(num_classes):
                with self.counted(len(x)):
                    grads += torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=k + 1 < num_classes)
        return logits.detach(), torch.stack(grads, dim=1)

    def near(self, margins: Tensor, logits: Tensor) -> Tensor:
        """Rows that the real model may misclassify, bool [R]: the margin is positive, or within rounding of it."""
        share = _NEAR_BFLOAT16 if self.is_rough else _NEAR_FLOAT32
        return margins >= -share * logits.abs().amax(dim=1)

    def confirm(self, x_adv: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows the real model misclassifies inside the threat, bool [R], and their margins [R]."""
        with self.counted(len(x)), torch.no_grad():
            logits = self.real(x_adv.contiguous())
        return (logits.argmax(dim=1) != y) & self.threat.contains(x_adv, x), margin(logits, y)

    @contextmanager
    def counted(self, rows: int) -> Iterator[None]:
        """Count and time what happens inside as passes of so many images."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
        self.passes += rows
        self.on_pass()
