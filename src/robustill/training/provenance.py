"""What a run says about itself beside its numbers: the network, the split, the teachers, the machine."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from robustill.config.schema import Config, make_config
from robustill.core.device import environment
from robustill.core.errors import ConfigError, RunError
from robustill.core.yaml import parse_yaml
from robustill.data.extra import MixedLoader
from robustill.models.loading import LoadedNetwork
from robustill.runs.directory import RunDirectory
from robustill.training.setup import TrainingSetup
from robustill.training.validation import validation_accuracy


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Values of a stored run as this version writes them: settings that it does not know yet have their defaults."""
    try:
        return make_config(values).model_dump(mode="json")
    except ConfigError:
        return values


# Enough to see a teacher that does not know the task, or was loaded with the wrong normalisation.
_SAMPLE = 256


def describe(directory: RunDirectory, config: Config, pieces: TrainingSetup, *, shown: bool) -> None:
    """Write model.json, split.json, teachers.json and environment.json, or check that a resumed run still agrees.

    Raises:
        RunError: the images, the split or a teacher's weights are not those that the run began with.
    """
    split = pieces.split
    images = {
        "fingerprint": pieces.dataset.fingerprint,
        "images": len(pieces.dataset),
        "train": split.train.tolist() if len(split.train) + len(split.validation) < len(pieces.dataset) else "the rest",
        "validation": split.validation.tolist(),
        "flipped": split.flipped.tolist(),
    }
    if len(split.left_out):
        images["left_out"] = split.left_out.tolist()
    if isinstance(pieces.loader, MixedLoader):
        extra = pieces.loader.extra
        images["extra"] = {"images": len(extra), "fingerprint": extra.fingerprint}
    # All comparisons come before the first write.
    known_images, known_teachers = directory.read_json("split.json"), directory.read_json("teachers.json")
    _refuse_other_images(directory, known_images, images)
    _refuse_other_teachers(directory, known_teachers, pieces.teachers)
    if known_images is None:
        directory.write_json("split.json", images)
        _warn_of_missing_classes(pieces)
    if known_teachers is None and pieces.teachers:
        _describe_teachers(directory, config, pieces, shown=shown)
    directory.write_json("model.json", _network(config, pieces))
    directory.write_json("environment.json", environment())


def _warn_of_missing_classes(pieces: TrainingSetup) -> None:
    split = pieces.split
    for what, ids in (("to train on", split.train), ("held out", split.validation)):
        counts = torch.bincount(split.labels[ids], minlength=pieces.shape.num_classes)
        missing = [pieces.dataset.classes[label] for label in (counts == 0).nonzero().flatten().tolist()]
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            warnings.warn(f"{len(missing)} of {len(counts)} classes have no image {what}: {shown}", stacklevel=3)


def _network(config: Config, pieces: TrainingSetup) -> dict[str, Any]:
    return {
        "name": config.model.name,
        "options": config.model.options,
        "num_classes": pieces.shape.num_classes,
        "in_channels": pieces.shape.in_channels,
        "image_size": list(pieces.shape.image_size),
        "classes": list(pieces.dataset.classes),
        "parameters": sum(p.numel() for p in pieces.student.parameters()),
    }


def _refuse_other_images(directory: RunDirectory, known: dict[str, Any] | None, images: dict[str, Any]) -> None:
    for key, value in images.items():
        if known is not None and known.get(key) != value:
            raise RunError(
                f"{directory.path} began with other images ({key} differs from split.json): "
                "give it the data it began with, or use another --run"
            )


def _refuse_other_teachers(
    directory: RunDirectory, known: dict[str, Any] | None, teachers: list[LoadedNetwork]
) -> None:
    if known is None:
        return
    before = [card["sha256"] for card in known["teachers"]]
    for teacher, sha256 in zip(teachers, before, strict=True):
        if teacher.sha256 != sha256:
            raise RunError(
                f"teacher {teacher.spec} has changed since {directory.path} began "
                f"(sha256 {teacher.sha256[:12]}, then {sha256[:12]}): restore it, or use another --run"
            )


def _describe_teachers(directory: RunDirectory, config: Config, pieces: TrainingSetup, *, shown: bool) -> None:
    cards = [_card(config, pieces, number) for number in range(len(pieces.teachers))]
    directory.write_json("teachers.json", {"teachers": cards})
    for card in cards if shown else ():
        print(
            f"teacher {card['spec']} ({card['trained']}): clean {card['clean_accuracy']:.3f}, "
            f"robust {card['robust_accuracy']:.3f} on {card['images']} held-out images",
            file=sys.stderr,
        )
        # Who always names the commonest class is right as often.
        labels = pieces.validation[1][: card["images"]]
        chance = float(torch.bincount(labels).max()) / len(labels)
        if card["clean_accuracy"] <= chance:
            print(
                f"robustill: warning: teacher {card['spec']} is no better than chance ({chance:.3f}): look at its "
                "normalisation, the order of its classes, and what it was trained on",
                file=sys.stderr,
            )


def _card(config: Config, pieces: TrainingSetup, number: int) -> dict[str, Any]:
    teacher, settings, threat = pieces.teachers[number], config.validation, config.threat.build()
    images, labels = (part[:_SAMPLE] for part in pieces.validation)
    clean, robust = validation_accuracy(
        teacher.module,
        images,
        labels,
        threat,
        steps=settings.steps,
        step_size=settings.length(threat.eps),
        seed=config.seed,
    )
    return {
        "spec": teacher.spec,
        "role": config.teachers[number].role,
        "weight": config.teachers[number].weight,
        "sha256": teacher.sha256,
        "epoch": teacher.epoch,
        "trained": teacher.trained,
        "architecture": teacher.architecture,
        "threat": None if teacher.config is None else teacher.config["threat"],
        "clean_accuracy": clean,
        "robust_accuracy": robust,
        "images": len(labels),
    }


def first_difference(
    there: Mapping[str, Any], here: Mapping[str, Any], free: Collection[str]
) -> tuple[str, Any, Any] | None:
    """The first key, in dots, whose values differ, with both values; keys in `free` may differ."""
    a, b = _flat(there), _flat(here)
    for key in list(b) + [key for key in a if key not in b]:
        if key not in free and a.get(key) != b.get(key):
            return key, a.get(key), b.get(key)
    return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


# Where the numbers are computed and where the files lie do not change what a run is.
_FREE_KEYS = frozenset({"compute.device", "compute.threads", "compute.teacher_cache", "data.root", "data.download"})


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting that makes them two runs, with both its values; networks may be named from here or the root.

    Args:
        there: a resolved configuration, as plain values.
        here: another.

    Example:
        >>> one = {"seed": 0, "initial": "run:runs/a@best", "teachers": []}
        >>> difference(one, {**one, "initial": f"run:{Path.cwd()}/runs/a@best"})
        >>> difference(one, {**one, "seed": 1})
        ('seed', 0, 1)
    """
    found = {key: there[key] for key in ("initial", "teachers") if _located(there[key]) == _located(here[key])}
    return first_difference(there, {**here, **found}, _FREE_KEYS)


def _located(named: Any) -> Any:
    """Specifications of networks with the paths of runs and files from the root."""
    if isinstance(named, list):
        return [{**each, "spec": _located(each["spec"])} for each in named]
    if isinstance(named, str) and named.startswith("run:"):
        return "run:" + os.path.normpath(Path.cwd() / named.removeprefix("run:"))
    if isinstance(named, str) and Path(named).is_file():
        return os.path.normpath(Path.cwd() / named)
    return named


def begin(directory: RunDirectory, config: str) -> None:
    """Write the resolved configuration, or check that the run was made by the same one.

    Raises:
        RunError: the directory holds something else, or a run of another configuration.
    """
    directory.start(config)
    found = difference(with_defaults(directory.config()), parse_yaml(config, "the configuration"))
    if found is not None:
        key, there, here = found
        raise RunError(
            f"{directory.path} was made by another configuration: {key} is {there!r} there and {here!r} here; "
            "use another --run, or the configuration it was made by"
        )
