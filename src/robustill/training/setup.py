"""Set up a training run from its configuration: images, networks, and checks that come before anything is written."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustill.config.schema import Config
from robustill.config.split import Split, load_split, make_split
from robustill.core.contract import check_network, check_single_image, check_state, check_training
from robustill.core.distributed import ProcessGroup, process_group
from robustill.core.errors import ConfigError, DataError
from robustill.core.memory_format import accept_channels_last, place
from robustill.core.randomness import derive_seed, generator
from robustill.data import Augmentation, Dataset, Loader, dataset_entry
from robustill.data.extra import ExtraImages, MixedLoader, own_images
from robustill.data.images import MissingDataError
from robustill.methods import Method, build_method
from robustill.methods.base import SELF
from robustill.models.fake_quantisation import RANGE
from robustill.models.loading import LoadedNetwork, Shape, build_network, load_network
from robustill.teachers.ensemble import combine
from robustill.teachers.loading import load_teacher, with_cache
from robustill.training.averaging import EMA
from robustill.training.optimizer import freeze
from robustill.training.step import Step, check_awp

# Below that, the standard error of an accuracy is more than nine points.
_FEW_VALIDATION_IMAGES = 30
_MAX_MEASURED_IMAGES = 10_000


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """The images and networks of a run, on its device.

    Args:
        dataset: the training images, all of them.
        split: the ids of the images to train on and to validate on, and the labels to train on.
        shape: the shape of one image and the number of classes.
        student: the network to train.
        frozen: modules of the student that are not trained and stay in eval mode.
        method: the objective.
        ema: the average of the student's weights; None without one.
        teacher: the teachers as the method takes them: None, one network, or a ModuleDict by role.
        teachers: each teacher as it was loaded, in the order of the configuration.
        loader: batches of augmented training images.
        validation: uint8 images [N,C,H,W] and labels [N] of the validation part.
    """

    dataset: Dataset
    split: Split
    shape: Shape
    student: nn.Module
    frozen: list[nn.Module]
    method: Method
    ema: EMA | None
    teacher: nn.Module | None
    teachers: list[LoadedNetwork]
    loader: Loader | MixedLoader
    validation: tuple[Tensor, Tensor]


def set_up_training(config: Config, device: torch.device) -> TrainingSetup:
    """Load the images, build the student and the method, load the teachers, and check that all of them fit together.

    Nothing is written.

    Raises:
        RobustillError: something does not exist or does not fit.
    """
    # Images.
    _check_data_root(config)
    dataset = load_split(config, "train")
    split = make_split(config, dataset.labels, dataset.num_classes)
    _warn_of_few_validation_images(split)
    shape = Shape.of(dataset)
    _check_test_images(config, shape)
    config.threat.build().check_fits((shape.in_channels, *shape.image_size), str(shape))
    loader = _build_loader(config, dataset, split, device)
    validation_images = dataset.read(split.validation).to(device)
    validation_labels = dataset.labels[split.validation].to(device)

    # Networks.
    normalisation = _normalisation(config, dataset, split)
    student = _build_student(config, shape, normalisation)
    frozen = freeze(student, config.optim.freeze)
    probe_images = validation_images[:2].float() / 255
    method = _build_method(config, shape, normalisation, probe_images.cpu())
    teachers = [load_teacher(each, shape) for each in config.teachers]
    teacher = _combine_teachers(config, teachers, shape, device, probe_images)

    # Checks: a failure here costs seconds, a failure in training hours.
    _check_student(config, student, probe_images.cpu(), shape)
    _check_last_batch(config, loader, student, probe_images)
    for each in teachers:
        module, label = each.module.to(device), f"teacher {each.spec}"
        # Its robust accuracy is measured when the run begins.
        lines = check_network(module, probe_images, shape.num_classes, label, differentiable=True)
        _warn(lines)
    _check_process_shares(config, loader, method, process_group())

    student = place(student, device, probe_images, train=True)
    ema = EMA(student, config.optim.ema) if config.optim.ema is not None else None
    return TrainingSetup(
        dataset=dataset,
        split=split,
        shape=shape,
        student=student,
        frozen=frozen,
        method=method.to(device),
        ema=ema,
        teacher=teacher if ema is None else _with_self(method, teacher, ema),
        teachers=teachers,
        loader=loader,
        validation=(validation_images, validation_labels),
    )


def build_step(config: Config, setup: TrainingSetup) -> Step:
    """Build the training step of a run."""
    attack = config.attack
    step = Step(
        setup.student,
        setup.method,
        setup.teacher,
        config.threat.build(),
        steps=attack.steps,
        step_size=attack.step_size,
        start=attack.start,
        noise=attack.noise,
        batchnorm=attack.batchnorm,
        precision=config.compute.precision,
        awp=config.optim.awp,
        light=config.compute.light_attack,
        recompute=config.compute.recompute,
    )
    # `set_up_training` has checked the networks.
    step.is_checked = dict.fromkeys(step.is_checked, True)
    return step


# Images.


def _check_data_root(config: Config) -> None:
    root = config.data.root
    if config.data.name == "npz" and root is not None and root.suffix == ".npz":
        raise ConfigError(
            f"data.root {root} is one file, whose images would be trained on and tested on: give a folder "
            "with train.npz and test.npz"
        )


def _warn_of_few_validation_images(split: Split) -> None:
    """Warn where the validation images are too few to tell the best epoch from any other."""
    count, total = len(split.validation), len(split.validation) + len(split.pool)
    if count >= _FEW_VALIDATION_IMAGES or not process_group().is_main:
        return
    # The standard error of an accuracy of a half.
    points = round(50 / count**0.5)
    more = min(500, total // 5)
    mend = f"give --data.validation {more}" if more > count else "add training images, and then --data.validation"
    warnings.warn(
        f"only {count} validation images choose the best epoch, and tell their accuracy to ±{points} points: {mend}",
        stacklevel=3,
    )


def _check_test_images(config: Config, shape: Shape) -> None:
    """Check that the user's own test images can be evaluated after hours of training; nothing else is read from them.

    Raises:
        DataError: they are damaged, or have other classes or another shape than the training images.
    """
    if dataset_entry(config.data.name).image_shape is not None:
        return
    try:
        test_shape = Shape.of(load_split(config, "test"))
    except MissingDataError as error:
        if process_group().is_main:
            warnings.warn(f"no test images, so the run can be trained but not evaluated on them: {error}", stacklevel=3)
        return
    except DataError as error:
        raise DataError(f"{error} (these are test images: mend them, or move them away to train without)") from None
    if test_shape != shape:
        raise DataError(
            f"{config.data.root}: test images are {test_shape}; expected, as for the training images, {shape}: mend "
            "them, or move them away to train without"
        )


def _build_loader(config: Config, dataset: Dataset, split: Split, device: torch.device) -> Loader | MixedLoader:
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


# Networks.

Normalisation = dict[str, tuple[float, ...] | None]
"""mean and std, as networks take them."""


def _normalisation(config: Config, dataset: Dataset, split: Split) -> Normalisation:
    """Return the configured mean and std, or the known ones of the data set, or those of the training images.

    Of the training images at most 10,000 are read, drawn at random: in a folder they are ordered by class.
    """
    known, model = dataset_entry(config.data.name), config.model
    mean, std = model.mean or known.mean, model.std or known.std
    if mean is None or std is None:
        ids = split.train
        if len(ids) > _MAX_MEASURED_IMAGES:
            drawn = torch.randperm(len(ids), generator=generator(0, "normalisation"))[:_MAX_MEASURED_IMAGES]
            ids = ids[drawn.sort().values]
        x = dataset.read(ids).float() / 255
        mean = mean or tuple(x.mean(dim=(0, 2, 3)).tolist())
        std = std or tuple(x.std(dim=(0, 2, 3)).clamp_min(1e-3).tolist())
    channels = dataset.image_shape[0]
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"model.mean is {mean} and model.std {std}: expected one value for each of the {channels} channels"
        )
    return {"mean": mean, "std": std}


def _normalisation_options(name: str, config: Config, normalisation: Normalisation) -> Normalisation:
    """Return the mean and std that a network is built with.

    A user's own function (its name has a colon) takes images in [0,1] and normalises them itself, so it is given no
    more than the configuration names.
    """
    if ":" in name:
        return {"mean": config.model.mean, "std": config.model.std}
    return normalisation


def _build_student(config: Config, shape: Shape, normalisation: Normalisation) -> nn.Module:
    """Build the student, with its own first weights or those of another network."""
    name = config.model.name
    options = {**config.model.options, **_normalisation_options(name, config, normalisation)}
    student = build_network(name, shape, options, seed=config.seed)
    if config.model.quantize is not None and process_group().world_size > 1:
        raise ConfigError(
            "model.quantize: each process would measure other ranges of the inputs: train with one process"
        )
    if config.initial is not None:
        _load_initial_weights(student, config.initial, name, shape, options)
    return student


def _load_initial_weights(student: nn.Module, spec: str, name: str, shape: Shape, options: dict[str, Any]) -> None:
    """Load the weights of another network of the student's architecture into the student."""
    if Path(spec).is_file():
        source = load_network(spec, shape=shape, name=name, options=options)
    else:
        source = load_network(spec, shape=shape, name=None, options=None)
    weights, own = source.module.state_dict(), student.state_dict()
    # A float network has no ranges of inputs; they are measured in the first batch.
    weights |= {key: value for key, value in own.items() if key.endswith(RANGE) and key not in weights}
    if weights.keys() != own.keys() or any(weights[key].shape != own[key].shape for key in own):
        raise ConfigError(f"initial {spec} is {source.architecture}, which does not fit the student {name}")
    student.load_state_dict(weights)


def _build_method(config: Config, shape: Shape, normalisation: Normalisation, images: Tensor) -> Method:
    """Build the method, with the networks that it trains beside the student."""
    method = build_method(config.method.name, **config.method.options)

    def build_companion(name: str | None = None, **options: Any) -> nn.Module:
        if name is None:
            name = config.model.name
            options = {**config.model.options, **options}
        options = {**options, **_normalisation_options(name, config, normalisation)}
        network = build_network(name, shape, options, seed=derive_seed(config.seed, "companion"))
        return accept_channels_last(network, images, train=True)

    method.set_up(build_companion)
    return method


def _combine_teachers(
    config: Config, teachers: list[LoadedNetwork], shape: Shape, device: torch.device, images: Tensor
) -> nn.Module | None:
    """Return the teachers as the method takes them, on the device."""
    members = [(each.role, each.weight, loaded.module) for each, loaded in zip(config.teachers, teachers, strict=True)]
    combined = combine(members, config.teacher_mean)
    if combined is None:
        return None
    return with_cache(config, teachers, place(combined, device, images), shape, device).to(device)


def _with_self(method: Method, teacher: nn.Module | None, ema: EMA) -> nn.Module | None:
    """Return the teachers with the average of the student's own weights, where that is one of the method's roles."""
    if SELF not in method.roles or teacher is None:
        return ema.model if SELF in method.roles else teacher
    others = teacher if isinstance(teacher, nn.ModuleDict) else {role: teacher for role in method.roles if role != SELF}
    return nn.ModuleDict({**others, SELF: ema.model})


# Checks.


def _check_student(config: Config, student: nn.Module, images: Tensor, shape: Shape) -> None:
    """Check that the student keeps the contract, can be trained, and can be saved.

    Raises:
        ModelError: it does not, or cannot.
    """
    label, is_attacked = f"student {config.model.name}", config.method.name != "clean"
    _warn(check_network(student, images, shape.num_classes, label, differentiable=is_attacked))
    check_training(student, images, shape.num_classes, label)
    check_state(student, label)
    if config.optim.awp is not None:
        check_awp(student)


def _warn(lines: Iterable[str]) -> None:
    """Warn once, not in every process."""
    if process_group().is_main:
        for line in lines:
            warnings.warn(line, stacklevel=4)


def _check_last_batch(config: Config, loader: Loader | MixedLoader, student: nn.Module, images: Tensor) -> None:
    """Check that the student can be trained on the last batch where that, or a part of it, is a single image.

    Raises:
        ConfigError: it cannot, because of a BatchNorm over one value.
    """
    smallest, parts = loader.images_at(len(loader) - 1), config.optim.accumulate
    if smallest > 1 and smallest // parts > 1:
        return
    in_parts = f" in {parts} parts" if parts > 1 else ""
    batch = f"the last batch ({len(loader.ids)} images by {config.optim.batch_size}s{in_parts})"
    mend = "change data.train_size, optim.batch_size or optim.accumulate a little"
    check_single_image(student, images[:1].cpu(), batch, mend)


def _check_process_shares(config: Config, loader: Loader | MixedLoader, method: Method, group: ProcessGroup) -> None:
    """Check that every process has an image in every batch, and that the method does not compare images of a batch.

    Raises:
        ConfigError: the batches or the method cannot be shared by the processes of the group.
    """
    batch_sizes = (loader.images_at(0), loader.images_at(len(loader) - 1))
    if min(batch_sizes) < group.world_size:
        raise ConfigError(
            f"a batch of {min(batch_sizes)} images (of {len(loader.ids)} in batches of {loader.batch_size}) is too "
            f"small for {group.world_size} processes: change optim.batch_size or data.train_size, or start fewer"
        )
    # Sums over all processes within a part, such as BatchNorm's statistics, need every process to have that part.
    parts = config.optim.accumulate
    for images in batch_sizes:
        smallest = images // group.world_size
        if smallest < parts and images % group.world_size:
            largest = smallest + 1
            raise ConfigError(
                f"a batch of {images} images gives {group.world_size} processes {smallest} or {largest} images each, "
                f"not equally many parts by optim.accumulate {parts}: change it, optim.batch_size or data.train_size"
            )
    methods = [each for each in method.modules() if isinstance(each, Method)]
    if group.world_size > 1 and any(each.whole_batch for each in methods):
        raise ConfigError(
            f"method {config.method.name} compares the images of a whole batch, which {group.world_size} processes "
            "would share: start one"
        )
