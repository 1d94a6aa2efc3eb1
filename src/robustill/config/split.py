"""The split of a data set that a configuration asks for: training images, validation images, a fold left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustill.config.schema import Config
from robustill.core.errors import ConfigError, DataError
from robustill.data import Dataset, holdout, load, stratified_subset
from robustill.data.splits import flip_labels, random_fold
from robustill.models.loading import LoadedNetwork
from robustill.runs.directory import RunDirectory, split_checkpoint

# Of split.json, what makes images those of a run; not their fingerprint, since another machine may round pixels
# otherwise when it decodes or resizes them.
_OF_VALIDATION = ("images", "validation")
_OF_POOL = (*_OF_VALIDATION, "train", "flipped", "left_out")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The split of a training set.

    Args:
        train: the ids of the training images, int64.
        validation: the ids of the validation images, int64.
        labels: the labels of the whole set, with noise, int64 [N].
        flipped: the ids whose labels are noise, int64.
        left_out: the ids of the fold that is left out of training, int64; its labels have the same noise.
    """

    train: Tensor
    validation: Tensor
    labels: Tensor
    flipped: Tensor
    left_out: Tensor

    @property
    def pool(self) -> Tensor:
        """The ids of the training images and of the fold that is left out, in ascending order."""
        return torch.cat([self.train, self.left_out]).sort().values


def make_split(config: Config, labels: Tensor, num_classes: int) -> Split:
    """Split a training set: first the validation images are drawn, then the training images from the others.

    Only labels of training images, and of the fold left out, are flipped to noise.

    Args:
        config: the configuration, of which `data` is used.
        labels: the labels of the whole set, int64 [N].
        num_classes: K.

    Raises:
        ConfigError: there are not enough images.
    """
    data = config.data
    size = data.validation if data.validation < 1 else int(data.validation)
    try:
        rest, validation = holdout(labels, size, seed=data.split_seed)
    except DataError as error:
        raise ConfigError(f"data.validation: {error}") from None
    if len(validation) == 0:
        raise ConfigError(f"data.validation is {data.validation:g}: no image would be held out; give more")
    train = rest
    if data.train_size is not None:
        if data.train_size > len(rest):
            raise ConfigError(f"data.train_size is {data.train_size}, but only {len(rest)} images are left to train on")
        train = rest[stratified_subset(labels[rest], data.train_size, seed=data.split_seed)]
    noisy_labels, flipped = flip_labels(labels[train], data.label_noise, num_classes, data.split_seed)
    all_labels = labels.clone()
    all_labels[train] = noisy_labels
    flipped, left_out = train[flipped], train[:0]
    if data.folds is not None and data.fold is not None:
        if data.folds > len(train):
            raise ConfigError(f"data.folds is {data.folds}, but only {len(train)} images are left to train on")
        in_fold = random_fold(labels[train], data.fold, data.folds, seed=data.split_seed)
        train, left_out = train[~in_fold], train[in_fold]
    return Split(train=train, validation=validation, labels=all_labels, flipped=flipped, left_out=left_out)


def load_split(config: Config, split: Any, *, run: RunDirectory | None = None) -> Dataset:
    """Load the data set that a configuration names, or a part of its training images, renumbered from 0.

    Args:
        config: the configuration, of which `data` is used.
        split: "train" or "test"; "validation" for the validation images; "pool" for the training images and the fold
            left out, with the labels that are trained on.
        run: a run whose validation images, or whose pool, they must be.

    Raises:
        ConfigError: they are other images than those that the run stored in split.json.
    """
    data, is_part = config.data, split in ("validation", "pool")
    dataset = load(
        data.name,
        root=data.root,
        split="train" if is_part else split,
        image_size=data.image_size,
        download=data.download,
        num_classes=data.num_classes,
        image_column=data.image_column,
        label_column=data.label_column,
    )
    if not is_part:
        return dataset
    parts = make_split(config, dataset.labels, dataset.num_classes)
    if run is not None:
        _check_images_of(run, dataset, parts, split)
    if split == "validation":
        return dataset.subset(parts.validation)
    return dataset.subset(parts.pool, parts.labels)


def describe_split(dataset: Dataset, split: Split) -> dict[str, Any]:
    """Return the images of a split of a training set as JSON values, as split.json of a run has them."""
    uses_all = len(split.train) + len(split.validation) >= len(dataset)
    images = {
        "fingerprint": dataset.fingerprint,
        "images": len(dataset),
        "train": "the rest" if uses_all else split.train.tolist(),
        "validation": split.validation.tolist(),
        "flipped": split.flipped.tolist(),
    }
    if len(split.left_out):
        images["left_out"] = split.left_out.tolist()
    return images


def load_validation(config: Config) -> tuple[Dataset, dict[str, Any]]:
    """Load the validation images of a configuration, renumbered from 0, and describe them as `describe_split` does.

    Raises:
        RobustillError: data is missing or does not fit the configuration.
    """
    # They do not depend on how many of the others are trained on, which other data may not have.
    data = config.data.model_copy(update={"train_size": None, "folds": None, "fold": None})
    config = config.model_copy(update={"data": data})
    dataset = load_split(config, "train")
    parts = make_split(config, dataset.labels, dataset.num_classes)
    return dataset.subset(parts.validation), describe_split(dataset, parts)


def holds_out(network: LoadedNetwork, images: Mapping[str, Any]) -> bool:
    """Return whether a network is of a run whose validation images are those of a description; False if unknown."""
    if network.config is None:
        return False
    run = RunDirectory.existing(split_checkpoint(network.spec.removeprefix("run:"))[0])
    return _has_stored(run, images, _OF_VALIDATION)


def _has_stored(run: RunDirectory, images: Mapping[str, Any], keys: Sequence[str]) -> bool:
    stored = run.read_json("split.json")
    return stored is not None and all(stored.get(key) == images.get(key) for key in keys)


def _check_images_of(run: RunDirectory, dataset: Dataset, parts: Split, split: str) -> None:
    """Refuse images that are not the validation images, or the pool, of a run; one of an early version stored none."""
    if run.read_json("split.json") is None:
        return
    if not _has_stored(run, describe_split(dataset, parts), _OF_VALIDATION if split == "validation" else _OF_POOL):
        what = "validation images" if split == "validation" else "images of the pool"
        raise ConfigError(
            f"these are not the {what} of {run.path}, which may have been trained on some of them: give it the data "
            "and the settings of the split that it was trained with, or take the split train or test"
        )
