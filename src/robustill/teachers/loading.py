"""robustill.teachers.ensemble.loading."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from robustill.config.schema import Config
from robustill.models.loading import LoadedNetwork, Shape, load_network
from robustill.teachers.cache import Cached, TeacherCache


def _load_teacher(teacher: Any, shape: Shape) -> LoadedNetwork:
    model = teacher.model
    return load_network(
        teacher.spec,
        shape=shape,
        name=None if model is None else model.name,
        options=None if model is None else {**model.options, "mean": model.mean, "std": model.std},
        sha256=teacher.sha256,
        image_size=teacher.image_size,
        download=teacher.download,
    )


def _with_cache(config: Config, teachers: list[LoadedNetwork], combined: nn.Module, device: torch.device) -> nn.Module:
    """The teachers of each role, with their logits on clean images kept in the configured folder."""
    folder = config.compute.teacher_cache
    if folder is None:
        return combined
    several = isinstance(combined, nn.ModuleDict)
    by_role = dict(combined.items()) if isinstance(combined, nn.ModuleDict) else {config.teachers[0].role: combined}
    cached: dict[str, nn.Module] = {}
    for role, network in by_role.items():
        members = [
            {
                "sha256": loaded.sha256,
                "architecture": loaded.architecture,
                "trained": loaded.trained,
                "given": teacher.model_dump(mode="json", include={"weight", "image_size", "model"}),
            }
            for teacher, loaded in zip(config.teachers, teachers, strict=True)
            if teacher.role == role
        ]
        identity = {
            "format": 1,
            "teachers": members,
            "mean": config.teacher_mean,
            "classes": teachers[0].shape.num_classes,
            "precision": config.compute.precision,
            "device": device.type,
            "torch": torch.__version__,
        }
        cached[role] = Cached(network, TeacherCache(folder / role, identity, teachers[0].shape.num_classes))
    return nn.ModuleDict(cached) if several else next(iter(cached.values()))
