"""One training step: attack a batch, then compute the per-sample losses of the method."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustill.acceleration.matmul_conv import MatmulConvolutions, has_eligible_convolution
from robustill.acceleration.tracking import TrackingCopy
from robustill.attacks.pgd import (
    ROUNDING,
    Start,
    check_attack_settings,
    check_noise,
    noisy_start,
    run_pgd,
    within_reach,
)
from robustill.core.contexts import evaluating, freeze_for_good, frozen, preserving_buffers
from robustill.core.contract import check_network, check_training, preserving_random_numbers
from robustill.core.errors import ConfigError
from robustill.core.randomness import Generators
from robustill.core.validation import (
    check_choice,
    check_flag,
    check_generators,
    check_images,
    check_integer,
    check_label_range,
    check_module,
    check_number,
    check_type,
)
from robustill.methods.base import Batch, Method, Network, Outcome, check_method
from robustill.methods.clean import Clean
from robustill.teachers.cache import CachedTeacher
from robustill.threat import Threat
from robustill.training.activation_checkpointing import recomputing_activations
from robustill.training.awp import perturb_weights

# Images on which the networks are checked in the first step.
_NUM_PROBE_IMAGES = 4


@dataclass(frozen=True)
class BatchShare:
    """The part of a batch that one of several processes trains on.

    Args:
        total: number of images in the whole batch.
        own: the positions of this process's images in it.
    """

    total: int
    own: slice


@dataclass(frozen=True, kw_only=True, eq=False)
class StepLogits:
    """The logits [B,K] that a step computed on one part of its batch; None where the method needed none.

    Args:
        adversarial: of the student at x'.
        clean: of the student at x.
        teacher_adversarial: of the robust teacher at x'.
        teacher_clean: of the robust teacher at x.
    """

    adversarial: Tensor | None
    clean: Tensor | None
    teacher_adversarial: Tensor | None
    teacher_clean: Tensor | None


class Step(nn.Module):
    """A training step, from a batch to per-sample losses: x' maximises `method.inner`, the loss is `method.outer`.

    Args:
        student: the network to train.
        method: the objective.
        teacher: one network, or a ModuleDict by role. It is put into eval mode and frozen for good, and is not part of
            this module's state.
        threat: the images that the adversary may choose, or text such as "linf:8/255".
        steps: number of PGD steps.
        step_size: length of a PGD step, in units of [0,1].
        start: where PGD starts, "uniform", "gaussian" or "clean", as for `pgd`; None takes the method's own start.
        noise: start from noise that is uniform in a ball of so many radii, and project no step to the threat, only to
            [0,1] (N-FGSM: 2, one step of the radius); None projects. For l∞ and l2, in place of `start`.
        batchnorm: "eval": the attack uses the running statistics and does not change them; "train": it normalises with
            the batch and updates them in every one of its passes, as some published code does.
        precision: "fp32", or "bf16" for automatic mixed precision in the networks; losses are always float32.
        awp: γ of adversarial weight perturbation: the gradient is taken at weights that γ times their norm has moved
            uphill (Wu et al. 2020, where 0.005 is usual); None leaves the weights as they are.
        light: attack a copy of the student with BatchNorm folded, which computes the same function faster. A student
            that cannot be copied this way, or that is attacked with batchnorm="train", is attacked itself.
        recompute: checkpoint the activations of the student's blocks, which keep only their input and are computed
            again in the backward pass; the student is then attacked itself.

    Raises:
        ConfigError: an option of another type or outside its range, `awp` together with `recompute`, with a
            ScriptModule or without a weight to perturb, or not the teachers that the method needs.
        ModelError: the student or the teacher is no Module.

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
        noise: float | None = None,
        batchnorm: Literal["eval", "train"] = "eval",
        precision: Literal["fp32", "bf16"] = "fp32",
        awp: float | None = None,
        light: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.threat = Threat.parse(threat)
        check_module("student", student)
        check_method(method)
        if teacher is not None:
            check_module("teacher", teacher)
        check_attack_settings(self.threat, steps, step_size)
        if start is not None:
            check_choice("start", start, get_args(Start))
        if noise is not None:
            check_number("noise", noise, at_least=0)
            check_noise(self.threat, start)
        check_choice("batchnorm", batchnorm, ("eval", "train"))
        check_choice("precision", precision, ("fp32", "bf16"))
        if awp is not None:
            check_number("awp", awp, at_least=0, below=1)
        check_flag("light", light)
        check_flag("recompute", recompute)
        if recompute and awp is not None:
            raise ConfigError(
                "recompute with awp: the perturbed weights no longer exist when the activations are computed again: "
                "use one of the two"
            )
        if awp is not None:
            check_awp(student)
        _check_teachers(method, teacher)
        self.student = student
        self.method = method
        # In a tuple, so that a teacher is neither saved, nor synchronised, nor put into train mode with the student.
        self._teacher = (freeze_for_good(nn.Identity() if teacher is None else teacher),)
        self.steps = steps
        self.step_size = step_size
        self.start = start if start is not None else method.start
        self.noise = noise
        self.batchnorm = batchnorm
        self.precision = precision
        self.awp = awp
        self.recompute = recompute
        self._folded = _FoldedStudent() if light and batchnorm == "eval" and not recompute else None
        is_eligible = has_eligible_convolution(student) or has_eligible_convolution(self._teacher[0])
        self._products = MatmulConvolutions() if is_eligible else None
        self._has_seen_images = False
        self.on_step: Callable[[Batch, StepLogits], None] | None = None
        """Called with every part of every step, after its loss."""
        self.is_checked = {"attack": False, "training": False}
        """Which checks of the networks were made: in the first attack and the first step, or by the caller before."""

    def forward(self, batch: Batch, generator: Generators | None = None) -> Outcome:
        """Attack the student on the batch and return the method's outcome.

        Args:
            batch: B samples.
            generator: draws the random start of the attack.
        """
        [(_, outcome)] = self.parts(batch, generator)
        return outcome

    def parts(
        self, batch: Batch, generator: Generators | None = None, count: int = 1, share: BatchShare | None = None
    ) -> Iterator[tuple[Batch, Outcome]]:
        """Yield the outcome of one part of the batch after the other, so that memory holds one graph at a time.

        Σ_parts (B_part/B)·mean(loss) has the gradient of the whole batch, unless BatchNorm or the method depends on
        the batch as a whole. The weights must not change before the last part.

        Args:
            batch: B samples.
            generator: draws the random start, for the whole batch at once.
            count: the largest number of parts; their sizes are nearly equal.
            share: the place of this batch in a larger one that several processes share; the start is then drawn for
                the larger one.

        Yields:
            Each part with its outcome.

        Raises:
            ConfigError: the batch is no Batch, or the method does not return an `Outcome` with one loss a sample.
            DataError: the batch is empty; the images of the first batch are not in [0,1], or its labels not classes.
            ModelError: in the first step, a network that breaks the contract, see `core.contract`.
        """
        check_integer("count", count, at_least=1)
        self._check_batch(batch, generator, may_be_empty=share is not None)
        self._check_networks(batch)
        self._check_student(batch)
        parts = batch.split(count)
        starts = self._starts(batch, generator, parts, share)
        teachers = [_memoize(self._teacher[0], part.x) for part in parts]
        adversarial = [
            self._attack(part, teacher, generator, start)
            for part, teacher, start in zip(parts, teachers, starts, strict=True)
        ]

        def outer(number: int, network: Network) -> Outcome:
            with self._precision(batch), self._activation_checkpointing():
                return self.method.outer(parts[number], adversarial[number], network, teachers[number])

        student = self._perturbed_student(parts, outer, len(batch.y) if share is None else share.total)
        for number, part in enumerate(parts):
            outcome = outer(number, student)
            _check_outcome(self.method, outcome, part)
            with torch.no_grad():
                self.method.update(part, outcome)
            if self.on_step is not None:
                self.on_step(
                    part, _step_logits(part, adversarial[number], outcome, teachers[number], self.method.roles)
                )
            yield part, outcome

    def _check_batch(self, batch: Batch, generator: Generators | None, may_be_empty: bool = False) -> None:
        """Check a batch; the values of the first one too, since to look at those of every one would wait for a GPU."""
        check_type("batch", batch, Batch, "a robustill.Batch: Batch(x=images, y=labels, index=ids)")
        check_generators("generator", generator, len(batch.x), batch.x.device)
        if self._has_seen_images or (may_be_empty and len(batch.x) == 0):
            return
        check_images(batch.x, values=True, rounding=ROUNDING)
        check_label_range(batch.y, None)
        self._has_seen_images = True

    def _perturbed_student(
        self, parts: Sequence[Batch], outer: Callable[[int, Network], Outcome], images: int
    ) -> Network:
        """Return the student at the weights of AWP, which maximise the outer loss over all parts; itself without AWP.

        Args:
            parts: the parts of the batch.
            outer: from the number of a part and a network to the outcome.
            images: number of images that the loss is averaged over.
        """
        if self.awp is None:
            return self.student

        def mean_loss(number: int) -> Callable[[Network], Tensor]:
            return lambda network: outer(number, network).loss.sum() / images

        # Only the pass that trains, at the perturbed weights, may update the statistics of BatchNorm.
        with preserving_buffers(self.student, self.method):
            return perturb_weights(self.student, [mean_loss(number) for number in range(len(parts))], self.awp)

    def _starts(
        self, batch: Batch, generator: Generators | None, parts: Sequence[Batch], share: BatchShare | None
    ) -> list[Start | Tensor]:
        """Return where the attack starts on each part; random starts are drawn for the whole batch at once."""
        if len(parts) == 1 and share is None:
            return [self._start(batch.x, generator)]
        x = batch.x
        if share is not None:
            x = x.new_zeros((share.total, *batch.x.shape[1:])).contiguous(memory_format=torch.channels_last)
            x[share.own] = batch.x
        start = self._start(x, generator)
        if not isinstance(start, Tensor):
            start = run_pgd(_unused_loss, x, self.threat, steps=0, step_size=0.0, start=start, generator=generator)
        if share is not None:
            start = start[share.own]
        return list(start.tensor_split(len(parts)))

    def _start(self, x: Tensor, generator: Generators | None) -> Start | Tensor:
        return self.start if self.noise is None else noisy_start(x, self.threat, self.noise, generator)

    @contextmanager
    def _precision(self, batch: Batch) -> Iterator[None]:
        """Compute networks in the step's precision."""
        bf16 = self.precision == "bf16"
        # Activations that are computed again in the backward pass, outside of this block, must be computed the same
        # way: without these convolutions.
        products = self._products if bf16 and not self.recompute else None
        with (
            torch.autocast(batch.x.device.type, torch.bfloat16, enabled=bf16),
            products or nullcontext(),
        ):
            yield

    def _activation_checkpointing(self) -> AbstractContextManager[None]:
        return recomputing_activations(self.student) if self.recompute else nullcontext()

    def attack(self, batch: Batch, generator: Generators | None = None, start: Start | None = None) -> Tensor:
        """Return the adversarial images alone, [B,C,H,W]; the errors are those of `parts`."""
        self._check_batch(batch, generator)
        if start is not None:
            check_choice("start", start, get_args(Start))
        self._check_networks(batch)
        return self._attack(batch, self._teacher[0], generator, start or self._start(batch.x, generator))

    @torch.no_grad()
    def clean_logits(self, batch: Batch) -> Tensor:
        """Return the student's logits [B,K] at x in its present mode, without updating its running statistics."""
        with self._precision(batch), preserving_buffers(self.student):
            logits: Tensor = self.student(batch.x)
            return logits

    def _attack(self, batch: Batch, teacher: nn.Module, generator: Generators | None, start: Start | Tensor) -> Tensor:
        modes = evaluating(self.student) if self.batchnorm == "eval" else evaluating()
        with self._precision(batch), modes, frozen(self.student), self._activation_checkpointing():
            loss_fn = self.method.inner(batch, self._attacked_network(batch), teacher)
            if loss_fn is None:
                return batch.x
            if not callable(loss_fn):
                raise ConfigError(
                    f"method {type(self.method).__name__} returns a {type(loss_fn).__name__} from inner: expected a "
                    "function from images to one loss a sample, or None"
                )
            threat, noise = self.threat, self.noise
            return run_pgd(
                loss_fn,
                batch.x,
                threat if noise is None else within_reach(threat, noise, self.steps, self.step_size),
                steps=self.steps,
                step_size=self.step_size,
                start=start,
                generator=generator,
            )

    def _check_networks(self, batch: Batch) -> None:
        """Check in the first attack that the networks keep the contract."""
        if self.is_checked["attack"] or len(batch.x) == 0:
            return
        self.is_checked["attack"] = True
        x = batch.x[:_NUM_PROBE_IMAGES]
        is_attacked = type(self.method).inner is not Clean.inner
        lines = check_network(self.student, x, None, "the student", differentiable=is_attacked)
        if self.method.roles:
            num_classes = _num_classes(self.student, x)
            teachers = self._teacher[0]
            named = teachers.items() if isinstance(teachers, nn.ModuleDict) else [(self.method.roles[0], teachers)]
            for role, teacher in named:
                lines += check_network(teacher, x, num_classes, f"the teacher {role}")
        for line in lines:
            warnings.warn(line, stacklevel=3)

    def _check_student(self, batch: Batch) -> None:
        """Check in the first step that the student can be trained on such a batch."""
        if self.is_checked["training"] or len(batch.x) == 0:
            return
        self.is_checked["training"] = True
        x = batch.x[:_NUM_PROBE_IMAGES]
        num_classes = _num_classes(self.student, x)
        check_label_range(batch.y, num_classes)
        if torch.is_grad_enabled():
            check_training(self.student, x, num_classes, "the student")

    def _attacked_network(self, batch: Batch) -> Network:
        """Return the folded copy of the student at its present weights, or the student where there is no copy."""
        if self._folded is None:
            return self.student
        bf16 = self.precision == "bf16"
        copy = self._folded.updated(self.student, batch.x, bf16=bf16)
        return self.student if copy is None else copy


def check_awp(student: nn.Module) -> None:
    """Check that the weights of a network can be perturbed.

    Raises:
        ConfigError: it is, or holds, a ScriptModule, or it has no weight that AWP perturbs.
    """
    if any(isinstance(each, torch.jit.ScriptModule) for each in student.modules()):
        raise ConfigError(
            "awp with a ScriptModule, whose weights cannot be perturbed: train the network that it was made from, or "
            "leave awp out"
        )
    if not any(each.ndim > 1 and each.requires_grad for each in student.parameters()):
        raise ConfigError(
            "awp with a student of which no weight of two dimensions or more is trained, so that there is none to "
            "perturb: train one (see optim.freeze), or leave awp out"
        )


class _FoldedStudent:
    """A copy of the student with BatchNorm folded, made for the first images that are attacked.

    It is not an nn.Module, so that the copy does not become part of the state of the step.
    """

    def __init__(self) -> None:
        self.copy: TrackingCopy | None = None
        """None before the first images, and for a student that cannot be copied."""
        self._is_made = False

    def updated(self, student: nn.Module, x: Tensor, *, bf16: bool) -> TrackingCopy | None:
        """Return the copy with the student's present weights, or None if the student cannot be copied."""
        if not self._is_made:
            self.copy = TrackingCopy.of(student, x, bf16=bf16)
            self._is_made = True
        if self.copy is not None:
            self.copy.sync(student)
        return self.copy


def _check_teachers(method: Method, teacher: nn.Module | None) -> None:
    """Raise ConfigError unless these are the teachers, by role, that the method needs."""
    roles, name = method.roles, type(method).__name__
    if not roles:
        return
    if teacher is None:
        expected = "one network" if len(roles) == 1 else f"an nn.ModuleDict with {', '.join(roles)}"
        raise ConfigError(f"method {name} learns from a teacher, but none is given: expected {expected}")
    given = set(teacher.keys()) if isinstance(teacher, nn.ModuleDict) else None
    if len(roles) == 1 and given is not None:
        raise ConfigError(f"method {name} has one teacher, {roles[0]}: expected that network, not an nn.ModuleDict")
    if len(roles) > 1 and not set(roles) <= (given or set()):
        found = (
            f"one {type(teacher).__name__}" if given is None else f"an nn.ModuleDict with {', '.join(sorted(given))}"
        )
        raise ConfigError(
            f"method {name} has the teachers {', '.join(roles)}, but {found} is given: expected an nn.ModuleDict with "
            "one network for each of these roles"
        )


def _check_outcome(method: Method, outcome: Outcome, part: Batch) -> None:
    """Raise ConfigError unless the method returned one loss a sample, which does not wait for the device."""
    name = type(method).__name__
    if not isinstance(outcome, Outcome):
        raise ConfigError(
            f"method {name} returns a {type(outcome).__name__} from outer: expected robustill.Outcome(loss=..., "
            "logits=...)"
        )
    for field, ndim in (("loss", 1), ("logits", 2)):
        value = getattr(outcome, field)
        if value.ndim != ndim or len(value) != len(part.y):
            expected = f"one value a sample, {list(part.y.shape)}" if ndim == 1 else f"[{len(part.y)}, K]"
            raise ConfigError(f"method {name} gives a {field} of shape {list(value.shape)}: expected {expected}")
    if torch.is_grad_enabled() and not outcome.loss.requires_grad:
        raise ConfigError(f"method {name} gives a loss without a gradient: look for detach() or no_grad() in outer")


@torch.no_grad()
def _num_classes(student: nn.Module, x: Tensor) -> int:
    with evaluating(student), preserving_random_numbers(x.device):
        logits: Tensor = student(x.clone())
        return logits.shape[1]


def _unused_loss(x: Tensor) -> Tensor:
    raise AssertionError("an attack of no steps must not compute its loss")


def _step_logits(batch: Batch, x_adv: Tensor, outcome: Outcome, teacher: nn.Module, roles: Sequence[str]) -> StepLogits:
    if isinstance(teacher, nn.ModuleDict):
        # Of several teachers the robust one, which is a method's first.
        teacher = teacher[roles[0]]
    assert isinstance(teacher, _MemoizedTeacher)
    # Without an adversary, the images trained on are the clean ones.
    is_attacked = x_adv is not batch.x
    return StepLogits(
        adversarial=outcome.logits if is_attacked else None,
        clean=outcome.clean_logits if is_attacked else outcome.logits,
        teacher_adversarial=teacher.computed_logits(x_adv) if is_attacked else None,
        teacher_clean=teacher.computed_logits(batch.x),
    )


def _memoize(teacher: nn.Module, x: Tensor) -> nn.Module:
    """Return the teacher, or the teachers by role, such that each computes its logits on x and on x' only once."""
    if isinstance(teacher, nn.ModuleDict):
        return nn.ModuleDict({role: _MemoizedTeacher(each, x) for role, each in teacher.items()})
    return _MemoizedTeacher(teacher, x)


class _MemoizedTeacher(nn.Module):
    """A teacher that remembers its logits during one step, by the identity of the images.

    Args:
        teacher: the frozen network.
        x: the clean images of the step, for which logits may be cached across epochs.
    """

    def __init__(self, teacher: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.teacher = teacher
        self.x = x
        self.results: list[tuple[Tensor, Tensor]] = []

    def computed_logits(self, images: Tensor) -> Tensor | None:
        """Return the logits on these images if they were computed before."""
        for earlier_images, logits in self.results:
            if earlier_images is images:
                return logits
        return None

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            logits: Tensor = self.teacher(images)
            return logits
        computed = self.computed_logits(images)
        if computed is not None:
            return computed
        with torch.no_grad():
            if isinstance(self.teacher, CachedTeacher) and images is self.x:
                logits = self.teacher.clean_logits(images)
            else:
                logits = self.teacher(images)
        self.results.append((images, logits))
        return logits
