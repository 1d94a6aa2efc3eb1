"""From a configuration to the pieces of a run; what can be wrong is found here, before anything is written."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustill.config.schema import Config
from robustill.config.split import Split, load_split, make_split
from robustill.core.device import place
from robustill.core.distributed import ProcessGroup, process_group
from robustill.core.errors import ConfigError, DataError
from robustill.core.randomness import derive_seed
from robustill.data import DATASETS, Augmentation, Dataset, Loader
from robustill.data.extra import ExtraImages, MixedLoader, own_images
from robustill.data.images import MissingDataError
from robustill.methods import Method, build_method
from robustill.models.checks import check_network, check_single_image
from robustill.models.loading import LoadedNetwork, Shape, build_network, load_network
from robustill.teachers.ensemble import combine
from robustill.teachers.loading import _load_teacher, _with_cache
from robustill.training.optimizer import freeze
from robustill.training.step import Step


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """What a run needs, on its device."""

    dataset: Dataset
    split: Split
    shape: Shape
    student: nn.Module
    frozen: list[nn.Module]
    method: Method
    teacher: nn.Module | None
    teachers: list[LoadedNetwork]
    loader: Loader | MixedLoader
    validation: tuple[Tensor, Tensor]


def prepare(config: Config, device: torch.device) -> TrainingSetup:
    """Load the data and the teachers, build the student and the method.

    Raises:
        RobustillError: whatever does not exist or does not fit, in one line.
    """
    if config.data.name == "npz" and config.data.root is not None and config.data.root.suffix == ".npz":
        raise ConfigError(
            f"data.root {config.data.root} is one file, whose images would be trained on and tested on: give a folder "
            "with train.npz and test.npz"
        )
    dataset = load_split(config, "train")
    split = make_split(config, dataset.labels, dataset.num_classes)
    shape = Shape.of(dataset)
    _check_test_images(config, shape)
    config.threat.build().check_fits((shape.in_channels, *shape.image_size), str(shape))
    normalisation = _normalisation(config, dataset, split)
    options = {**config.model.options, **_of_network(config.model.name, config, normalisation)}
    student = build_network(config.model.name, shape, options, seed=config.seed)
    if config.initial is not None:
        _take_weights(student, config.initial, config.model.name, shape, options)
    frozen = freeze(student, config.optim.freeze)
    method = build_method(config.method.name, **config.method.options)

    def companion(name: str | None = None, **chosen: Any) -> nn.Module:
        own = config.model.options if name is None else {}
        name = name or config.model.name
        settings = {**own, **chosen, **_of_network(name, config, normalisation)}
        return build_network(name, shape, settings, seed=derive_seed(config.seed, "companion"))

    method.set_up(companion)
    teachers = [_load_teacher(each, shape) for each in config.teachers]
    combined = combine(
        ((each.role, each.weight, loaded.module) for each, loaded in zip(config.teachers, teachers, strict=True)),
        config.teacher_mean,
    )
    loader = _loader(config, dataset, split, device)
    images = dataset.read(split.validation).to(device)
    few = images[:2].float() / 255
    check_network(student, few.cpu(), shape.num_classes, f"student {config.model.name}")
    smallest = loader.images_at(len(loader) - 1)
    if smallest == 1 or smallest // config.optim.accumulate <= 1:
        parts = f" in {config.optim.accumulate} parts" if config.optim.accumulate > 1 else ""
        batch = f"the last batch ({len(loader.ids)} images by {config.optim.batch_size}s{parts})"
        mend = "change data.train_size, optim.batch_size or optim.accumulate a little"
        check_single_image(student, few[:1].cpu(), batch, mend)
    for each in teachers:
        each.module.to(device)
        check_network(each.module, few, shape.num_classes, f"teacher {each.spec}")
    return TrainingSetup(
        dataset=dataset,
        split=split,
        shape=shape,
        student=place(student, device),
        frozen=frozen,
        method=method.to(device),
        teacher=None if combined is None else place(_with_cache(config, teachers, combined, device), device),
        teachers=teachers,
        loader=loader,
        validation=(images, dataset.labels[split.validation].to(device)),
    )


def _check_test_images(config: Config, shape: Shape) -> None:
    """Whether somebody's own test images could be evaluated after the hours of training; nothing else is asked of them.

    Raises:
        DataError: they are damaged, or of other classes or another shape than the training images.
    """
    if DATASETS[config.data.name].image_shape is not None:
        return
    try:
        found = Shape.of(load_split(config, "test"))
    except MissingDataError as error:
        if process_group().is_main:
            warnings.warn(f"no test images, so the run can be trained but not evaluated on them: {error}", stacklevel=3)
        return
    except DataError as error:
        raise DataError(f"{error} (these are test images: mend them, or move them away to train without)") from None
    if found != shape:
        raise DataError(
            f"{config.data.root}: test images are {found}; expected, as those to train on, {shape}: mend them, or move "
            "them away to train without"
        )


def build_step(config: Config, pieces: TrainingSetup) -> Step:
    """The step that trains them."""
    attack = config.attack
    return Step(
        pieces.student,
        pieces.method,
        pieces.teacher,
        config.threat.build(),
        steps=attack.steps,
        step_size=attack.step_size,
        start=attack.start,
        batchnorm=attack.batchnorm,
        precision=config.compute.precision,
        awp=config.optim.awp,
        light=config.compute.light_attack,
        recompute=config.compute.recompute,
    )


def _loader(config: Config, dataset: Dataset, split: Split, device: torch.device) -> Loader | MixedLoader:
    data, batch_size = config.data, config.optim.batch_size
    loader = Loader(
        dataset,
        split.train,
        batch_size=batch_size if data.extra is None else own_images(batch_size, data.extra_share),
        seed=config.seed,
        augmentation=Augmentation(data.augmentations) if data.augmentation else None,
        device=device,
        labels=split.labels,
    )
    if data.extra is None:
        return loader
    extra = ExtraImages(data.extra, dataset.image_shape, dataset.num_classes)
    return MixedLoader(loader, extra, batch_size=batch_size)


def _take_weights(student: nn.Module, spec: str, name: str, shape: Shape, options: dict[str, Any]) -> None:
    """Let the student begin with the weights of another network of its architecture."""
    is_file = Path(spec).is_file()
    source = load_network(spec, shape=shape, name=name if is_file else None, options=options if is_file else None)
    weights, own = source.module.state_dict(), student.state_dict()
    fits = weights.keys() == own.keys() and all(weights[key].shape == own[key].shape for key in own)
    if not fits:
        raise ConfigError(f"initial {spec} is {source.architecture}, which does not fit the student {name}")
    student.load_state_dict(weights)


Normalisation = dict[str, tuple[float, ...] | None]
"""mean and std, as networks take them."""


def _of_network(name: str, config: Config, known: Normalisation) -> Normalisation:
    """What a network is told: somebody's own function takes images in [0,1] and has its own first layer."""
    return {"mean": config.model.mean, "std": config.model.std} if ":" in name else known


def _normalisation(config: Config, dataset: Dataset, split: Split) -> Normalisation:
    """The configured mean and deviation, or the data set's known ones, or those of (at most 10,000) training images."""
    entry, model = DATASETS[config.data.name], config.model
    mean, std = model.mean or entry.mean, model.std or entry.std
    if mean is None or std is None:
        x = dataset.read(split.train[:10_000]).float() / 255
        mean = mean or tuple(x.mean(dim=(0, 2, 3)).tolist())
        std = std or tuple(x.std(dim=(0, 2, 3)).clamp_min(1e-3).tolist())
    channels = dataset.image_shape[0]
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"model.mean is {mean} and model.std {std}: expected one value for each of the {channels} channels"
        )
    return {"mean": mean, "std": std}


def check_shares(config: Config, pieces: TrainingSetup, group: ProcessGroup) -> None:
    """See that every process has an image in every batch, and that the method needs no more than the sum over them.

    Raises:
        ConfigError: one of both is not so.
    """
    loader = pieces.loader
    fewest = min(loader.images_at(0), loader.images_at(len(loader) - 1))
    if fewest < group.world_size:
        raise ConfigError(
            f"a batch of {fewest} images (of {len(loader.ids)} in batches of {loader.batch_size}) is too small for "
            f"{group.world_size} processes: change optim.batch_size or data.train_size, or start fewer"
        )
    # What they sum in every part, such as BatchNorm's statistics, needs all of them.
    parts = config.optim.accumulate
    for images in (loader.images_at(0), loader.images_at(len(loader) - 1)):
        smallest = images // group.world_size
        if smallest < parts and images % group.world_size:
            raise ConfigError(
                f"a batch of {images} images gives {group.world_size} processes {smallest} or {smallest + 1} images "
                f"each, not equally many parts by optim.accumulate {parts}: change it, optim.batch_size or "
                "data.train_size"
            )
    methods = [each for each in pieces.method.modules() if isinstance(each, Method)]
    if group.world_size > 1 and any(each.whole_batch for each in methods):
        raise ConfigError(
            f"method {config.method.name} compares the images of a whole batch, which {group.world_size} processes "
            "would share: start one"
        )
