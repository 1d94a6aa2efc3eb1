"""robustill.config.schema.split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustill.config.schema import Config
from robustill.core.errors import ConfigError, DataError
from robustill.data import Dataset, holdout, load, stratified_subset
from robustill.data.splits import flip_labels, random_fold


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which images of the training set are for what.

    Args:
        train: ids to train on, int64.
        validation: ids held out, int64.
        labels: of the whole set, noise included, int64 [N].
        flipped: ids whose label is noise, int64.
        left_out: ids of the fold that is not trained on, int64; its labels have the same noise.
    """

    train: Tensor
    validation: Tensor
    labels: Tensor
    flipped: Tensor
    left_out: Tensor

    @property
    def pool(self) -> Tensor:
        """What is trained on and the fold that is not, ids in ascending order."""
        return torch.cat([self.train, self.left_out]).sort().values


def make_split(config: Config, labels: Tensor, num_classes: int) -> Split:
    """The held-out part first, then the training part of what is left; noise falls on the training part alone.

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
    noisy, flipped = flip_labels(labels[train], data.label_noise, num_classes, data.split_seed)
    every = labels.clone()
    every[train] = noisy
    flipped, left_out = train[flipped], train[:0]
    if data.folds is not None and data.fold is not None:
        if data.folds > len(train):
            raise ConfigError(f"data.folds is {data.folds}, but only {len(train)} images are left to train on")
        out = random_fold(labels[train], data.fold, data.folds, seed=data.split_seed)
        train, left_out = train[~out], train[out]
    return Split(train=train, validation=validation, labels=every, flipped=flipped, left_out=left_out)


def load_split(config: Config, split: Any) -> Dataset:
    """The "train" or "test" images that a configuration names, or a part of the training images, numbered from 0.

    "validation" is what is held out; "pool" what is trained on, with a fold that is left out and the labels trained on.
    """
    data = config.data
    dataset = load(
        data.name,
        root=data.root,
        split="train" if split in ("validation", "pool") else split,
        image_size=data.image_size,
        download=data.download,
        num_classes=data.num_classes,
    )
    if split not in ("validation", "pool"):
        return dataset
    parts = make_split(config, dataset.labels, dataset.num_classes)
    return dataset.subset(parts.validation) if split == "validation" else dataset.subset(parts.pool, parts.labels)
