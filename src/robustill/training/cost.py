"""What one run will cost on this machine: counted passes, and a short probe of its own training step."""

from __future__ import annotations

import copy
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robustill.attacks.suites import find_suite
from robustill.config.schema import Config
from robustill.config.split import load_split
from robustill.core.contexts import full_float32
from robustill.core.device import configure_process, place
from robustill.core.distributed import ALONE
from robustill.core.randomness import generator
from robustill.methods.base import Batch, Method
from robustill.teachers.ensemble import combine
from robustill.threat import Threat
from robustill.training.batches import Batches
from robustill.training.optimizer import build_optimizer
from robustill.training.setup import TrainingSetup, build_step, prepare
from robustill.training.step import Step

_CLASSES = 3
_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Passes a training step, each over a batch of B images: one over the 2B images of x and x' together counts 2.

    Args:
        student_forward: of the student, attack and loss together.
        student_backward: through the student, towards the images or the weights.
        teacher_forward: of the teachers; of an ensemble this many for each member. A network that the method itself
            trains beside the student counts as a teacher.
        teacher_backward: through them.
    """

    student_forward: int
    student_backward: int
    teacher_forward: int
    teacher_backward: int


def passes(method: Method, steps: int) -> Passes:
    """Counted on one small batch of the last epoch, when everything a method begins later has begun.

    Args:
        method: newly built; left as it is.
        steps: of PGD.

    Example:
        >>> from robustill.methods import build_method
        >>> passes(build_method("at"), steps=10)
        Passes(student_forward=11, student_backward=11, teacher_forward=0, teacher_backward=0)
    """
    method = copy.deepcopy(method)
    count: Counter[str] = Counter()
    student = _network("student", count)
    method.set_up(lambda *_, **__: _network("teacher", count))
    teachers = [(role, 1.0, _network("teacher", count)) for role in method.roles]
    step = Step(student, method, combine(teachers), Threat(norm="linf", eps=0.1), steps=steps, step_size=0.05)
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


def _network(who: str, count: Counter[str]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, _CLASSES))

    def counted(_: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> None:
        size = len(logits) // _IMAGES
        count[f"{who} forward"] += size
        if logits.requires_grad:
            logits.register_hook(lambda _: count.update({f"{who} backward": size}))  # type: ignore[no-untyped-call]

    network.register_forward_hook(counted)
    return network


_MOST_STEPS = 20
_FEWEST_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of one run.

    Args:
        images: to train on.
        held_out: images that choose the epoch.
        epochs: if it is not stopped early.
        step: passes of a training step.
        student_gflops: of one image forward through the student, 10⁹ floating-point operations.
        teacher_gflops: through all teachers together.
        step_gflops: of one image in a whole training step.
        images_per_second: in training, measured.
        epoch_seconds: training and the looks at held-out images.
        evaluation_seconds: of AutoAttack on the test images if one half of them is robust, at most.
        memory: bytes that a step needs beside the weights: on a GPU all, on a CPU what is kept for the gradient.
        checkpoint: bytes of one kept epoch, about.
        stand_ins: the teachers, where one is not there yet: the student's network stood in for each.
        device: where.
    """

    images: int
    held_out: int
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
        """Of all epochs."""
        return self.epochs * self.epoch_seconds


def forecast(config: Config, *, seconds: float = 60.0) -> Forecast:
    """Count and measure; nothing is trained or written.

    Args:
        config: of the run.
        seconds: that the probe takes, about; at least two training steps.

    Raises:
        RobustillError: the data is not there, or something does not fit.
    """
    device = configure_process(config.compute)
    with torch.random.fork_rng():
        pieces, stand_ins = _pieces(config, device)
        test = load_split(config, "test")
        counted = passes(pieces.method, config.attack.steps)
        student, teachers = _gflops(pieces.student, pieces), _of_teachers(pieces)
        step_seconds, memory = _probe(config, pieces, device, seconds)
        one_pass = forward_seconds(pieces)
    # Towards the weights a backward pass does as much again.
    both = max(counted.student_backward - config.attack.steps, 0)
    units = counted.student_forward + counted.student_backward + both
    looks = len(pieces.split.validation) * (2 * config.validation.steps + 2) / config.validation.every
    rate = config.optim.batch_size / step_seconds
    attack_units = find_suite("standard").passes_per_image(config.threat.build(), pieces.shape.num_classes)
    weights = sum(each.numel() * each.element_size() for each in pieces.student.state_dict().values())
    return Forecast(
        images=len(pieces.split.train),
        held_out=len(pieces.split.validation),
        epochs=config.optim.epochs,
        step=counted,
        student_gflops=student,
        teacher_gflops=teachers,
        step_gflops=student * units + teachers * (counted.teacher_forward + counted.teacher_backward),
        images_per_second=rate,
        epoch_seconds=len(pieces.split.train) / rate + looks * one_pass,
        evaluation_seconds=len(test) / 2 * attack_units * one_pass,
        memory=memory,
        # Weights, and the optimizer's state of them; averages of the weights once more each.
        checkpoint=weights * (2 + (config.optim.ema is not None) + (config.optim.swa is not None)),
        stand_ins=stand_ins,
        device=str(device),
    )


def _pieces(config: Config, device: torch.device) -> tuple[TrainingSetup, tuple[str, ...]]:
    """Those of the run; where a teacher is not there yet, networks like the student stand in for all of them."""
    specs = tuple(each.spec for each in config.teachers)
    if not any(_is_missing(spec) for spec in specs):
        return prepare(config, device), ()
    pieces = prepare(config.model_copy(update={"teachers": ()}), device)
    given = [(each.role, each.weight, copy.deepcopy(pieces.student)) for each in config.teachers]
    teacher = combine(given, config.teacher_mean)
    assert teacher is not None
    return replace(pieces, teacher=place(teacher, device)), specs


def _is_missing(spec: str) -> bool:
    """Whether a run directory is yet to come."""
    kind, _, rest = spec.partition(":")
    return kind == "run" and not Path(rest.rpartition("@")[0] or rest).exists()


def _gflops(network: nn.Module, pieces: TrainingSetup) -> float:
    """Of one image forward."""
    parameter = next(network.parameters())
    C, (H, W) = pieces.shape.in_channels, pieces.shape.image_size
    one = torch.zeros(1, C, H, W, device=parameter.device)
    few = copy.deepcopy(network).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        few(one)
    return float(counter.get_total_flops()) / 1e9


def _of_teachers(pieces: TrainingSetup) -> float:
    teacher = pieces.teacher
    if teacher is None:
        return 0.0
    by_role = list(teacher.values()) if isinstance(teacher, nn.ModuleDict) else [teacher]
    return sum(_gflops(each, pieces) for each in by_role)


def _probe(config: Config, pieces: TrainingSetup, device: torch.device, seconds: float) -> tuple[float, int]:
    """Seconds of a training step as the run makes it, and the most bytes it needs."""
    step, optim = build_step(config, pieces), config.optim
    pieces.student.train()
    optimizer = build_optimizer(
        [pieces.student, pieces.method], "sgd", learning_rate=1e-4, weight_decay=0.0, decay_all=True, momentum=0.9,
        nesterov=False,
    )  # fmt: skip
    times: list[float] = []
    began, memory = time.perf_counter(), _Memory(device)
    batches = Batches(config, pieces, ALONE)
    looked = batches.shares(0)
    # The first step sets up kernels and does not count.
    while len(times) <= _FEWEST_STEPS or (time.perf_counter() - began < seconds and len(times) <= _MOST_STEPS):
        try:
            batch, _ = next(looked)
        except StopIteration:
            looked = batches.shares(len(times))
            continue
        at = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        draws = generator(config.seed, "probe", len(times), device=device)
        # Only the first step is watched: that takes time.
        with nullcontext() if times else memory.watched():
            for part, outcome in step.parts(batch, draws, optim.accumulate):
                loss = outcome.loss.mean() * (len(part.y) / len(batch.y))
                torch.autograd.backward(loss)
        optimizer.step()
        # Waits for the device; and a last batch that is smaller counts as what it is.
        loss.item()
        times.append((time.perf_counter() - at) * optim.batch_size / len(batch.y))
    return median(times[1:]), memory.most


def forward_seconds(pieces: TrainingSetup) -> float:
    """Of one image forward through the student in float32, as evaluations compute; measured."""
    images = pieces.validation[0][:128]
    x = (images.float() / 255).contiguous(memory_format=torch.channels_last)
    pieces.student.eval()
    times = []
    with torch.no_grad(), full_float32():
        for _ in range(4):
            at = time.perf_counter()
            # Waits for the device.
            float(pieces.student(x).sum())
            times.append(time.perf_counter() - at)
    return median(times[1:]) / len(x)


class _Memory:
    """The most bytes that a step needs at one time: on a GPU all of them, on a CPU those kept for the gradient."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.most = 0
        self._kept: list[weakref.ref[_Kept]] = []
        self._bytes = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """For a step."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            yield
            self.most = max(self.most, torch.cuda.max_memory_allocated(self.device) - before)
            return
        # What the allocator of a CPU asks the system for depends on what it has left from before; this does not.
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Kept(tensor, self), lambda kept: kept.tensor):
            yield

    def keep(self, kept: _Kept) -> None:
        """One more graph holds it."""
        self._kept.append(weakref.ref(kept))
        self._bytes += kept.size
        if self._bytes <= self.most:
            return
        # Too many only seemingly, where some of them have been let go or share their storage.
        held = [each for reference in self._kept if (each := reference()) is not None]
        self._kept = [weakref.ref(each) for each in held]
        self._bytes = sum({each.place: each.size for each in held}.values())
        self.most = max(self.most, self._bytes)


class _Kept:
    """A tensor that a graph keeps for its way back; without a finaliser, in which a signal would be lost."""

    def __init__(self, tensor: Tensor, memory: _Memory) -> None:
        # Detached, or an output kept for its own gradient would keep its graph alive.
        self.tensor = tensor.detach()
        storage = tensor.untyped_storage()
        self.place, self.size = storage.data_ptr(), storage.nbytes()
        memory.keep(self)
