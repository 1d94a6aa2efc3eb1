"""The cost of the runs of a study: passes of an image through a network, and seconds, from a timed training step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from robustill.attacks.suites import ROBUST_SHARE, find_suite
from robustill.config.schema import Config, TeacherConfig, make_config
from robustill.config.split import load_split, make_split
from robustill.core.device import configure_process
from robustill.core.errors import ModelError
from robustill.core.randomness import generator
from robustill.evaluation.calibration_attack import CalibrationAttack
from robustill.evaluation.deployed import passes_per_image as shipped_passes
from robustill.evaluation.evaluate import EPS_GRID
from robustill.evaluation.worst_case import curve_passes
from robustill.methods import Batch, build_method
from robustill.methods.at import AT
from robustill.methods.base import SELF
from robustill.models.loading import Shape
from robustill.studies.design import EvaluationRequest
from robustill.studies.grid import Grid
from robustill.studies.shipping import FILES
from robustill.training.cost import (
    attack_steps,
    count_passes,
    guard_passes,
    model_gflops,
    num_networks,
    passes_per_image,
    teacher_gflops,
    time_pass,
    training_gflops,
    validation_passes,
)
from robustill.training.optimizer import build_optimizer
from robustill.training.setup import set_up_training
from robustill.training.step import Step

STARTUP_SECONDS = 1.5
"""The approximate time that a run needs to start its process, and to read the data and the teachers."""

# The timed training step: few images and attack steps, so that it takes seconds for large networks, too.
_TIMED_IMAGES = 64
_TIMED_ATTACK_STEPS = 2
_TIMED_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """The cost of one run, counted in passes: one image forward or backward through a network.

    Args:
        epoch: passes of one epoch, with its share of the validation.
        teachers: how many of these go through the teachers.
        epochs: number of epochs, without early stopping.
        evaluation: passes of the evaluation at the end and of the files as they are shipped, if half of the images are
            robust.
    """

    epoch: float
    teachers: float
    epochs: int
    evaluation: float

    @property
    def total(self) -> float:
        """The number of passes of the whole run."""
        return self.epoch * self.epochs + self.evaluation


def run_costs(grid: Grid) -> dict[str, RunCost]:
    """Count the passes of every run.

    Raises:
        RobustillError: the data of a run is missing or does not fit its configuration.
    """
    data = _Data()
    step_passes: dict[str, tuple[float, float]] = {}
    costs = {}
    for name, config in grid.runs.items():
        step = f"{config.method.model_dump_json()} {attack_steps(config)} {len(config.teachers)}"
        if step not in step_passes:
            step_passes[step] = passes_per_image(config)
        costs[name] = _run_cost(config, step_passes[step], data, grid.evaluation(name))
    return costs


@dataclass(frozen=True, kw_only=True)
class TrainingCompute:
    """What the training of one run takes, in 10⁹ floating-point operations, counted.

    Args:
        own: the training of the run itself, with its validation and the passes through its teachers, and without the
            evaluation at the end.
        teachers: the training of every run that it needs, directly or not; that of networks from elsewhere is unknown.
    """

    own: float
    teachers: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.own + self.teachers

    @property
    def cell(self) -> str:
        """The total in 10¹², as a cell of a table, with the part of the teachers in brackets."""
        total = f"{self.total / 1e3:,.1f}"
        return f"{total} ({self.teachers / 1e3:,.1f})" if self.teachers else total


def training_compute(grid: Grid) -> dict[str, TrainingCompute]:
    """Return what the training of each run takes; a teacher counts in full for each run that needs it.

    Raises:
        RobustillError: the data of a run is missing or does not fit its configuration, or a teacher from elsewhere
            cannot be loaded.
    """
    data, networks = _Data(), _Networks(grid)
    gflops = {}
    for name, config in grid.runs.items():
        images = data.sizes(config)
        student = networks.gflops(config, images.shape)
        method = build_method(config.method.name, **config.method.options)
        by_role = dict.fromkeys(method.roles, 0.0)
        for teacher in config.teachers:
            by_role[teacher.role] += networks.teacher_gflops(teacher, images.shape)
        if SELF in by_role:
            by_role[SELF] = student
        gflops[name] = training_gflops(
            config,
            train=images.train,
            validation=images.validation,
            student=student,
            teachers=list(by_role.values()),
        )
    return {
        name: TrainingCompute(own=own, teachers=sum((gflops[need] for need in all_needs(grid, name)), 0.0))
        for name, own in gflops.items()
    }


class _Networks:
    """The 10⁹ operations of one image forward through the networks of a grid and its teachers from elsewhere."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._found: dict[tuple[str, Shape], float] = {}

    def gflops(self, config: Config, shape: Shape) -> float:
        """Return those of the network that a run trains."""
        key = config.model.model_dump_json(), shape
        if key not in self._found:
            self._found[key] = model_gflops(config.model.name, config.model.options, shape)
        return self._found[key]

    def teacher_gflops(self, teacher: TeacherConfig, shape: Shape) -> float:
        """Return those of a teacher.

        Raises:
            RobustillError: a network from elsewhere cannot be loaded.
        """
        run = self._grid.named_run(teacher.spec)
        if run is not None:
            return self.gflops(self._grid.runs[run], shape)
        key = teacher.model_dump_json(), shape
        if key not in self._found:
            found = teacher_gflops(teacher, shape)
            if found is None:
                raise ModelError(f"teacher {teacher.spec} does not exist: expected the folder of a run")
            self._found[key] = found
        return self._found[key]


def check_teachers(grid: Grid) -> None:
    """Load the teachers from elsewhere once, so that a missing one is noticed before anything is trained.

    Raises:
        RobustillError: one cannot be loaded.
    """
    data, networks = _Data(), _Networks(grid)
    for config in grid.runs.values():
        for teacher in config.teachers:
            if grid.named_run(teacher.spec) is None:
                networks.teacher_gflops(teacher, data.sizes(config).shape)


def all_needs(grid: Grid, run: str) -> list[str]:
    """Return the runs that a run needs, directly or not, each once."""
    needs = [each for need in grid.needs[run] for each in (need, *all_needs(grid, need))]
    return list(dict.fromkeys(needs))


@dataclass(frozen=True, kw_only=True)
class _DataSizes:
    """The numbers of training images of one data configuration, and their shape."""

    train: int
    validation: int
    pool: int
    shape: Shape


class _Data:
    """The numbers of images of the runs of a grid: each data set is opened once, and a test set only if it is needed.

    The methods raise RobustillError if data is missing or does not fit the configuration.
    """

    def __init__(self) -> None:
        self._sizes: dict[str, _DataSizes] = {}
        self._tests: dict[str, int] = {}

    def sizes(self, config: Config) -> _DataSizes:
        """Return the numbers of training images."""
        key = _data_key(config)
        if key not in self._sizes:
            train = load_split(config, "train")
            split = make_split(config, train.labels, train.num_classes)
            self._sizes[key] = _DataSizes(
                train=len(split.train),
                validation=len(split.validation),
                pool=len(split.pool),
                shape=Shape.of(train),
            )
        return self._sizes[key]

    def num_test(self, config: Config) -> int:
        """Return the number of test images."""
        key = _data_key(config)
        if key not in self._tests:
            self._tests[key] = len(load_split(config, "test"))
        return self._tests[key]


def _data_key(config: Config) -> str:
    """Return a text that is equal for configurations with the same numbers of images."""
    # These numbers depend neither on the seed of the split, nor on the label noise, nor on which fold is left out.
    fold = None if config.data.fold is None else 0
    return config.data.model_copy(update={"split_seed": 0, "label_noise": 0.0, "fold": fold}).model_dump_json()


def _run_cost(config: Config, step: tuple[float, float], data: _Data, request: EvaluationRequest | None) -> RunCost:
    sizes = data.sizes(config)
    student, teachers = (sizes.train * passes for passes in step)
    looks = validation_passes(config, sizes.validation) + guard_passes(config, sizes.train)
    return RunCost(
        epoch=student + teachers + looks,
        teachers=teachers,
        epochs=config.optim.epochs,
        evaluation=0.0 if request is None else _evaluation_passes(config, request, data),
    )


def _evaluation_passes(config: Config, request: EvaluationRequest, data: _Data) -> float:
    suite, sizes = find_suite(request.suite), data.sizes(config)
    passes_per_image = suite.expected_passes(config.threat.build(), sizes.shape.num_classes)
    passes_per_image += CalibrationAttack.passes_per_image
    num_images = sizes.pool
    if request.split == "test":
        num_test = data.num_test(config)
        num_images = min(num_test, request.num_images or suite.num_images or num_test)
        passes_per_image += ROBUST_SHARE * curve_passes(len(EPS_GRID))
    # The best and the last epoch of each network are evaluated.
    num_checkpoints = 2 * num_networks(config) if request.checkpoints is None else len(request.checkpoints)
    passes = num_checkpoints * num_images * passes_per_image
    if request.ship:
        threat, number = config.threat.build(), min(data.num_test(config), request.num_shipped_images)
        # Each file is attacked through the network itself, with its gradient and that of the file's twin.
        attacks = shipped_passes(find_suite("deployed"), threat, sizes.shape.num_classes, surrogates=1, gradients=2)
        passes += len(FILES) * number * attacks * ROBUST_SHARE
    return passes


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed of one network on this machine, in seconds per pass of one image.

    Args:
        training: a pass forward or backward in a training step.
        forward: a pass forward without gradients, as of a teacher.
        attack: a pass forward or backward in an attack of the evaluation.
    """

    training: float
    forward: float
    attack: float


def estimated_seconds(grid: Grid, costs: Mapping[str, RunCost]) -> dict[str, float]:
    """Estimate the time of every run, from one timed training step of each network that the study trains.

    A teacher from elsewhere takes as much longer than the student as it has more operations.

    Raises:
        RobustillError: such a teacher cannot be loaded.
    """
    network_speeds: dict[str, Speed] = {}
    speeds: dict[str, Speed] = {}
    for name, config in grid.runs.items():
        network = f"{config.model.model_dump_json()} {config.compute.precision} {config.compute.device}"
        if network not in network_speeds:
            network_speeds[network] = _measure_speed(config)
        speeds[name] = network_speeds[network]
    data, networks = _Data(), _Networks(grid)

    def teacher_seconds(name: str, teacher: TeacherConfig) -> float:
        run, config = grid.named_run(teacher.spec), grid.runs[name]
        if run is not None:
            return speeds[run].forward
        shape = data.sizes(config).shape
        return speeds[name].forward * networks.teacher_gflops(teacher, shape) / networks.gflops(config, shape)

    return {
        name: run_seconds(costs[name], speeds[name], [teacher_seconds(name, each) for each in config.teachers])
        for name, config in grid.runs.items()
    }


def run_seconds(cost: RunCost, student: Speed, teachers: Sequence[float]) -> float:
    """Estimate the time of one run.

    Args:
        cost: its passes.
        student: the speed of the network that it trains.
        teachers: the seconds of a pass forward through each of its teachers.

    Example:
        >>> cost = RunCost(epoch=120.0, teachers=20.0, epochs=2, evaluation=50.0)
        >>> student = Speed(training=0.1, forward=0.05, attack=0.01)
        >>> run_seconds(cost, student, [0.5]) - STARTUP_SECONDS
        40.5
    """
    teacher_seconds = cost.teachers * sum(teachers) / max(1, len(teachers))
    epoch = (cost.epoch - cost.teachers) * student.training + teacher_seconds
    return STARTUP_SECONDS + cost.epochs * epoch + cost.evaluation * student.attack


def _measure_speed(config: Config) -> Speed:
    device = configure_process(config.compute)
    baseline = {**config.model_dump(mode="json"), "method": {"name": "at"}, "teachers": [], "initial": None}
    setup = set_up_training(make_config(baseline), device)
    x, y, index = next(iter(setup.loader.epoch(0)))
    x, y, index = (each[:_TIMED_IMAGES] for each in (x, y, index))
    batch = Batch(x=x.contiguous(memory_format=torch.channels_last), y=y, index=index)
    threat = config.threat.build()
    step = Step(
        setup.student,
        AT(),
        None,
        threat,
        steps=_TIMED_ATTACK_STEPS,
        step_size=threat.eps / 4,
        precision=config.compute.precision,
        light=config.compute.light_attack,
    )
    optimizer = build_optimizer(
        [setup.student], "sgd", learning_rate=1e-3, weight_decay=0.0, decay_all=True, momentum=0.9, nesterov=False
    )
    times: list[float] = []
    start = time.perf_counter()
    # The first step also selects kernels and allocates memory, and is not counted.
    while len(times) < 2 or time.perf_counter() - start < _TIMED_SECONDS:
        step_start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = step(batch, generator(0, "timed", len(times), device=device)).loss.mean()
        torch.autograd.backward(loss)
        optimizer.step()
        # .item() waits for the device.
        loss.item()
        times.append(time.perf_counter() - step_start)
    count = count_passes(AT(), _TIMED_ATTACK_STEPS)
    num_passes = len(batch.y) * (count.student_forward + count.student_backward)
    return Speed(
        training=median(times[1:]) / num_passes,
        forward=time_pass(config, setup, gradient=False),
        attack=time_pass(config, setup),
    )
