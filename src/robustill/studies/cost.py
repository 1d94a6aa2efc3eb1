"""What the runs of a study cost, in passes of an image through a network, and in seconds from a timed step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from robustill.attacks.suites import find_suite
from robustill.config.schema import Config, make_config
from robustill.config.split import load_split, make_split
from robustill.core.device import configure_process
from robustill.core.randomness import generator
from robustill.data import Dataset
from robustill.evaluation.evaluate import EPS_GRID
from robustill.methods import Batch, build_method
from robustill.methods.at import AT
from robustill.studies.design import EvaluationRequest
from robustill.studies.study import Study
from robustill.training.cost import Passes, count_passes, time_forward
from robustill.training.optimizer import build_optimizer
from robustill.training.setup import set_up_training
from robustill.training.step import Step

# A timed step of few images tells enough, and is over in seconds also for large networks.
_TIMED_IMAGES = 64
_TIMED_STEPS = 2
_TIMED_SECONDS = 2.0
# Of the images, those that withstand every attack and so cost all of it; the others are soon broken.
_WITHSTANDING = 0.5
# For a process, the data, the teachers and the files of a run, about.
BEGIN_SECONDS = 1.5


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one run, in passes: one image forward, or backward, through a network.

    Args:
        epoch: of one epoch and its share of the looks at the held-out part.
        teaching: those of them that are the teachers'.
        epochs: how many, if the run is not stopped early.
        evaluation: at the end, if one half of the images withstands the attacks.
    """

    epoch: float
    teaching: float
    epochs: int
    evaluation: float

    @property
    def total(self) -> float:
        """Of the whole run."""
        return self.epoch * self.epochs + self.evaluation


def costs(study: Study) -> dict[str, Cost]:
    """Of every run.

    Raises:
        RobustillError: the data is not there or does not fit: better said before anything begins.
    """
    sets: dict[str, tuple[Dataset, Dataset]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    pools: dict[str, int] = {}
    counted: dict[str, Passes] = {}
    found = {}
    for name, config in study.runs.items():
        # The seed of a split and the noise of its labels change no size.
        fold = None if config.data.fold is None else 0
        data = config.data.model_copy(update={"split_seed": 0, "label_noise": 0.0, "fold": fold}).model_dump_json()
        if data not in sets:
            sets[data] = load_split(config, "train"), load_split(config, "test")
            split = make_split(config, sets[data][0].labels, sets[data][0].num_classes)
            sizes[data] = len(split.train), len(split.validation)
            pools[data] = len(split.pool)
        step = f"{config.method.model_dump_json()} {config.attack.steps}"
        if step not in counted:
            method = build_method(config.method.name, **config.method.options)
            counted[step] = count_passes(method, config.attack.steps)
        train, test = sets[data]
        evaluation, asked = 0.0, study.asked(name)
        if asked is not None:
            images = len(test) if asked.split == "test" else pools[data]
            evaluation = _evaluation(config, asked, images, train.num_classes)
        found[name] = _cost(config, counted[step], sizes[data], evaluation)
    return found


def _cost(config: Config, counted: Passes, sizes: tuple[int, int], evaluation: float) -> Cost:
    teaching = sizes[0] * (counted.teacher_forward + counted.teacher_backward) * max(1, len(config.teachers))
    own = sizes[0] * (counted.student_forward + counted.student_backward)
    looks = _networks(config) * sizes[1] * (2 * config.validation.steps + 2) / config.validation.every
    return Cost(epoch=own + teaching + looks, teaching=teaching, epochs=config.optim.epochs, evaluation=evaluation)


def _evaluation(config: Config, asked: EvaluationRequest, images: int, num_classes: int) -> float:
    suite = find_suite(asked.suite)
    units = suite.passes_per_image(config.threat.build(), num_classes)
    if asked.split == "test":
        images = min(images, asked.num_images or suite.num_images or images)
        # The curve over radii: one run of PGD-20 each.
        units += 41 * (len(EPS_GRID) - 1)
    # Of each network the best and the last epoch.
    return 2 * _networks(config) * images * units * _WITHSTANDING


def _networks(config: Config) -> int:
    """The student and its averages."""
    return 1 + (config.optim.ema is not None) + (config.optim.swa is not None)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of one network on this machine: seconds that a pass of an image takes.

    Args:
        training: in a training step, forward or backward.
        forward: alone.
    """

    training: float
    forward: float


def estimated_seconds(study: Study, found: Mapping[str, Cost]) -> dict[str, float]:
    """Of every run, from one timed training step of each network that the study trains."""
    speeds: dict[str, Speed] = {}
    own: dict[str, Speed] = {}
    for name, config in study.runs.items():
        network = f"{config.model.model_dump_json()} {config.compute.precision} {config.compute.device}"
        if network not in speeds:
            speeds[network] = _speed(config)
        own[name] = speeds[network]
    return {name: seconds(found[name], speed, [own[need] for need in study.needs[name]]) for name, speed in own.items()}


def seconds(cost: Cost, own: Speed, teachers: Sequence[Speed]) -> float:
    """Of one run.

    Args:
        cost: its passes.
        own: of the network that it trains.
        teachers: of the networks that teach it.

    Example:
        >>> cost = Cost(epoch=120.0, teaching=20.0, epochs=2, evaluation=50.0)
        >>> seconds(cost, Speed(training=0.1, forward=0.01), [Speed(training=9.0, forward=0.5)]) - BEGIN_SECONDS
        40.5
    """
    teaching = cost.teaching * sum(each.forward for each in teachers) / max(1, len(teachers))
    epoch = (cost.epoch - cost.teaching) * own.training + teaching
    return BEGIN_SECONDS + cost.epochs * epoch + cost.evaluation * own.forward


def _speed(config: Config) -> Speed:
    device = configure_process(config.compute)
    plain = {**config.model_dump(mode="json"), "method": {"name": "at"}, "teachers": [], "initial": None}
    pieces = set_up_training(make_config(plain), device)
    x, y, index = next(iter(pieces.loader.epoch(0)))
    few = Batch(x=x[:_TIMED_IMAGES].contiguous(memory_format=torch.channels_last), y=y[:_TIMED_IMAGES], index=index)
    threat = config.threat.build()
    step = Step(
        pieces.student,
        AT(),
        None,
        threat,
        steps=_TIMED_STEPS,
        step_size=threat.eps / 4,
        precision=config.compute.precision,
        light=config.compute.light_attack,
    )
    optimizer = build_optimizer(
        [pieces.student], "sgd", learning_rate=1e-3, weight_decay=0.0, decay_all=True, momentum=0.9, nesterov=False
    )
    counted = count_passes(AT(), _TIMED_STEPS)
    times: list[float] = []
    began = time.perf_counter()
    # The first sets up kernels and does not count.
    while len(times) < 2 or time.perf_counter() - began < _TIMED_SECONDS:
        at = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = step(few, generator(0, "timed", len(times), device=device)).loss.mean()
        torch.autograd.backward(loss)
        optimizer.step()
        # Waits for the device.
        loss.item()
        times.append(time.perf_counter() - at)
    one = median(times[1:]) / (len(few.y) * (counted.student_forward + counted.student_backward))
    return Speed(training=one, forward=time_forward(pieces))
