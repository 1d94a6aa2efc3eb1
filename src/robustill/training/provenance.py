"""What a run is made of, written beside its numbers, and the checks that a resumed run is still the same run."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustill.config.schema import Config, make_config
from robustill.config.split import describe_split
from robustill.core.contexts import evaluating
from robustill.core.device import environment
from robustill.core.errors import ConfigError, RunError
from robustill.core.fingerprint import UNSTABLE, Fingerprint, compute_fingerprint
from robustill.core.yaml import parse_yaml
from robustill.data.extra import MixedLoader
from robustill.methods import Method
from robustill.models.normalisation import accuracy_warnings
from robustill.models.vision import PACKAGES, architecture_options
from robustill.runs.directory import RunDirectory
from robustill.training.setup import TrainingSetup
from robustill.training.validation import validation_accuracy

# The device that computes and the folders of the files do not change which run it is.
_IGNORED_KEYS = frozenset({"compute.device", "compute.threads", "compute.teacher_cache", "data.root", "data.download"})
# Enough to notice a teacher that does not know the task, or that was loaded with the wrong normalisation.
_TEACHER_IMAGES = 256
_FINGERPRINT_IMAGES = 4


# The configuration.


def start_run(directory: RunDirectory, config: str) -> None:
    """Write the resolved configuration into a new run directory, or check that the run has the same one.

    Args:
        directory: the run directory.
        config: the resolved configuration, as YAML.

    Raises:
        RunError: the directory holds something else, or a run of another configuration.
    """
    directory.start(config)
    stored = _with_defaults(directory.config())
    difference = first_difference(stored, parse_yaml(config, "the configuration"))
    if difference is not None:
        key, there, here = difference
        raise RunError(
            f"{directory.path} was made by another configuration: {key} is {there!r} there and {here!r} here; "
            "use another --run, or the configuration it was made by"
        )


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return a stored configuration with the defaults of settings that did not exist when it was written."""
    try:
        return make_config(values).model_dump(mode="json")
    except ConfigError:
        return values


def first_difference(stored: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first setting that makes two configurations two runs, with both its values; None for the same run.

    Networks may be named by relative or absolute paths.

    Args:
        stored: a resolved configuration, as plain values.
        given: another.

    Returns:
        The key of the setting, such as "optim.epochs", its stored value and its given value.

    Example:
        >>> one = {"seed": 0, "initial": "run:runs/a@best", "teachers": []}
        >>> first_difference(one, {**one, "initial": f"run:{Path.cwd()}/runs/a@best"})
        >>> first_difference(one, {**one, "seed": 1})
        ('seed', 0, 1)
    """
    stored_values, given_values = _flatten(stored), _flatten(given)
    for key in ("initial", "teachers"):
        if _with_absolute_paths(stored[key]) == _with_absolute_paths(given[key]):
            given_values[key] = stored_values[key]
    removed_keys = [key for key in stored_values if key not in given_values]
    for key in [*given_values, *removed_keys]:
        there, here = stored_values.get(key), given_values.get(key)
        if key not in _IGNORED_KEYS and there != here:
            return key, there, here
    return None


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their keys with dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _with_absolute_paths(specification: Any) -> Any:
    """Return the specifications of networks with absolute paths of runs, folders and files."""
    if isinstance(specification, list):
        return [{**each, "spec": _with_absolute_paths(each["spec"])} for each in specification]
    if not isinstance(specification, str):
        return specification
    kind, _, source = specification.partition(":")
    name, equals, file = source.partition("=")
    if kind in ("robustbench", "timm", "torchvision") and equals:
        return f"{kind}:{name}={_absolute(file)}"
    if kind == "run" or (kind == "hf" and Path(source).is_dir()):
        return f"{kind}:{_absolute(source)}"
    return _absolute(specification) if Path(specification).is_file() else specification


def _absolute(path: str) -> str:
    return os.path.normpath(Path.cwd() / path)


# The images, the teachers, the network and the machine.


def write_provenance(directory: RunDirectory, config: Config, setup: TrainingSetup, *, verbose: bool) -> None:
    """Write model.json, split.json and teachers.json, or check that a resumed run agrees with them.

    Args:
        directory: the run directory.
        config: the configuration of the run.
        setup: its images and networks.
        verbose: print the accuracy of new teachers.

    Raises:
        RunError: the images, the split, or the weights or code of a teacher are not those that the run began with.
    """
    images = _describe_images(setup)
    # All checks come before the first write.
    stored_images, stored_teachers = directory.read_json("split.json"), directory.read_json("teachers.json")
    if stored_images is not None:
        _check_images(directory, stored_images, images)
    if stored_teachers is not None:
        _check_teachers(directory, stored_teachers, setup)
    if stored_images is None:
        directory.write_json("split.json", images)
        _warn_of_missing_classes(setup)
    if stored_teachers is None and setup.teachers:
        teachers = [_describe_teacher(config, setup, number) for number in range(len(setup.teachers))]
        directory.write_json("teachers.json", {"teachers": teachers})
        if verbose:
            _print_teachers(teachers, setup)
    directory.write_json("model.json", _describe_student(config, setup))


def _describe_images(setup: TrainingSetup) -> dict[str, Any]:
    dataset = setup.dataset
    images = describe_split(dataset, setup.split)
    split_rule = getattr(dataset, "split_rule", None)
    if split_rule is not None:
        images["split_rule"] = split_rule
    if isinstance(setup.loader, MixedLoader):
        extra = setup.loader.extra
        images["extra"] = {"images": len(extra), "fingerprint": extra.fingerprint}
    return images


def _check_images(directory: RunDirectory, stored: dict[str, Any], images: dict[str, Any]) -> None:
    for key, value in images.items():
        if stored.get(key) != value:
            raise RunError(
                f"{directory.path} began with other images ({key} differs from split.json): "
                "give it the data it began with, or use another --run"
            )


def _check_teachers(directory: RunDirectory, stored: dict[str, Any], setup: TrainingSetup) -> None:
    for teacher, before in zip(setup.teachers, stored["teachers"], strict=True):
        sha256 = before["sha256"]
        if teacher.sha256 != sha256:
            raise RunError(
                f"teacher {teacher.spec} has changed since {directory.path} began "
                f"(sha256 {teacher.sha256[:12]}, then {sha256[:12]}): restore it, or use another --run"
            )
        difference = None
        if "fingerprint" in before:
            difference = fingerprint_of(teacher.module, setup).difference(before["fingerprint"])
        if difference is not None:
            raise RunError(
                f"the code of teacher {teacher.spec} has changed since {directory.path} began ({difference}): "
                "restore it, or use another --run"
            )


def fingerprint_of(network: nn.Module, setup: TrainingSetup) -> Fingerprint:
    """Return the fingerprint of a network that takes the images of a run and is on its device."""
    validation_images, _ = setup.validation
    shape = (setup.shape.in_channels, *setup.shape.image_size)
    return compute_fingerprint(network, shape, device=validation_images.device)


Fingerprints = dict[str, dict[str, Any]]
"""The fingerprints of networks as JSON values, by the role of the network and by mode, "eval" or "train"."""


def training_fingerprints(setup: TrainingSetup) -> Fingerprints:
    """Return the fingerprints of the networks that a run trains: of the student, and of those of its method."""
    return {
        role: {mode: fingerprint.to_json() for mode, fingerprint in _in_both_modes(network, setup)}
        for role, network in _trained_networks(setup).items()
    }


def changed_network(setup: TrainingSetup, stored: Fingerprints) -> tuple[str, str] | None:
    """Return which of the networks that a run trains computes something else than stored fingerprints say.

    Args:
        setup: the networks, with the weights of which the fingerprints were stored.
        stored: what `training_fingerprints` returned; nothing is known of networks and modes that it lacks.

    Returns:
        The role of the network, and what differs; None if none does.
    """
    for role, network in _trained_networks(setup).items():
        of_role = stored.get(role, {})
        for mode, fingerprint in _in_both_modes(network, setup):
            before = Fingerprint.from_json(of_role.get(mode))
            if mode == "train" and UNSTABLE in (fingerprint.note, before and before.note):
                # Whether rounding decides the logits depends on the device there, too.
                continue
            difference = fingerprint.difference(of_role.get(mode))
            if difference is not None:
                return role, difference if mode == "eval" else f"in train mode {difference}"
    return None


def _trained_networks(setup: TrainingSetup) -> dict[str, nn.Module]:
    """Return the student and the networks of the method by their roles; other modules have no fingerprint anyway."""
    methods = [each for each in setup.method.modules() if isinstance(each, Method)]
    companions = {
        name: child for each in methods for name, child in each.named_children() if not isinstance(child, Method)
    }
    return {"student": setup.student, **companions}


def _in_both_modes(network: nn.Module, setup: TrainingSetup) -> Iterator[tuple[str, Fingerprint]]:
    """Yield the fingerprints of a network in eval mode and in the modes that its modules have in a training step."""
    yield "eval", fingerprint_of(network, setup)
    validation_images, _ = setup.validation
    shape = (setup.shape.in_channels, *setup.shape.image_size)
    # `evaluating` gives every module its own mode back.
    with evaluating(network, *setup.frozen):
        network.train()
        for module in setup.frozen:
            module.eval()
        # Images of several kinds in one batch: features that hardly differ would be normalised to their rounding.
        images = validation_images[:_FINGERPRINT_IMAGES].float() / 255
        yield (
            "train",
            compute_fingerprint(network, shape, device=validation_images.device, images=images, keep_modes=True),
        )


def _warn_of_missing_classes(setup: TrainingSetup) -> None:
    split = setup.split
    for purpose, ids in (("to train on", split.train), ("to validate on", split.validation)):
        counts = torch.bincount(split.labels[ids], minlength=setup.shape.num_classes)
        missing = [setup.dataset.classes[label] for label in (counts == 0).nonzero().flatten().tolist()]
        if missing:
            names = ", ".join(missing[:5])
            if len(missing) > 5:
                names += ", ..."
            warnings.warn(f"{len(missing)} of {len(counts)} classes have no image {purpose}: {names}", stacklevel=3)


def _describe_student(config: Config, setup: TrainingSetup) -> dict[str, Any]:
    return {
        "name": config.model.name,
        "options": architecture_options(config.model.name, config.model.options),
        "num_classes": setup.shape.num_classes,
        "in_channels": setup.shape.in_channels,
        "image_size": list(setup.shape.image_size),
        "classes": list(setup.dataset.classes),
        "parameters": sum(p.numel() for p in setup.student.parameters()),
    }


def _describe_teacher(config: Config, setup: TrainingSetup, number: int) -> dict[str, Any]:
    """Return what a teacher is, and its accuracy on at most 256 validation images."""
    teacher, settings, threat = setup.teachers[number], config.validation, config.threat.build()
    images, labels = (part[:_TEACHER_IMAGES] for part in setup.validation)
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
        "fingerprint": fingerprint_of(teacher.module, setup).to_json(),
    }


def used_packages(config: Config, setup: TrainingSetup) -> list[str]:
    """Return the packages whose networks or optimizer a run uses, such as timm."""
    names = [config.model.name, config.optim.name, *(each.architecture for each in setup.teachers)]
    return [package for package in PACKAGES if any(name.startswith(f"{package}:") for name in names)]


def record_environment(
    directory: RunDirectory, epoch: int, *, is_partial: bool, is_finished: bool, packages: Sequence[str] = ()
) -> None:
    """Write environment.json, or add the environment in which a run is resumed; a finished run is left alone.

    The values at the top are those with which the run began; a run of several environments lists each of them under
    "environments" with its first and its last epoch.

    Args:
        directory: the run directory.
        epoch: the next epoch to train, counted from 1.
        is_partial: whether a part of this epoch was trained before.
        is_finished: whether there is nothing left to train.
        packages: those of `used_packages`.
    """
    here = environment(packages)
    try:
        stored = directory.read_json("environment.json")
    except RunError:
        stored = None
    if stored is None or (epoch == 1 and not is_partial):
        directory.write_json("environment.json", here)
        return
    if is_finished:
        return
    entries = stored.get("environments")
    if not isinstance(entries, list) or not all(isinstance(each, dict) and "first_epoch" in each for each in entries):
        entries = [{"first_epoch": 1, "last_epoch": None, **stored}]
    # Later epochs were lost with their checkpoints, and are trained again now.
    kept = [each for each in entries if each["first_epoch"] < epoch + is_partial]
    changes = _environment_changes(kept[-1], here)
    if any(kept[-1].get(key) != value for key, value in here.items()):
        kept[-1] = {**kept[-1], "last_epoch": epoch - 1 + is_partial}
        kept.append({"first_epoch": epoch, "last_epoch": None, **here})
    else:
        kept[-1] = {**kept[-1], "last_epoch": None}
    began = {key: value for key, value in stored.items() if key != "environments"}
    page = {**began, "environments": kept} if len(kept) > 1 else began
    if page != stored:
        directory.write_json("environment.json", page)
    if changes:
        warnings.warn(
            f"{directory.path} goes on in another environment from epoch {epoch} on ({'; '.join(changes)}): numbers "
            "may differ from those of an uninterrupted run by rounding",
            stacklevel=3,
        )


def _environment_changes(before: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return what may change the rounding: threads, versions, processor and GPU, with both values."""
    there, now = (
        {**{key: each.get(key) for key in ("threads", "python", "processor", "gpu")}, **(each.get("versions") or {})}
        for each in (before, here)
    )
    return [f"{key} {now[key]}, before {there.get(key)}" for key in now if now[key] != there.get(key)]


def _print_teachers(teachers: list[dict[str, Any]], setup: TrainingSetup) -> None:
    """Print the accuracy of every teacher, with a warning where it is no better than guessing."""
    for teacher, loaded in zip(teachers, setup.teachers, strict=True):
        print(
            f"teacher {teacher['spec']} ({teacher['trained']}): clean {teacher['clean_accuracy']:.3f}, "
            f"robust {teacher['robust_accuracy']:.3f} on {teacher['images']} validation images",
            file=sys.stderr,
        )
        device = setup.validation[1].device
        label = f"teacher {teacher['spec']}"
        for line in accuracy_warnings(loaded.module, setup.dataset, label, device, ids=setup.split.validation):
            print(f"robustill: warning: {line}", file=sys.stderr)
