"""One training step: the attack, then the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustill.acceleration.matmul_conv import MatmulConvolutions, has_eligible_convolution
from robustill.acceleration.tracking import TrackingCopy
from robustill.attacks.pgd import Start, pgd
from robustill.core.contexts import evaluating, frozen, preserving_buffers
from robustill.core.errors import ConfigError
from robustill.core.randomness import Generators
from robustill.methods.base import Batch, Method, Network, Outcome
from robustill.teachers.cache import Cached
from robustill.threat import Threat
from robustill.training.activation_checkpointing import recomputed
from robustill.training.awp import perturb_weights


@dataclass(frozen=True)
class BatchShare:
    """What one of several processes has of a batch.

    Args:
        total: images of the batch.
        own: which of them are this process's.
    """

    total: int
    own: slice


@dataclass(frozen=True, kw_only=True, eq=False)
class StepLogits:
    """What a step has computed anyway on one part of its batch: logits [B,K]; None where the method asked for none.

    Args:
        adversarial: the student's at x'.
        clean: the student's at x.
        teacher_adversarial: the robust teacher's at x'.
        teacher_clean: the robust teacher's at x.
    """

    adversarial: Tensor | None
    clean: Tensor | None
    teacher_adversarial: Tensor | None
    teacher_clean: Tensor | None


class Step(nn.Module):
    """From a batch to per-sample losses: x' maximises `method.inner`, the student's loss is `method.outer`.

    Args:
        student: the network to train.
        method: its objective.
        teacher: one network, or a ModuleDict by role; put into eval mode and frozen here, for good, and no part of this
            module's state.
        threat: where the adversary may go, or text such as "linf:8/255".
        steps: of PGD.
        step_size: of PGD, in units of [0,1].
        start: of PGD; None takes the method's own.
        batchnorm: "eval": the attack sees the running statistics and leaves them alone; "train": it normalises with the
            batch and moves them at every one of its passes, as some published code does.
        precision: "fp32", or "bf16" for automatic mixed precision in the networks; losses are always float32.
        awp: how far up the slope of the outer loss the weights are moved before that loss is taken, relative to their
            length, see `perturb_weights`; None leaves them where they are.
        light: the attack runs on a copy of the student with BatchNorm folded: the same function, sooner. A student of
            which there is no such copy, or one attacked with batchnorm="train", is attacked itself.
        recompute: the student's blocks keep no activations, see `recomputed`; it is then attacked itself.

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
        threat: Threat | str,
        *,
        steps: int,
        step_size: float,
        start: Start | None = None,
        batchnorm: Literal["eval", "train"] = "eval",
        precision: Literal["fp32", "bf16"] = "fp32",
        awp: float | None = None,
        light: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if recompute and awp is not None:
            raise ConfigError(
                "recompute with awp: the weights at which the loss is taken are gone when activations are computed "
                "again; take one of them"
            )
        self.student = student
        self.method = method
        # In a tuple, so that a teacher is neither saved, nor synchronised, nor put into train mode with the student.
        self._teacher = ((teacher if teacher is not None else nn.Identity()).eval().requires_grad_(False),)
        self.threat = Threat.parse(threat)
        self.steps = steps
        self.step_size = step_size
        self.start = start if start is not None else method.start
        self.batchnorm = batchnorm
        self.precision = precision
        self.awp = awp
        self.recompute = recompute
        # Made for the first images; in a tuple, because a copy is no state of this module.
        self._light: tuple[TrackingCopy | None] | None = (
            None if light and batchnorm == "eval" and not recompute else (None,)
        )
        self._products = (
            MatmulConvolutions()
            if has_eligible_convolution(student) or has_eligible_convolution(self._teacher[0])
            else None
        )
        self.on_step: Callable[[Batch, StepLogits], None] | None = None
        """Told of every part of every step, after its loss."""

    def forward(self, batch: Batch, generator: Generators | None = None) -> Outcome:
        """The method's outcome on adversarial images found for this very student.

        Args:
            batch: B samples.
            generator: for the attack's random start.
        """
        [(_, outcome)] = self.parts(batch, generator)
        return outcome

    def parts(
        self, batch: Batch, generator: Generators | None = None, count: int = 1, share: BatchShare | None = None
    ) -> Iterator[tuple[Batch, Outcome]]:
        """The outcome of one part of the batch after the other, so that only one needs its graph in memory at a time.

        Σ_parts (B_part/B)·mean(loss) has the gradient that the whole batch has, where no BatchNorm and no method looks
        across the batch. Weights must not change before the last part was taken.

        Args:
            batch: B samples.
            generator: for the random start, drawn for the whole batch.
            count: at most this many parts, of nearly equal size.
            share: where the batch is one process's share of a larger one, for all of which the start is drawn.

        Returns:
            Each part with its outcome.
        """
        parts = batch.split(count)
        starts = self._starts(batch, generator, parts, share)
        teachers = [_look_once(self._teacher[0], part.x) for part in parts]
        found = [
            self._attack(part, teacher, generator, start)
            for part, teacher, start in zip(parts, teachers, starts, strict=True)
        ]

        def outer(number: int, network: Network) -> Outcome:
            with self._precision(batch), self._kept():
                return self.method.outer(parts[number], found[number], network, teachers[number])

        student = self._perturbed(parts, outer, len(batch.y) if share is None else share.total)
        for number, part in enumerate(parts):
            outcome = outer(number, student)
            if outcome.loss.shape != part.y.shape:
                raise ConfigError(
                    f"method {type(self.method).__name__} gives a loss of shape {list(outcome.loss.shape)}: expected "
                    f"one value a sample, {list(part.y.shape)}"
                )
            with torch.no_grad():
                self.method.update(part, outcome)
            if self.on_step is not None:
                self.on_step(part, _seen(part, found[number], outcome, teachers[number]))
            yield part, outcome

    def _perturbed(self, parts: Sequence[Batch], outer: Callable[[int, Network], Outcome], images: int) -> Network:
        if self.awp is None:
            return self.student

        def share_of(number: int) -> Callable[[Network], Tensor]:
            return lambda network: outer(number, network).loss.sum() / images

        # The loss that counts is the one at the perturbed weights: it alone moves the statistics of BatchNorm.
        with preserving_buffers(self.student, self.method):
            return perturb_weights(self.student, [share_of(number) for number in range(len(parts))], self.awp)

    def _starts(
        self, batch: Batch, generator: Generators | None, parts: Sequence[Batch], share: BatchShare | None
    ) -> list[Start | Tensor]:
        """Where the attack begins on each part: what is random is drawn for the batch as a whole."""
        if len(parts) == 1 and share is None:
            return [self.start]
        x = batch.x
        if share is not None:
            x = x.new_zeros((share.total, *batch.x.shape[1:])).contiguous(memory_format=torch.channels_last)
            x[share.own] = batch.x
        start = pgd(_no_loss, x, self.threat, steps=0, step_size=0.0, start=self.start, generator=generator)
        if share is not None:
            start = start[share.own]
        return list(start.tensor_split(len(parts)))

    @contextmanager
    def _precision(self, batch: Batch) -> Iterator[None]:
        low = self.precision == "bf16"
        # What is computed again on the way back, outside of this, has to be computed as it was.
        products = self._products if low and not self.recompute else None
        with (
            torch.autocast(batch.x.device.type, torch.bfloat16, enabled=low),
            products or nullcontext(),
        ):
            yield

    def _kept(self) -> AbstractContextManager[None]:
        return recomputed(self.student) if self.recompute else nullcontext()

    def attack(self, batch: Batch, generator: Generators | None = None, start: Start | None = None) -> Tensor:
        """The adversarial images alone, [B,C,H,W]."""
        return self._attack(batch, self._teacher[0], generator, start or self.start)

    @torch.no_grad()
    def clean_logits(self, batch: Batch) -> Tensor:
        """The student's at x in its present mode, [B,K]; its running statistics stay as they are."""
        with self._precision(batch), preserving_buffers(self.student):
            logits: Tensor = self.student(batch.x)
            return logits

    def _attack(self, batch: Batch, teacher: nn.Module, generator: Generators | None, start: Start | Tensor) -> Tensor:
        modes = evaluating(self.student) if self.batchnorm == "eval" else evaluating()
        with self._precision(batch), modes, frozen(self.student), self._kept():
            loss_fn = self.method.inner(batch, self._attacked(batch), teacher)
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

    def _attacked(self, batch: Batch) -> Network:
        """The student, or its light copy at the weights of this moment."""
        if self._light is None:
            bf16 = self.precision == "bf16"
            self._light = (TrackingCopy.of(self.student, batch.x, bf16=bf16),)
        (light,) = self._light
        if light is None:
            return self.student
        light.sync(self.student)
        return light


def _no_loss(x: Tensor) -> Tensor:
    raise AssertionError("an attack of no steps asks for no loss")


def _seen(batch: Batch, x_adv: Tensor, outcome: Outcome, teacher: nn.Module) -> StepLogits:
    if isinstance(teacher, nn.ModuleDict):
        teacher = teacher["robust"]
    assert isinstance(teacher, _Once)
    # Where there is no adversary, the images trained on are the clean ones.
    attacked = x_adv is not batch.x
    return StepLogits(
        adversarial=outcome.logits if attacked else None,
        clean=outcome.clean_logits if attacked else outcome.logits,
        teacher_adversarial=teacher.said(x_adv) if attacked else None,
        teacher_clean=teacher.said(batch.x),
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

    def said(self, images: Tensor) -> Tensor | None:
        return next((logits for earlier, logits in self.seen if earlier is images), None)

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            logits: Tensor = self.teacher(images)
            return logits
        known = self.said(images)
        if known is not None:
            return known
        with torch.no_grad():
            if isinstance(self.teacher, Cached) and images is self.x:
                logits = self.teacher.on_clean(images)
            else:
                logits = self.teacher(images)
        self.seen.append((images, logits))
        return logits
