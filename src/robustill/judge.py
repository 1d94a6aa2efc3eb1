"""Evaluate the checkpoints of a run, or a file of weights, and keep the records where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robustill import runtime
from robustill.config import Config, apply_overrides, make_config
from robustill.errors import ConfigError
from robustill.evaluation import evaluate
from robustill.loading import LoadedNetwork, Shape, load_network
from robustill.prepare import load_split
from robustill.records import Records
from robustill.run_directory import RunDirectory


def evaluate_run(
    run: Path | str,
    *,
    checkpoints: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    progress: bool = True,
    **settings: Any,
) -> dict[Path, Records]:
    """Evaluate checkpoints of a run on the test images it was configured for, under the threat it was trained against.

    Args:
        run: the run directory.
        checkpoints: such as "best", "last", "epoch-20"; None is best and last, and their averages if there are any.
        overrides: of the run's configuration, e.g. ["--data.root", "data"] or ["--threat", "linf:4/255"].
        progress: show bars.
        settings: as `evaluate` takes them: suite, num_images, seed, batch_size, eps_curve; and split.

    Returns:
        The records of each checkpoint, by the folder under run/evaluations where they lie.

    Raises:
        RobustillError: a checkpoint, the data or a setting that cannot be.
    """
    directory = RunDirectory.existing(run)
    _refuse_without_effect(overrides, directory.config(), ("data", "threat", "compute"))
    config = make_config(apply_overrides(directory.config(), overrides))
    if checkpoints is None:
        # A run that stopped early may have no mean over epochs yet.
        averages = [kind for kind in ("ema", "swa") if directory.pointed(f"best-{kind}") is not None]
        checkpoints = ["best", "last", *(f"{name}-{kind}" for kind in averages for name in ("best", "last"))]
    for what in checkpoints:
        directory.resolve(what)
    found = {}
    for what in checkpoints:
        network = load_network(f"run:{directory.path}@{what}")
        label = f"{directory.path.name}@{what}"
        more = {"checkpoint": what, "epoch": network.epoch, "run": directory.path.name}
        name, records = _evaluated(network, config, what, label if progress else None, more, settings)
        folder = directory.path / "evaluations" / name
        records.save(folder)
        found[folder] = records
    return found


def evaluate_file(
    weights: Path | str, *, out: Path, overrides: Sequence[str], progress: bool = True, **settings: Any
) -> dict[Path, Records]:
    """Evaluate a file of weights; the overrides say which network, data set and threat.

    Args:
        weights: .safetensors, .pt, .pth; never unpickled.
        out: the folder for the records.
        overrides: such as ["--model", "resnet18", "--data", "cifar10", "--threat", "linf:8/255"].
        progress: show a bar.
        settings: as for `evaluate_run`.

    Raises:
        RobustillError: the file, the data or a setting that cannot be.
    """
    values = apply_overrides({}, overrides)
    for key in ("model", "data", "threat"):
        if key not in values:
            raise ConfigError(f"{weights} holds weights alone: give --{key} too, see `robustill evaluate --help`")
    _refuse_without_effect(overrides, {}, ("model", "data", "threat", "compute"))
    config = make_config(values)
    dataset = load_split(config, settings.get("split", "test"))
    C, H, W = dataset.image_shape
    shape = Shape(num_classes=dataset.num_classes, in_channels=C, image_size=(H, W))
    options = {**config.model.options, "mean": config.model.mean, "std": config.model.std}
    network = load_network(str(weights), shape=shape, name=config.model.name, options=options)
    stem = Path(weights).stem
    more = {"checkpoint": Path(weights).name, "model": config.model.name}
    name, records = _evaluated(network, config, stem, stem if progress else None, more, settings)
    records.save(out / name)
    return {out / name: records}


def _refuse_without_effect(overrides: Sequence[str], values: dict[str, Any], used: Sequence[str]) -> None:
    for key, value in apply_overrides(values, overrides).items():
        if key not in used and value != values.get(key):
            raise ConfigError(f"--{key} has no effect on an evaluation: expected settings of {', '.join(used)} only")


def _evaluated(
    network: LoadedNetwork,
    config: Config,
    what: str,
    label: str | None,
    more: dict[str, Any],
    settings: dict[str, Any],
) -> tuple[str, Records]:
    settings = {"split": "test", "suite": "pgd", **settings}
    split = settings.pop("split")
    if config.compute.threads is not None:
        torch.set_num_threads(config.compute.threads)
    dataset = load_split(config, split)
    threat = config.threat.build()
    records = evaluate(
        network.module,
        dataset,
        threat=threat,
        device=runtime.pick_device(config.compute.device),
        progress=label,
        conditions={**more, "checkpoint_sha256": network.sha256},
        **settings,
    )
    name = f"{split}-{what}-{settings['suite']}"
    if len(records) < len(dataset):
        # A part never takes the place of the whole.
        name = f"{name}-{len(records)}-images"
    trained = None if network.config is None else make_config(network.config).threat.build()
    return (name if trained in (threat, None) else f"{name}-{threat}".replace("/", "_").replace(":", "-")), records
