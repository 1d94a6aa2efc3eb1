"""Validation images, which a run is not trained on, to calibrate its int8 model with and to compare it on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from robustill.config.schema import make_config
from robustill.config.split import load_split
from robustill.core.errors import ConfigError
from robustill.data import stratified_subset
from robustill.models.quantisation import HeldOutImages
from robustill.runs.directory import RunDirectory, split_checkpoint

_MAX_CALIBRATION, _MAX_COMPARED = 512, 2000
_SEED = 0


def held_out_images(spec: str, data: Mapping[str, Any] | None = None) -> HeldOutImages:
    """Return validation images of a run, or those of a data set that is named for another network.

    Half of them, class-balanced and at most 512, are to calibrate with; at most 2,000 of the others to compare on.

    Args:
        spec: a network as for `load_network`, such as "run:DIR@best".
        data: settings of the configuration's data, such as {"name": "cifar10", "root": "data"}; those of a run are
            its own where they are not given.

    Raises:
        ConfigError: there is neither a run nor a data set, there are too few images, or those of `data` are others
            than a run has held out.
        RobustillError: the data is missing.
    """
    values: dict[str, Any] = dict(data or {})
    run = None
    if spec.startswith("run:"):
        run = RunDirectory.existing(split_checkpoint(spec.removeprefix("run:"))[0])
        values = {**run.config()["data"], **values}
    if "name" not in values:
        raise ConfigError(
            f"{spec} does not say on which images to calibrate its int8 model: give --data NAME, whose training images "
            "are used, such as --data cifar10 --data.root DIR"
        )
    config = make_config({"data": values})
    dataset = load_split(config, "validation", run=run)
    if len(dataset) < 2 * dataset.num_classes:
        raise ConfigError(
            f"{len(dataset)} held-out images are too few to calibrate an int8 model of {dataset.num_classes} classes: "
            f"hold out more with --data.validation{'' if run is None else ' when it is trained'}"
        )
    ids = torch.arange(len(dataset))
    chosen = stratified_subset(dataset.labels, min(_MAX_CALIBRATION, len(dataset) // 2), seed=_SEED)
    others = ids[~torch.isin(ids, chosen)]
    if len(others) > _MAX_COMPARED:
        others = others[stratified_subset(dataset.labels[others], _MAX_COMPARED, seed=_SEED)]
    return HeldOutImages(
        calibration=dataset.read(chosen).float() / 255,
        x=dataset.read(others).float() / 255,
        y=dataset.labels[others],
        # Nobody knows which of them another network was trained on.
        source=f"{'held-out ' if run is not None else ''}training images of {dataset.name}, seed {_SEED}",
    )
