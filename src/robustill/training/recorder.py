"""Record loss, margin and correctness of every training image in every epoch, from logits that the steps compute."""

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

_MAX_FLOAT16 = float(np.finfo(np.float16).max)
# Logits are measured for this many images together: with small batches the calls would cost more than the work.
_IMAGES_AT_ONCE = 4096


class Recorder:
    """Records of every training image, one epoch after the other.

    Everything stays on the device until the epoch ends; a step costs a few operations on [B,K] logits. An image that
    is mixed from several is recorded only where its most likely label is that of the sample; images that are not in
    the training part are not recorded.

    Args:
        run: the run directory.
        clean_every: epochs between two clean passes made for the records, where the method makes none of its own; the
            last epoch has one.
        split: the split whose training part is recorded.
        epochs: the number of all epochs.
        device: the device that trains.
        group: the processes that share the batches; the main process writes.
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
        # By the names in `dynamics.SERIES`: measured values [N+1,3], and logits that are still to be measured.
        self._measured: dict[str, Tensor] = {}
        self._pending: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._has_clean_logits = False

    def start(self, epochs_done: int) -> None:
        """Write which images are recorded, and remove the records after the epoch from which the run resumes."""
        self._measured.clear()
        self._pending.clear()
        if not self.group.is_main:
            return
        dynamics.write_samples(self.run, self.ids.cpu().numpy(), self.labels.cpu().numpy(), self.flipped.numpy())
        dynamics.forget_after(self.run, epochs_done)
        try:
            dynamics.check_epochs(self.run, epochs_done)
        except RunError as error:
            # The weights do not depend on the records: a run without them is better than none.
            warnings.warn(f"{error}; the training goes on, its dynamics cannot be read", stacklevel=2)

    def record(self, batch: Batch, logits: StepLogits) -> None:
        """Record a part of a step."""
        for name in dynamics.SERIES:
            values = getattr(logits, name)
            if values is not None:
                self._add(name, batch, values)
        self._has_clean_logits = logits.clean is not None

    def record_clean(self, step: Step, batch: Batch) -> None:
        """Record the clean images of a step with a pass of their own, in the epochs where `clean_every` asks for one.

        Call it after all parts of the step. It makes no pass where the step made one, and changes nothing that the
        training depends on.
        """
        epoch = batch.epoch + 1
        if not self._has_clean_logits and (epoch % self.clean_every == 0 or epoch == self.epochs):
            self._add("clean", batch, step.clean_logits(batch))

    def state_dict(self) -> dict[str, Any]:
        """Return the records of an unfinished epoch."""
        return {"looks": self._measured, "waiting": self._pending}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the records of an unfinished epoch, after `start`."""
        device = self.ids.device
        self._measured = {name: values.to(device) for name, values in state["looks"].items()}
        self._pending = {
            name: [(index.to(device), y.to(device), logits.to(device)) for index, y, logits in parts]
            for name, parts in state["waiting"].items()
        }

    def write(self, epoch: int) -> None:
        """Write the records of an epoch, counted from 1, and begin the next."""
        for name in self._pending:
            self._measure(name)
        arrays: dict[str, dynamics.Array] = {}
        for name, measured in self._measured.items():
            loss, margin, correct = self._gather(measured[:-1].T.cpu().numpy())
            arrays[f"{name}_loss"] = loss.clip(-_MAX_FLOAT16, _MAX_FLOAT16).astype(np.float16)
            arrays[f"{name}_margin"] = margin.clip(-_MAX_FLOAT16, _MAX_FLOAT16).astype(np.float16)
            arrays[f"{name}_correct"] = correct == 1
        self._measured.clear()
        if self.group.is_main:
            dynamics.write_epoch(self.run, epoch, arrays)
            self._warn_of_misleading_teacher(epoch, arrays)

    def _warn_of_misleading_teacher(self, epoch: int, arrays: Mapping[str, dynamics.Array]) -> None:
        student, teacher = arrays.get("adversarial_correct"), arrays.get("teacher_adversarial_correct")
        if student is None or teacher is None:
            return
        # An epoch with extra or mixed images does not record every one, and both are recorded in the same steps.
        recorded = ~np.isnan(arrays["adversarial_loss"])
        if not recorded.any():
            return
        message = diagnostics.misleading_teacher(
            epoch, self.epochs, float(student[recorded].mean()), float(teacher[recorded].mean()), int(recorded.sum())
        )
        if message is not None:
            warnings.warn(message, stacklevel=2)

    def _gather(self, own: dynamics.Array) -> dynamics.Array:
        """Return the records of all processes, each of which recorded other images: [3,N]."""
        for rank, other in self.group.gather({self.group.rank: own}).items():
            if rank != self.group.rank:
                own = np.where(np.isnan(own[2]), other, own)
        return own

    def _add(self, name: str, batch: Batch, logits: Tensor) -> None:
        pending = self._pending.setdefault(name, [])
        pending.append((batch.index, batch.y, logits.detach()))
        if len(pending) * len(batch.y) >= _IMAGES_AT_ONCE:
            self._measure(name)

    def _measure(self, name: str) -> None:
        """Measure the pending logits."""
        if not self._pending[name]:
            return
        index, y, logits = map(torch.cat, zip(*self._pending[name], strict=True))
        self._pending[name].clear()
        if name not in self._measured:
            # One row more than there are samples, for images that are not recorded: to leave them out, the host would
            # have to wait for their number.
            self._measured[name] = torch.full((len(self.ids) + 1, 3), torch.nan, device=self.ids.device)
        rows = torch.searchsorted(self.ids, index).clamp_(max=len(self.ids) - 1)
        is_sample = (self.ids[rows] == index) & (self.labels[rows] == y)
        self._measured[name].index_copy_(0, rows.where(is_sample, len(self.ids)), measure(logits, y))


def measure(logits: Tensor, y: Tensor) -> Tensor:
    """Return loss −log p_y in nats, margin z_y − max_{k≠y} z_k, and whether the prediction is y (1 or 0).

    Args:
        logits: z, [B,K].
        y: labels, int64 [B].

    Returns:
        float32 [B,3].

    Example:
        >>> measure(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
        tensor([[0.6931, 0.0000, 1.0000],
                [0.1269, 2.0000, 1.0000]])
    """
    label, z = y[:, None], logits.float()
    label_logit = z.gather(1, label)[:, 0]
    largest_other = z.scatter(1, label, -torch.inf).amax(dim=1)
    loss, margin = z.logsumexp(dim=1) - label_logit, label_logit - largest_other
    return torch.stack([loss, margin, (z.argmax(dim=1) == y).float()], dim=1)
