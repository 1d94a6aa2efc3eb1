"""How far an evaluation has come, image by image: what a killed one needs to go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustill.core.errors import RunError

_TENSORS = ("stages_done", "broken_by", "x_adv", "margin", "seconds", "model_seconds", "passes")


@dataclass
class AutoAttackState:
    """State of an AutoAttack run; every image goes through the stages on its own.

    Args:
        conditions: what has to be the same for the run to go on: stages, threat, seed, number of images.
        stages_done: stages behind each image, int64 [N].
        broken_by: index of the stage that broke it; −1 none so far, −2 wrong on the clean image; int64 [N].
        x_adv: confirmed successes; elsewhere the clean images, [N,C,H,W].
        margin: of x_adv where broken, else the largest seen inside the threat, [N].
        seconds: in each stage, [S].
        model_seconds: of them in passes through the model, [S]; where a GPU does them, in starting them.
        passes: images that went through the model in each stage, forward or backward, int64 [S].
    """

    conditions: str
    stages_done: Tensor
    broken_by: Tensor
    x_adv: Tensor
    margin: Tensor
    seconds: Tensor
    model_seconds: Tensor
    passes: Tensor

    @classmethod
    def begin(cls, conditions: str, x: Tensor, num_stages: int) -> AutoAttackState:
        """Nothing done, nothing known."""
        return cls(
            conditions=conditions,
            stages_done=torch.zeros(len(x), dtype=torch.int64),
            broken_by=torch.full((len(x),), -1),
            x_adv=x.detach().cpu().clone(),
            margin=torch.full((len(x),), -torch.inf),
            seconds=torch.zeros(num_stages, dtype=torch.float64),
            model_seconds=torch.zeros(num_stages, dtype=torch.float64),
            passes=torch.zeros(num_stages, dtype=torch.int64),
        )

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """For `numpy.savez`."""
        arrays = {name: getattr(self, name).numpy() for name in _TENSORS}
        return {"conditions": np.array(self.conditions), **arrays}

    @classmethod
    def from_arrays(cls, arrays: Any) -> AutoAttackState:
        """From what `numpy.load` gives.

        Raises:
            RunError: arrays are missing, or hold no numbers.
        """
        missing = [name for name in ("conditions", *_TENSORS) if name not in arrays]
        if missing:
            raise RunError(f"the saved state lacks {', '.join(missing)}: delete it to begin again")
        wrong = [name for name in _TENSORS if arrays[name].dtype.kind not in ("i", "f")]
        if wrong:
            raise RunError(
                f"the saved state is damaged: {wrong[0]} is {arrays[wrong[0]].dtype}; delete it to begin again"
            )
        tensors = {name: torch.from_numpy(np.array(arrays[name])) for name in _TENSORS}
        return cls(conditions=str(arrays["conditions"]), **tensors)
