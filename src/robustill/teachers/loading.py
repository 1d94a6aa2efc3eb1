"""The teachers of a configuration: load their networks, and put the cache of logits in front of them."""

from __future__ import annotations

import hashlib
import json
import shlex
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustill.config.schema import Config, TeacherConfig
from robustill.core.errors import ModelError
from robustill.core.fingerprint import RANDOM, compute_fingerprint
from robustill.models.loading import LoadedNetwork, Shape, load_network, needs_name
from robustill.models.weights import refuse_other_format
from robustill.teachers.cache import CachedTeacher, TeacherCache


def load_teacher(teacher: TeacherConfig, shape: Shape) -> LoadedNetwork:
    """Load the network of one configured teacher.

    Args:
        teacher: one entry of `config.teachers`.
        shape: the images and classes of the data set.

    Raises:
        RobustillError: as for `load_network`.
    """
    model = teacher.model
    if model is None and needs_name(teacher.spec):
        refuse_other_format(Path(teacher.spec))
        entry = f"{{spec: {teacher.spec}, model: {{name: resnet18}}}}"
        raise ModelError(
            f"teacher {teacher.spec} holds weights only: say which network they belong to, e.g. "
            f"--teachers {shlex.quote(f'[{entry}]')}"
        )
    return load_network(
        teacher.spec,
        shape=shape,
        name=None if model is None else model.name,
        options=None if model is None else {**model.options, "mean": model.mean, "std": model.std},
        sha256=teacher.sha256,
        image_size=teacher.image_size,
        download=teacher.download,
    )


def with_cache(
    config: Config, teachers: list[LoadedNetwork], combined: nn.Module, shape: Shape, device: torch.device
) -> nn.Module:
    """Put a cache of logits on clean images in front of the teachers, where one is configured.

    Args:
        config: its `compute.teacher_cache` names the folder, which holds one cache for the teachers of each role, and
            those of other teachers beside it.
        teachers: the loaded teachers, in the order of `config.teachers`.
        combined: the same teachers as `combine` returns them, on the device.
        shape: the images and classes of the data set.
        device: where the teachers compute; the cache of another device is refused.

    Returns:
        `combined` itself without a cache; otherwise a `CachedTeacher`, or a ModuleDict of them by role.

    Raises:
        ConfigError: the cache holds the logits of these teachers in other code.
    """
    folder = config.compute.teacher_cache
    if folder is None:
        return combined
    if not isinstance(combined, nn.ModuleDict):
        role = config.teachers[0].role
        return _cached_teacher(config, teachers, role, combined, shape, device)
    return nn.ModuleDict(
        {role: _cached_teacher(config, teachers, role, network, shape, device) for role, network in combined.items()}
    )


def _cached_teacher(
    config: Config,
    teachers: list[LoadedNetwork],
    role: str,
    network: nn.Module,
    shape: Shape,
    device: torch.device,
) -> CachedTeacher:
    """Put the cache of one role in front of its network."""
    assert config.compute.teacher_cache is not None
    num_classes = teachers[0].shape.num_classes
    identity = {
        "format": 1,
        "teachers": _identities(config, teachers, role),
        "mean": config.teacher_mean,
        "classes": num_classes,
        "precision": config.compute.precision,
        "device": device.type,
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = config.compute.teacher_cache / f"{role}-{digest}"
    fingerprint = compute_fingerprint(network, (shape.in_channels, *shape.image_size), device=device)
    if fingerprint.note == RANDOM:
        warnings.warn(
            f"the {role} teacher {RANDOM}: {folder} answers with its first draw, and only its weights identify it",
            stacklevel=2,
        )
    return CachedTeacher(network, TeacherCache(folder, identity, num_classes, fingerprint))


def _identities(config: Config, teachers: list[LoadedNetwork], role: str) -> list[dict[str, Any]]:
    """Return what the logits of a role depend on: the weights and settings of each of its teachers."""
    return [
        {
            "sha256": loaded.sha256,
            "architecture": loaded.architecture,
            "trained": loaded.trained,
            "given": teacher.model_dump(mode="json", include={"weight", "image_size", "model"}),
        }
        for teacher, loaded in zip(config.teachers, teachers, strict=True)
        if teacher.role == role
    ]
