"""What is kept of each training image while it is trained on, read off the logits that a step computes anyway."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustill.config.split import Split
from robustill.core.distributed import SINGLE_PROCESS, ProcessGroup
from robustill.core.errors import RunError
from robustill.methods.base import Batch
from robustill.runs import dynamics
from robustill.training import diagnostics
from robustill.training.step import Step, StepLogits

_LARGEST = float(np.finfo(np.float16).max)
_AT_ONCE = 4096
"""Images whose logits are measured together: with small batches the calls would cost more than the work."""


class Recorder:
    """Loss, margin and correctness by sample for one epoch after another.

    Everything stays on the device until the epoch ends; a step costs a few operations on [B,K] logits. An image mixed
    of several is recorded only where its likeliest label is the sample's own, and images that are no sample never.

    Args:
        run: the run directory.
        clean_every: epochs between two clean passes of its own, where the method makes none; the last epoch gets one.
        split: whose training part is recorded.
        epochs: how many there will be.
        device: where the training computes.
        group: the processes that share its batches; the first of them writes.
    """

    def __init__(
        self,
        run: Path,
        clean_every: int,
        split: Split,
        epochs: int,
        device: torch.device,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.run, self.clean_every, self.epochs, self.group = run, clean_every, epochs, group
        ids = split.train.sort().values
        self.flipped = torch.isin(ids, split.flipped)
        self.ids, self.labels = ids.to(device), split.labels[ids].to(device)
        self._looks: dict[str, Tensor] = {}
        self._waiting: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._saw_clean = False

    def start(self, epochs_done: int) -> None:
        """Write who is recorded, and forget what came after the epoch that the run goes on from."""
        self._looks.clear()
        self._waiting.clear()
        if not self.group.is_main:
            return
        dynamics.write_samples(self.run, self.ids.cpu().numpy(), self.labels.cpu().numpy(), self.flipped.numpy())
        dynamics.forget_after(self.run, epochs_done)
        try:
            dynamics.check_epochs(self.run, epochs_done)
        except RunError as error:
            # The weights do not depend on it: better a run without its dynamics than none.
            warnings.warn(f"{error}; the training goes on, its dynamics cannot be read", stacklevel=2)

    def record(self, batch: Batch, seen: StepLogits) -> None:
        """Take a part of a step."""
        for name in dynamics.SERIES:
            logits = getattr(seen, name)
            if logits is not None:
                self._wait(name, batch, logits)
        self._saw_clean = seen.clean is not None

    def record_clean(self, step: Step, batch: Batch) -> None:
        """After all parts of a step: one more pass over its clean images, if it made none and it is the epoch's turn.

        Changes nothing that training depends on.
        """
        number = batch.epoch + 1
        if not self._saw_clean and (number % self.clean_every == 0 or number == self.epochs):
            self._wait("clean", batch, step.clean_logits(batch))

    def state(self) -> dict[str, Any]:
        """What the epoch has come to, for `take_up`."""
        return {"looks": self._looks, "waiting": self._waiting}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on with an epoch that was stopped, after `start`."""
        device = self.ids.device
        self._looks = {look: values.to(device) for look, values in state["looks"].items()}
        self._waiting = {
            look: [(index.to(device), y.to(device), logits.to(device)) for index, y, logits in parts]
            for look, parts in state["waiting"].items()
        }

    def write(self, epoch: int) -> None:
        """Keep the epoch (counted from 1) on disk, and begin the next."""
        for look in self._waiting:
            self._measure(look)
        arrays: dict[str, dynamics.Array] = {}
        for look, measured in self._looks.items():
            loss, margin, correct = self._of_all(measured[:-1].T.cpu().numpy())
            arrays[f"{look}_loss"] = loss.clip(-_LARGEST, _LARGEST).astype(np.float16)
            arrays[f"{look}_margin"] = margin.clip(-_LARGEST, _LARGEST).astype(np.float16)
            arrays[f"{look}_correct"] = correct == 1
        self._looks.clear()
        if self.group.is_main:
            dynamics.write_epoch(self.run, epoch, arrays)
            self._warn_of_teacher(epoch, arrays)

    def _warn_of_teacher(self, epoch: int, arrays: Mapping[str, dynamics.Array]) -> None:
        looks = [f"{look}_correct" for look in ("adversarial", "teacher_adversarial")]
        if all(look in arrays for look in looks):
            student, teacher = (float(arrays[look].mean()) for look in looks)
            said = diagnostics.misleading_teacher(epoch, self.epochs, student, teacher, len(self.ids))
            if said is not None:
                warnings.warn(said, stacklevel=2)

    def _of_all(self, own: dynamics.Array) -> dynamics.Array:
        """The records of all processes, each of which saw other images: [3,N]."""
        for rank, other in self.group.gather({self.group.rank: own}).items():
            if rank != self.group.rank:
                own = np.where(np.isnan(own[2]), other, own)
        return own

    def _wait(self, look: str, batch: Batch, logits: Tensor) -> None:
        waiting = self._waiting.setdefault(look, [])
        waiting.append((batch.index, batch.y, logits.detach()))
        if len(waiting) * len(batch.y) >= _AT_ONCE:
            self._measure(look)

    def _measure(self, look: str) -> None:
        if not self._waiting[look]:
            return
        index, y, logits = map(torch.cat, zip(*self._waiting[look], strict=True))
        self._waiting[look].clear()
        if look not in self._looks:
            # One row more than there are samples, for images that are none of them: leaving them out would need the
            # host to know how many they are.
            self._looks[look] = torch.full((len(self.ids) + 1, 3), torch.nan, device=self.ids.device)
        rows = torch.searchsorted(self.ids, index).clamp_(max=len(self.ids) - 1)
        own = (self.ids[rows] == index) & (self.labels[rows] == y)
        self._looks[look].index_copy_(0, rows.where(own, len(self.ids)), measure(logits, y))


def measure(logits: Tensor, y: Tensor) -> Tensor:
    """−log p_y in nats, z_y − max of the other logits, and whether the prediction is y (1 or 0), float32 [B,3].

    Args:
        logits: z, [B,K].
        y: labels, int64 [B].

    Example:
        >>> measure(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
        tensor([[0.6931, 0.0000, 1.0000],
                [0.1269, 2.0000, 1.0000]])
    """
    label, z = y[:, None], logits.float()
    of_label = z.gather(1, label)[:, 0]
    rival = z.scatter(1, label, -torch.inf).amax(dim=1)
    return torch.stack([z.logsumexp(dim=1) - of_label, of_label - rival, (z.argmax(dim=1) == y).float()], dim=1)
