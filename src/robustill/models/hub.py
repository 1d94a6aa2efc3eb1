"""Networks of timm and of Hugging Face folders: from local files; from the network only where that is asked for."""

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

# Libraries that declare operators live as long as these objects.
_declared: list[Any] = []


def import_vision(name: str) -> ModuleType:
    """A package of the extra `vision`, such as timm.

    Beside a CPU torch, torchvision's wheel lacks its compiled operators and fails on the first one that it describes,
    torchvision::nms. Declaring the two that it describes at import is enough for networks, which call neither.

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
            raise ModelError(f"{name} fails at import: {str(error).partition(chr(10))[0]}") from None
    for module in [each for each in sys.modules if each.partition(".")[0] in ("torchvision", name)]:
        del sys.modules[module]
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return importlib.import_module(name)


_HUB_FILES = ("config.json", "model.safetensors")


def timm_network(
    name: str, file: Path | None, *, num_classes: int, in_channels: int, download: bool
) -> tuple[nn.Module, int]:
    """A network of timm behind the normalisation that it was trained with.

    Args:
        name: as timm knows it.
        file: of weights; None fetches those of timm.
        num_classes: K that is needed; published weights for another K are refused, not given a new head.
        in_channels: C; timm's normalisation is for 3.
        download: fetching is allowed.

    Returns:
        Images [B,C,H,W] in [0,1] to logits; and the size in pixels that it was trained at.

    Raises:
        ModelError: timm is missing or does not know the name, or the network does not fit the images.
        CheckpointError: no weights, or a file that cannot be trusted or does not fit.
    """
    timm = import_vision("timm")
    if not timm.is_model(name):
        known = timm.list_models()
        hint = did_you_mean(name, known)
        raise ModelError(f"timm:{name} is unknown: {hint if hint.startswith('did') else f'{len(known)} are known'}")
    if in_channels != 3:
        raise ModelError(f"timm:{name} takes images of 3 channels; here are {in_channels}")
    if file is not None:
        network: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=in_channels)
        load_public_weights(network, file)
    elif download:
        try:
            network = timm.create_model(name, pretrained=True)
        except Exception as error:  # Sockets, HTTP, a hub's own errors: all of them mean the same to the user.
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"timm:{name} cannot be fetched ({reason}): give timm:{name}=FILE") from None
        found: Any = getattr(network, "num_classes", None)
        if found != num_classes:
            raise ModelError(f"timm:{name} was published for {found} classes; here are {num_classes}: tune it first")
    else:
        raise CheckpointError(f"timm:{name} has no weights here: give timm:{name}=FILE, or download: true to fetch its")
    about: Any = network.pretrained_cfg
    normalise = Normalize(about["mean"], about["std"])
    return nn.Sequential(normalise, network), int(about["input_size"][-1])


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What a Hugging Face folder holds.

    Args:
        weights: the file of weights.
        page: what config.json says: name, options, num_classes, in_channels, image_size.
    """

    weights: Path
    page: dict[str, Any]


def open_folder(where: str, *, download: bool) -> Folder:
    """A folder, or a repository of the hub, with model.safetensors and a config.json that names our architecture.

    config.json has the keys of a run's model.json: {"name": "resnet18", "options": {}, "num_classes": 10,
    "in_channels": 3, "image_size": [32, 32]}. An import path is no name here: it would run code of the folder's choice.

    Args:
        where: a folder, OWNER/NAME or OWNER/NAME@REVISION.
        download: a repository may be fetched, with huggingface_hub.

    Raises:
        CheckpointError: not there, or damaged.
        ModelError: another architecture than ours.
    """
    folder = Path(where) if Path(where).is_dir() else _fetched(where, download=download)
    weights, described = folder / "model.safetensors", folder / "config.json"
    for file in (described, weights):
        if not file.is_file():
            raise CheckpointError(f"hf:{where} has no {file.name}: expected {' and '.join(_HUB_FILES)}")
    try:
        page = network_page(json.loads(described.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{described} does not describe a network of ours ({first_line(error)}): "
            "expected name, options, num_classes, in_channels and image_size, as in a run's model.json"
        ) from None
    name = page["name"]
    if name not in MODELS:
        raise ModelError(f"{described} names the network {name!r}: {did_you_mean(name, MODELS)}")
    return Folder(weights=weights, page=page)


def network_page(page: Any) -> dict[str, Any]:
    """Name, options, num_classes, in_channels and image_size, out of a config.json or a run's model.json.

    Raises:
        ValueError: one of them is missing, or cannot be.
    """
    keys = ("name", "options", "num_classes", "in_channels", "image_size")
    missing = [key for key in keys if key not in page] if isinstance(page, dict) else list(keys)
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing")
    image_size = page["image_size"]
    sizes = [page["num_classes"], page["in_channels"], *(image_size if isinstance(image_size, list) else [])]
    if len(sizes) != 4 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError("sizes are no positive whole numbers")
    if not isinstance(page["name"], str) or not isinstance(page["options"], dict):
        raise ValueError("the name is no word, or options are no keys and values")
    return {key: page[key] for key in keys}


def _fetched(where: str, *, download: bool) -> Path:
    repository, _, revision = where.partition("@")
    if not download:
        raise CheckpointError(
            f"hf:{where} is no folder here: give one with {' and '.join(_HUB_FILES)}, "
            "or download: true for a repository of that name"
        )
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise CheckpointError(
            f"hf:{where}: huggingface_hub is not installed: pip install huggingface_hub, or give a folder"
        ) from None
    try:
        found = hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(_HUB_FILES))
    except Exception as error:  # As above: the hub's client has errors of several families.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"hf:{where} cannot be fetched ({reason}): fetch it by hand and give its folder"
        ) from None
    return Path(found)
