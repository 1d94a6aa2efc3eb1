"""The state of an AutoAttack run, image by image, from which an interrupted run resumes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustill.core.errors import RunError

_TENSORS = ("stages_done", "broken_by", "x_adv", "margin", "seconds", "model_seconds", "passes")


@dataclass
class AutoAttackState:
    """The state of an AutoAttack run; every image goes through the stages independently.

    Args:
        conditions: stages, threat, seed, precision, and number and ids of the images, which have to be the same to
            resume.
        stages_done: number of stages that each image has gone through, int64 [N].
        broken_by: index of the stage that broke it; −1 if none has, −2 if the clean image is misclassified; int64 [N].
        x_adv: confirmed successes; elsewhere the clean images, [N,C,H,W].
        margin: of x_adv where broken, else the largest found inside the threat, [N].
        seconds: spent in each stage, [S].
        model_seconds: the part of them spent in passes through the model, [S]; on a GPU, in launching them.
        passes: of one image, forward or backward, in each stage, int64 [S].
        fingerprint: of the network, as `Fingerprint.to_json` returns it; None in states of earlier versions.
    """

    conditions: str
    stages_done: Tensor
    broken_by: Tensor
    x_adv: Tensor
    margin: Tensor
    seconds: Tensor
    model_seconds: Tensor
    passes: Tensor
    fingerprint: dict[str, Any] | None = None

    @classmethod
    def initial(cls, conditions: str, x: Tensor, num_stages: int) -> AutoAttackState:
        """Return the state before the first stage."""
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
        """Return the state as arrays for `numpy.savez`."""
        arrays = {name: getattr(self, name).numpy() for name in _TENSORS}
        page = {} if self.fingerprint is None else {"fingerprint": np.array(json.dumps(self.fingerprint))}
        return {"conditions": np.array(self.conditions), **arrays, **page}

    @classmethod
    def from_arrays(cls, arrays: Any) -> AutoAttackState:
        """Return the state from the arrays that `numpy.load` returns.

        Raises:
            RunError: arrays are missing, do not hold numbers, or have a damaged fingerprint.
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
        fingerprint = None
        if "fingerprint" in arrays:
            try:
                fingerprint = dict(json.loads(str(arrays["fingerprint"])))
            except (ValueError, TypeError, RecursionError):
                raise RunError(
                    "the saved state is damaged: its fingerprint is wrong; delete it to begin again"
                ) from None
        return cls(conditions=str(arrays["conditions"]), **tensors, fingerprint=fingerprint)
