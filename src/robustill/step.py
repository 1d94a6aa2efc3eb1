"""One training step: the attack, then the loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import Start, pgd
from robustill.methods.base import Batch, Method, Outcome
from robustill.modes import evaluating, frozen
from robustill.randomness import Generators
from robustill.teacher_cache import Cached
from robustill.threat import Threat


class Step(nn.Module):
    """From a batch to per-sample losses: x' maximises `method.inner`, the student's loss is `method.outer`.

    Args:
        student: the network to train.
        method: its objective.
        teacher: one network, or a ModuleDict by role; put into eval mode and frozen here, for good, and no part of this
            module's state.
        threat: where the adversary may go.
        steps: of PGD.
        step_size: of PGD, in units of [0,1].
        start: of PGD; None takes the method's own.
        batchnorm: "eval": the attack sees the running statistics and leaves them alone; "train": it normalises with the
            batch and moves them at every one of its passes, as some published code does.
        precision: "fp32", or "bf16" for automatic mixed precision in the networks; losses are always float32.

    Example:
        >>> from robustill.methods import AT
        >>> step = Step(nn.Flatten(), AT(), None, Threat(norm="linf", eps=0.1), steps=1, step_size=0.1)
        >>> batch = Batch(x=torch.full((1, 1, 1, 2), 0.5), y=torch.tensor([0]), index=torch.tensor([0]))
        >>> step.attack(batch, start="clean")
        tensor([[[[0.4000, 0.6000]]]])
    """

    def __init__(
        self,
        student: nn.Module,
        method: Method,
        teacher: nn.Module | None,
        threat: Threat,
        *,
        steps: int,
        step_size: float,
        start: Start | None = None,
        batchnorm: Literal["eval", "train"] = "eval",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        super().__init__()
        self.student = student
        self.method = method
        # In a tuple, so that a teacher is neither saved, nor synchronised, nor put into train mode with the student.
        self._teacher = ((teacher if teacher is not None else nn.Identity()).eval().requires_grad_(False),)
        self.threat = threat
        self.steps = steps
        self.step_size = step_size
        self.start = start if start is not None else method.start
        self.batchnorm = batchnorm
        self.precision = precision

    def forward(self, batch: Batch, generator: Generators | None = None) -> Outcome:
        """The method's outcome on adversarial images found for this very student.

        Args:
            batch: B samples.
            generator: for the attack's random start.
        """
        teacher = _look_once(self._teacher[0], batch.x)
        with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            x_adv = self._attack(batch, teacher, generator, self.start)
            outcome = self.method.outer(batch, x_adv, self.student, teacher)
        with torch.no_grad():
            self.method.update(batch, outcome)
        return outcome

    def attack(self, batch: Batch, generator: Generators | None = None, start: Start | None = None) -> Tensor:
        """The adversarial images alone, [B,C,H,W]."""
        with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self._attack(batch, self._teacher[0], generator, start or self.start)

    def _attack(self, batch: Batch, teacher: nn.Module, generator: Generators | None, start: Start) -> Tensor:
        modes = evaluating(self.student) if self.batchnorm == "eval" else evaluating()
        with modes, frozen(self.student):
            loss_fn = self.method.inner(batch, self.student, teacher)
            if loss_fn is None:
                return batch.x
            return pgd(
                loss_fn,
                batch.x,
                self.threat,
                steps=self.steps,
                step_size=self.step_size,
                start=start,
                generator=generator,
            )


def _look_once(teacher: nn.Module, x: Tensor) -> nn.Module:
    """The same teacher, or teachers by role, that computes its logits on the step's x and x' only once each."""
    if isinstance(teacher, nn.ModuleDict):
        return nn.ModuleDict({role: _Once(each, x) for role, each in teacher.items()})
    return _Once(teacher, x)


class _Once(nn.Module):
    def __init__(self, teacher: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.teacher = teacher
        self.x = x
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            logits: Tensor = self.teacher(images)
            return logits
        for earlier, logits in self.seen:
            if earlier is images:
                return logits
        with torch.no_grad():
            if isinstance(self.teacher, Cached) and images is self.x:
                logits = self.teacher.on_clean(images)
            else:
                logits = self.teacher(images)
        self.seen.append((images, logits))
        return logits
