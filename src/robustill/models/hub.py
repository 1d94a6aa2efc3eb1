"""Networks from timm and from Hugging Face folders; nothing is downloaded unless the user asks for it."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from robustill.core.errors import CheckpointError, ModelError, did_you_mean, first_line
from robustill.models.layers import Normalize
from robustill.models.registry import MODELS
from robustill.models.weights import load_public_weights

_DESCRIPTION_KEYS = ("name", "options", "num_classes", "in_channels", "image_size")
_FOLDER_FILES = ("config.json", "model.safetensors")
# A torch.library.Library unregisters its operators when it is garbage-collected, so these objects are kept.
_operator_libraries: list[Any] = []


# Hugging Face folders


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
    if model not in MODELS:
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


# timm


def timm_network(
    name: str, file: Path | None, *, num_classes: int, in_channels: int, download: bool
) -> tuple[nn.Module, int]:
    """Load a network of timm behind the normalisation that it was trained with.

    Args:
        name: its name in timm.
        file: a file of weights; None downloads those of timm.
        num_classes: K; published weights for another K are refused rather than given a new head.
        in_channels: C, which must be 3, as timm's normalisation is for 3 channels.
        download: whether weights may be downloaded.

    Returns:
        The network, images [B,C,H,W] in [0,1] to logits, and the image size in pixels that it was trained at.

    Raises:
        ModelError: timm is missing or does not know the name, or the network does not fit the images.
        CheckpointError: weights that are missing, cannot be trusted or do not fit.
    """
    timm = import_vision("timm")
    if not timm.is_model(name):
        names = timm.list_models()
        hint = did_you_mean(name, names)
        if not hint.startswith("did"):
            hint = f"{len(names)} names are known"
        raise ModelError(f"timm:{name} is unknown: {hint}")
    if in_channels != 3:
        raise ModelError(f"timm:{name} takes images of 3 channels; here are {in_channels}")
    if file is not None:
        network: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=in_channels)
        load_public_weights(network, file)
    elif download:
        network = _download_timm(timm, name, num_classes)
    else:
        raise CheckpointError(
            f"timm:{name} has no local weights: give timm:{name}=FILE, or download: true to download them"
        )
    config: Any = network.pretrained_cfg
    normalize = Normalize(config["mean"], config["std"])
    return nn.Sequential(normalize, network), int(config["input_size"][-1])


def _download_timm(timm: ModuleType, name: str, num_classes: int) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # Sockets, HTTP, a hub's own errors: all of them mean the same to the user.
        raise CheckpointError(
            f"timm:{name} cannot be downloaded ({first_line(error)}): give timm:{name}=FILE"
        ) from None
    published: Any = getattr(network, "num_classes", None)
    if published != num_classes:
        raise ModelError(
            f"timm:{name} was published for {published} classes; here are {num_classes}: fine-tune it first"
        )
    return network


def import_vision(name: str) -> ModuleType:
    """Import a package of the extra `vision`, such as timm.

    With a CPU build of torch, torchvision's wheel lacks its compiled operators and fails on the first operator that it
    describes, torchvision::nms. Declaring the two operators that it describes at import is enough for networks, which
    call neither.

    Args:
        name: of the package.

    Raises:
        ModelError: it is not installed, or fails at import.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"{name} cannot be imported ({error}): pip install 'robustill[vision]'") from None
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise ModelError(f"{name} fails at import: {first_line(error)}") from None
    for module in list(sys.modules):
        if module.partition(".")[0] in ("torchvision", name):
            del sys.modules[module]
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operator_libraries.append(library)
    return importlib.import_module(name)
