"""Forecast what a run will cost on this machine: count the passes of a training step, and time a few steps."""

from __future__ import annotations

import copy
import math
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robustill.attacks.cost import seconds_per_pass
from robustill.attacks.suites import find_suite
from robustill.config.files import named_code
from robustill.config.schema import Config, TeacherConfig
from robustill.config.split import load_split
from robustill.core.contexts import copy_network
from robustill.core.device import configure_process
from robustill.core.distributed import SINGLE_PROCESS
from robustill.core.memory_format import place
from robustill.core.randomness import generator
from robustill.core.user_code import TrustCode, only_named
from robustill.methods import build_method
from robustill.methods.base import SELF, Batch, Method
from robustill.models import build
from robustill.models.loading import Shape
from robustill.models.robustbench import find_entry
from robustill.runs.directory import RunDirectory, split_checkpoint
from robustill.teachers.ensemble import combine
from robustill.teachers.loading import load_teacher
from robustill.threat import Threat
from robustill.training.adversary import steps_in_epoch
from robustill.training.batches import Batches
from robustill.training.guard import passes_of_check
from robustill.training.optimizer import build_optimizer
from robustill.training.setup import TrainingSetup, build_step, set_up_training
from robustill.training.step import Step

# Of the small network and the batch on which passes are counted.
_CLASSES = 3
_IMAGES = 2

# Of the probe.
_MAX_STEPS = 20
_MIN_STEPS = 2
_TIMED_IMAGES = 64


# Passes.


@dataclass(frozen=True, kw_only=True)
class Passes:
    """The passes of one training step over a batch of B images; one pass over x and x' together, 2B images, counts 2.

    Args:
        student_forward: forward passes of the student, in the attack and the loss together.
        student_backward: backward passes through the student, to the images or to the weights.
        teacher_forward: forward passes of the teacher, which each member of an ensemble makes. A network that the
            method trains beside the student counts as a teacher.
        teacher_backward: backward passes through the teacher.
    """

    student_forward: int
    student_backward: int
    teacher_forward: int
    teacher_backward: int


def count_passes(method: Method, steps: int) -> Passes:
    """Count the passes of a training step on one small batch of the last epoch, when every term of a loss is active.

    Args:
        method: a new method; it is not changed.
        steps: number of PGD steps.

    Example:
        >>> from robustill.methods import build_method
        >>> count_passes(build_method("at"), steps=10)
        Passes(student_forward=11, student_backward=11, teacher_forward=0, teacher_backward=0)
    """
    method = copy.deepcopy(method)
    count: Counter[str] = Counter()
    student = _counting_network("student", count)
    method.set_up(lambda *_, **__: _counting_network("teacher", count))
    teachers = [(role, 1.0, _counting_network("teacher", count)) for role in method.roles]
    step = Step(student, method, combine(teachers), Threat(norm="linf", eps=0.1), steps=steps, step_size=0.05)
    # The passes of the checks do not count.
    step.is_checked = dict.fromkeys(step.is_checked, True)
    x = torch.linspace(0, 1, 4 * _IMAGES).view(_IMAGES, 1, 2, 2)
    labels = torch.arange(_IMAGES)
    outcome = step(Batch(x=x, y=labels, index=labels, epoch=99, epochs=100), torch.Generator())
    outcome.loss.mean().backward()
    return Passes(
        student_forward=count["student forward"],
        student_backward=count["student backward"],
        teacher_forward=count["teacher forward"],
        teacher_backward=count["teacher backward"],
    )


def attack_steps(config: Config) -> Counter[int]:
    """Return how many epochs attack with how many PGD steps."""
    return Counter(steps_in_epoch(config, epoch) for epoch in range(config.optim.epochs))


def passes_per_image(config: Config) -> tuple[float, float]:
    """Count the passes of a training image in an epoch, on average: through the student, and through all teachers.

    The passes through teachers are divided evenly among the roles, as in `step_gflops`, and each network of a role is
    passed.
    """
    method = build_method(config.method.name, **config.method.options)
    networks = len(config.teachers) + (SELF in method.roles)
    teachers_a_pass = networks / len(method.roles) if networks else 1.0
    student = teachers = 0.0
    for steps, epochs in attack_steps(config).items():
        passes, share = count_passes(method, steps), epochs / config.optim.epochs
        student += share * (passes.student_forward + passes.student_backward)
        teachers += share * teachers_a_pass * (passes.teacher_forward + passes.teacher_backward)
    return student, teachers


def num_networks(config: Config) -> int:
    """Count the student and the averages of its weights."""
    return 1 + (config.optim.ema is not None) + (config.optim.swa is not None)


def validation_passes(config: Config, images: int) -> float:
    """Return the passes of the validation in an epoch, on average, through the student and its averages together."""
    return num_networks(config) * images * (2 * config.validation.steps + 2) / config.validation.every


def guard_passes(config: Config, images: int) -> float:
    """Return the passes of the guard's checks in an epoch over so many images, without those of its answers."""
    if config.attack.guard is None:
        return 0.0
    checks = math.ceil(math.ceil(images / config.optim.batch_size) / config.attack.guard)
    return checks * passes_of_check(config.attack.steps, config.optim.batch_size)


def training_gflops(config: Config, *, train: int, validation: int, student: float, teachers: Sequence[float]) -> float:
    """Return the 10⁹ floating-point operations of a whole training, with its validation.

    Args:
        config: the configuration of the run.
        train: number of training images.
        validation: number of validation images.
        student: as for `step_gflops`.
        teachers: as for `step_gflops`.
    """
    method = build_method(config.method.name, **config.method.options)
    looks = validation_passes(config, validation) + guard_passes(config, train)
    total = config.optim.epochs * looks * student
    for steps, epochs in attack_steps(config).items():
        total += epochs * train * step_gflops(count_passes(method, steps), steps, student, teachers)
    return total


def step_gflops(passes: Passes, attack_steps: int, student: float, teachers: Sequence[float]) -> float:
    """Return the 10⁹ floating-point operations of one image in a training step.

    A backward pass that also computes the gradient of the weights, as the last ones of a step do, has the cost of two.

    Args:
        passes: of the step.
        attack_steps: number of PGD steps, which compute the gradient of the image alone.
        student: 10⁹ operations of the student for one image forward.
        teachers: the same for the networks of each role together, among which the passes are divided evenly. If there
            is none, the passes are those of a network like the student that the method trains.

    Example:
        >>> at = Passes(student_forward=4, student_backward=4, teacher_forward=0, teacher_backward=0)
        >>> step_gflops(at, 3, student=2.0, teachers=[])    # 4 + 3 + 2·1 forward passes' worth
        18.0
    """
    weight_backward = max(passes.student_backward - attack_steps, 0)
    own = passes.student_forward + passes.student_backward + weight_backward
    others = passes.teacher_forward + passes.teacher_backward
    return own * student + others * (sum(teachers) / len(teachers) if teachers else student)


def network_gflops(network: nn.Module, image_shape: Sequence[int]) -> float:
    """Return the 10⁹ floating-point operations of one image forward; the network may be on the device "meta".

    Args:
        network: images [B,C,H,W] to logits.
        image_shape: (C,H,W).
    """
    x = torch.zeros(1, *image_shape, device=next(network.parameters()).device)
    network = copy.deepcopy(network).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    return float(counter.get_total_flops()) / 1e9


def model_gflops(name: str, options: Mapping[str, Any], shape: Shape) -> float:
    """Return the 10⁹ floating-point operations of one image forward through a network that is only described.

    Args:
        name: a key of MODELS, or what else `build` takes.
        options: of the network.
        shape: the images and classes.
    """
    with torch.device("meta"):
        network = build(
            name,
            num_classes=shape.num_classes,
            in_channels=shape.in_channels,
            image_size=shape.image_size,
            **options,
        )
    return network_gflops(network, (shape.in_channels, *shape.image_size))


def teacher_gflops(teacher: TeacherConfig, shape: Shape) -> float | None:
    """Return the 10⁹ floating-point operations of a teacher for one image forward; None for a run that does not exist.

    Raises:
        RobustillError: its network cannot be loaded.
    """
    kind, _, rest = teacher.spec.partition(":")
    if kind == "robustbench":
        # The architecture is known without its file.
        entry = find_entry(rest.partition("=")[0], shape.num_classes)
        options = {key: value for key, value in entry.options.items() if key not in ("mean", "std")}
        return model_gflops(entry.model, options, shape)
    if kind == "run":
        folder = Path(split_checkpoint(rest)[0])
        if not folder.exists():
            return None
        model = dict(RunDirectory.existing(folder).config()["model"])
        options = {key: value for key, value in model.items() if key not in ("name", "mean", "std", "quantize")}
        return model_gflops(model["name"], options, shape)
    network = load_teacher(teacher, shape).module
    return network_gflops(network, (shape.in_channels, *shape.image_size))


def _counting_network(name: str, count: Counter[str]) -> nn.Module:
    """Return a small network that counts its forward and backward passes under its name."""
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, _CLASSES))

    def count_pass(_: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> None:
        batches = len(logits) // _IMAGES
        count[f"{name} forward"] += batches
        if logits.requires_grad:
            logits.register_hook(lambda _: count.update({f"{name} backward": batches}))  # type: ignore[no-untyped-call]

    network.register_forward_hook(count_pass)
    return network


# The forecast.


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The expected cost of one run.

    Args:
        images: number of training images.
        validation_images: number of validation images.
        epochs: number of epochs, if the run is not stopped early.
        step: passes of a training step.
        student_gflops: 10⁹ floating-point operations of the student for one image forward.
        teacher_gflops: the same for all teachers together.
        step_gflops: the same for one image in a whole training step.
        images_per_second: measured speed of training.
        epoch_seconds: time of one epoch, on average, with its validation.
        evaluation_seconds: time of AutoAttack on the test images if half of them are robust, at most.
        memory: bytes that a step needs beside the weights: on a GPU all of them, on a CPU the activations kept for the
            backward pass.
        checkpoint: bytes of one checkpoint, approximately.
        stand_ins: specifications of the teachers if one of them does not exist yet: each is then replaced by a network
            like the student.
        device: the device that was measured.
    """

    images: int
    validation_images: int
    epochs: int
    step: Passes
    student_gflops: float
    teacher_gflops: float
    step_gflops: float
    images_per_second: float
    epoch_seconds: float
    evaluation_seconds: float
    memory: int
    checkpoint: int
    stand_ins: tuple[str, ...]
    device: str

    @property
    def training_seconds(self) -> float:
        """Time of all epochs."""
        return self.epochs * self.epoch_seconds


def forecast(config: Config, *, seconds: float = 60.0, trust_code: TrustCode = False) -> Forecast:
    """Forecast the cost of a run from counted passes and a short measurement; nothing is trained or written.

    Args:
        config: the configuration of the run.
        seconds: time to measure; at least two training steps are made.
        trust_code: as for `train`.

    Raises:
        RobustillError: the data does not exist, or something does not fit.
    """
    with only_named(*named_code(config), trust=trust_code):
        return _forecast(config, seconds)


def _forecast(config: Config, seconds: float) -> Forecast:
    device = configure_process(config.compute)
    with torch.random.fork_rng():
        setup, stand_ins = _set_up(config, device)
        test = load_split(config, "test")
        step = count_passes(setup.method, config.attack.steps)
        image_shape = (setup.shape.in_channels, *setup.shape.image_size)
        student_gflops = network_gflops(setup.student, image_shape)
        teacher_gflops = [network_gflops(each, image_shape) for each in _teachers_by_role(setup)]
        step_seconds, memory = _time_steps(config, setup, device, seconds)
        pass_seconds = time_pass(config, setup)
    num_train, num_validation = len(setup.split.train), len(setup.split.validation)
    images_per_second = config.optim.batch_size / step_seconds
    # Where the steps of the attack grow, earlier epochs have fewer passes than the last, which was timed.
    passes_share = passes_per_image(config)[0] / (step.student_forward + step.student_backward)
    other_passes = validation_passes(config, num_validation) + guard_passes(config, num_train)
    attack_passes = find_suite("standard").expected_passes(config.threat.build(), setup.shape.num_classes)
    return Forecast(
        images=num_train,
        validation_images=num_validation,
        epochs=config.optim.epochs,
        step=step,
        student_gflops=student_gflops,
        teacher_gflops=sum(teacher_gflops),
        step_gflops=step_gflops(step, config.attack.steps, student_gflops, teacher_gflops),
        images_per_second=images_per_second,
        epoch_seconds=passes_share * num_train / images_per_second + other_passes * pass_seconds,
        evaluation_seconds=len(test) * attack_passes * pass_seconds,
        memory=memory,
        checkpoint=_checkpoint_bytes(config, setup.student),
        stand_ins=stand_ins,
        device=str(device),
    )


def _set_up(config: Config, device: torch.device) -> tuple[TrainingSetup, tuple[str, ...]]:
    """Set up the run; if a teacher does not exist yet, networks like the student take the place of all teachers.

    Returns:
        The setup, and the specifications of the teachers that were replaced.
    """
    specs = tuple(each.spec for each in config.teachers)
    if not any(_is_missing(spec) for spec in specs):
        return set_up_training(config, device), ()
    setup = set_up_training(config.model_copy(update={"teachers": ()}), device)
    stand_ins = [(each.role, each.weight, copy_network(setup.student)) for each in config.teachers]
    teacher = combine(stand_ins, config.teacher_mean)
    assert teacher is not None
    return replace(setup, teacher=place(teacher, device, setup.validation[0][:2].float() / 255)), specs


def _is_missing(spec: str) -> bool:
    """Return whether a specification names a run directory that does not exist."""
    kind, _, rest = spec.partition(":")
    return kind == "run" and not Path(split_checkpoint(rest)[0]).exists()


def _teachers_by_role(setup: TrainingSetup) -> list[nn.Module]:
    """Return the networks of each role, as one module a role; none without teachers."""
    teacher = setup.teacher
    if teacher is None:
        return []
    return list(teacher.values()) if isinstance(teacher, nn.ModuleDict) else [teacher]


def _checkpoint_bytes(config: Config, student: nn.Module) -> int:
    """Return the bytes of the weights, of as much optimizer state, and of each average of the weights."""
    weights: int = sum(each.numel() * each.element_size() for each in student.state_dict().values())
    averages = [each for each in (config.optim.ema, config.optim.swa) if each is not None]
    return weights * (2 + len(averages))


# Measurements.


def _time_steps(config: Config, setup: TrainingSetup, device: torch.device, seconds: float) -> tuple[float, int]:
    """Return the median seconds of a training step, made as in the run, and the most bytes that a step needs."""
    step, batch_size = build_step(config, setup), config.optim.batch_size
    setup.student.train()
    optimizer = build_optimizer(
        [setup.student, setup.method], "sgd", learning_rate=1e-4, weight_decay=0.0, decay_all=True, momentum=0.9,
        nesterov=False,
    )  # fmt: skip
    times: list[float] = []
    began, memory = time.perf_counter(), _PeakMemory(device)
    source = Batches(config, setup, SINGLE_PROCESS)
    batches = source.shares(0)
    # The first step sets up kernels and does not count.
    while len(times) <= _MIN_STEPS or (time.perf_counter() - began < seconds and len(times) <= _MAX_STEPS):
        try:
            batch, _ = next(batches)
        except StopIteration:
            batches = source.shares(len(times) % config.optim.epochs)
            continue
        step_began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        draws = generator(config.seed, "probe", len(times), device=device)
        # Memory is measured in the first step alone, because that takes time.
        with nullcontext() if times else memory.measuring():
            for part, outcome in step.parts(batch, draws, config.optim.accumulate):
                loss = outcome.loss.mean() * (len(part.y) / len(batch.y))
                torch.autograd.backward(loss)
        optimizer.step()
        # Wait for the device.
        loss.item()
        # The time of a smaller last batch is scaled to a whole one.
        times.append((time.perf_counter() - step_began) * batch_size / len(batch.y))
    return median(times[1:]), memory.peak


def time_pass(config: Config, setup: TrainingSetup, *, gradient: bool = True) -> float:
    """Return the seconds of a pass of one image through the student in an evaluation, see `seconds_per_pass`.

    Args:
        config: the configuration of the run.
        setup: its student and its validation images.
        gradient: whether to time attacks; if not, passes forward alone.
    """
    images, labels = (each[:_TIMED_IMAGES] for each in setup.validation)
    x = (images.float() / 255).contiguous(memory_format=torch.channels_last)
    return seconds_per_pass(setup.student, x, labels, config.threat.build(), gradient=gradient)


class _PeakMemory:
    """The most bytes that a step needs at one time: on a GPU all of them, on a CPU those saved for the backward pass.

    Args:
        device: the device that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0
        self._saved: list[weakref.ref[_SavedTensor]] = []
        self._bytes = 0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure what is computed inside the block."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            yield
            self.peak = max(self.peak, torch.cuda.max_memory_allocated(self.device) - before)
            return
        # What the allocator of a CPU requests from the system depends on what it has left from before; this does not.
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield

    def _pack(self, tensor: Tensor) -> _SavedTensor:
        saved = _SavedTensor(tensor)
        self._saved.append(weakref.ref(saved))
        self._bytes += saved.size
        if self._bytes > self.peak:
            # The sum counts tensors that were freed since, and storage that is shared: count exactly.
            referents = [reference() for reference in self._saved]
            alive = [each for each in referents if each is not None]
            self._saved = [weakref.ref(each) for each in alive]
            sizes = {each.storage: each.size for each in alive}
            self._bytes = sum(sizes.values())
            self.peak = max(self.peak, self._bytes)
        return saved

    @staticmethod
    def _unpack(saved: _SavedTensor) -> Tensor:
        return saved.tensor


class _SavedTensor:
    """A tensor that a graph saves for its backward pass.

    Without a finaliser, because a signal that arrives in one would be lost.
    """

    def __init__(self, tensor: Tensor) -> None:
        # Detached: an output that is saved for its own gradient would keep its graph alive.
        self.tensor = tensor.detach()
        storage = tensor.untyped_storage()
        self.storage, self.size = storage.data_ptr(), storage.nbytes()
