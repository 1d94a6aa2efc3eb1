"""The attack at whose images calibration is compared: one fixed PGD on every image, the same in all suites.

The image that an evaluation keeps is of whichever attack broke it first, so that the confidence in it depends on the
suite. This attack depends on the network, the image and the threat alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import run_pgd
from robustill.attacks.suites import PGDStage
from robustill.core.contract import preserving_random_numbers
from robustill.core.errors import ModelError
from robustill.core.randomness import generator
from robustill.losses import ce, probabilities
from robustill.threat import Threat

ATTACK = PGDStage(name="pgd-10", loss=ce, steps=10, restarts=1)
"""The attack; its step size is a quarter of eps."""
_SEED = 0


class CalibrationAttack:
    """The fixed attack on one model, which must be in eval mode and have a gradient.

    The start of an image depends on the threat and on its id alone. Torch's random numbers are restored, so that the
    other attacks on a model that draws some are what they are without this one.

    Args:
        model: images to logits.
        threat: the images that the adversary may choose.
        batch_size: images at a time.
    """

    passes_per_image = 2 * ATTACK.steps + 1
    """Passes through the model, forward or backward, of each image."""

    def __init__(self, model: nn.Module, threat: Threat, batch_size: int) -> None:
        self.model, self.threat, self.batch_size = model, threat, batch_size

    def describe(self) -> dict[str, Any]:
        """Return its settings as recorded in the conditions of an evaluation."""
        return {**ATTACK.describe(self.threat), "seed": _SEED}

    @torch.no_grad()
    def attack(self, x: Tensor, y: Tensor, ids: Tensor, report: Callable[[int], None]) -> Tensor:
        """Attack every image, with all steps; return the model's probabilities at the last images, [B,K].

        Args:
            x: [B,C,H,W] in [0,1].
            y: labels, [B].
            ids: the images' ids in the data set, [B], on the CPU.
            report: called with the number of images of each batch when it is attacked.

        Raises:
            ModelError: NaN or infinite logits.
        """
        found = []
        with preserving_random_numbers(x.device):
            for chunk in torch.split(torch.arange(len(x)), self.batch_size):
                # channels_last is faster, and indexing the batch loses it.
                images = x[chunk].contiguous(memory_format=torch.channels_last)
                found.append(probabilities(self._logits(images, y[chunk], ids[chunk])))
                report(len(chunk))
        return torch.cat(found)

    def _logits(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        x_adv = run_pgd(
            lambda z: ATTACK.loss(self.model(z), y),
            x,
            self.threat,
            steps=ATTACK.steps,
            step_size=self.threat.eps / 4,
            generator=[generator(_SEED, ATTACK.name, str(self.threat), int(i), device=x.device) for i in ids],
        )
        logits: Tensor = self.model(x_adv).float()
        if not torch.isfinite(logits).all():
            raise ModelError(f"the model gives NaN or infinite logits on images of the attack {ATTACK.name}")
        return logits
