"""Networks from Hugging Face folders; nothing is downloaded unless the user asks for it."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustill.core.errors import CheckpointError, ModelError, did_you_mean, first_line
from robustill.models.registry import MODELS
from robustill.models.vision import is_published

_DESCRIPTION_KEYS = ("name", "options", "num_classes", "in_channels", "image_size")
_FOLDER_FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True, kw_only=True)
class HubFolder:
    """The contents of a Hugging Face folder.

    Args:
        weights: the file of weights.
        description: name, options, num_classes, in_channels and image_size from config.json.
    """

    weights: Path
    description: dict[str, Any]


def open_folder(name: str, *, download: bool) -> HubFolder:
    """Open a folder or a repository of the hub with model.safetensors and a config.json that names our architecture.

    config.json has the keys of a run's model.json: {"name": "resnet18", "options": {}, "num_classes": 10,
    "in_channels": 3, "image_size": [32, 32]}. An import path is not accepted as a name: it would run code that the
    folder chooses.

    Args:
        name: a folder, OWNER/NAME or OWNER/NAME@REVISION.
        download: whether a repository may be downloaded, with huggingface_hub.

    Raises:
        CheckpointError: the folder is missing, incomplete or damaged.
        ModelError: it holds an architecture that is not ours.
    """
    folder = Path(name) if Path(name).is_dir() else _download_repository(name, download=download)
    weights, config = folder / "model.safetensors", folder / "config.json"
    for file in (config, weights):
        if not file.is_file():
            raise CheckpointError(f"hf:{name} has no {file.name}: expected {' and '.join(_FOLDER_FILES)}")
    try:
        description = check_description(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{config} does not describe one of our networks ({first_line(error)}): "
            "expected name, options, num_classes, in_channels and image_size, as in a run's model.json"
        ) from None
    model = description["name"]
    if model not in MODELS and not is_published(model):
        raise ModelError(f"{config} names the network {model!r}: {did_you_mean(model, MODELS)}")
    return HubFolder(weights=weights, description=description)


def check_description(content: Any) -> dict[str, Any]:
    """Return name, options, num_classes, in_channels and image_size from a config.json or a run's model.json.

    Raises:
        ValueError: one of them is missing or invalid.
    """
    keys = list(content) if isinstance(content, dict) else []
    missing = [key for key in _DESCRIPTION_KEYS if key not in keys]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing")
    image_size = content["image_size"]
    if not isinstance(image_size, list):
        image_size = []
    sizes = [content["num_classes"], content["in_channels"], *image_size]
    if len(sizes) != 4 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError("the sizes are not positive integers")
    if not isinstance(content["name"], str) or not isinstance(content["options"], dict):
        raise ValueError("the name is not a string, or the options are not keys and values")
    return {key: content[key] for key in _DESCRIPTION_KEYS}


def _download_repository(name: str, *, download: bool) -> Path:
    repository, _, revision = name.partition("@")
    if not download:
        raise CheckpointError(
            f"hf:{name} is not a folder: give one with {' and '.join(_FOLDER_FILES)}, "
            "or download: true for a repository of that name"
        )
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise CheckpointError(
            f"hf:{name}: huggingface_hub is not installed: pip install huggingface_hub, or give a folder"
        ) from None
    try:
        folder = hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(_FOLDER_FILES))
    except Exception as error:  # Sockets, HTTP, the client's own errors: all of them mean the same to the user.
        raise CheckpointError(
            f"hf:{name} cannot be downloaded ({first_line(error)}): download it by hand and give its folder"
        ) from None
    return Path(folder)
