"""Networks of timm and torchvision, with fresh weights as students and with published ones.

A name is `timm:resnet18` or `torchvision:resnet18`. Nothing is downloaded unless the user asks for it.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from robustill.core.errors import CheckpointError, ModelError, did_you_mean, first_line
from robustill.models import strides
from robustill.models.layers import ImageSize, Normalize

PACKAGES = ("timm", "torchvision")
"""What stands before the colon of a name."""

_OWN_ARGUMENTS = ("checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay", "weights", "progress")
"""Arguments of the packages that read or download files."""

_LARGEST_GRID = 8
"""Patches along the shorter side of an image that is smaller than those a transformer was published for."""

# A torch.library.Library unregisters its operators when it is garbage-collected, so these objects are kept.
_operator_libraries: list[Any] = []


def is_published(name: str) -> bool:
    """Return whether a name is that of a network of timm or torchvision.

    Example:
        >>> is_published("timm:resnet18"), is_published("my_mod:net")
        (True, False)
    """
    return name.partition(":")[0] in PACKAGES and ":" in name


def architecture_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a network is rebuilt with once it has its own weights: all but `pretrained`."""
    return {key: value for key, value in options.items() if not (is_published(name) and key == "pretrained")}


def build_published(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: ImageSize,
    pretrained: bool | str = False,
    undo_strides: int = 0,
    **options: Any,
) -> nn.Module:
    """Build a network of timm or torchvision behind the normalisation that it was published with.

    A transformer of a fixed image size is built for that of the images. Where they are smaller than those that it was
    published for and its name gives a patch size, as in vit_tiny_patch16_224, the patches become so small that there
    are at most 8 along the shorter side: 4×4 pixels for 32×32 images. `patch_size` overrides it.

    Args:
        name: such as "timm:resnet18" or "torchvision:resnet18".
        num_classes: K.
        in_channels: C; torchvision's networks take 3 channels only.
        image_size: H and W, in pixels.
        pretrained: False for fresh weights; a file of published weights; True for the file in the cache of
            huggingface_hub or torch.hub. A layer for another number of classes keeps its fresh weights.
        undo_strides: how many of the reductions of the resolution are undone, the first ones first, for images that are
            smaller than the published ones: see `robustill.models.strides`.
        options: of the package's own constructor.

    Raises:
        ModelError: the package is missing or does not know the name, or an option is not allowed.
        CheckpointError: the weights are missing or cannot be trusted.
    """
    for option in _OWN_ARGUMENTS:
        if option in options:
            raise ModelError(f"model {name} has no option {option!r}: give a file of weights as pretrained")
    if not isinstance(pretrained, bool | str):
        raise ModelError(f"pretrained is {pretrained!r}, expected true, false or a file of weights")
    if isinstance(undo_strides, bool) or not isinstance(undo_strides, int) or undo_strides < 0:
        raise ModelError(f"undo_strides is {undo_strides!r}, expected a whole number from 0")
    size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    package, _, own_name = name.partition(":")
    if package == "timm":
        network, mean, std = _build_timm(own_name, num_classes, in_channels, size, pretrained, options)
    else:
        network, mean, std = _build_torchvision(own_name, num_classes, in_channels, size, pretrained, options)
    if len(mean) != in_channels:
        mean, std = [sum(mean) / len(mean)] * in_channels, [sum(std) / len(std)] * in_channels
    if undo_strides:
        strides.undo_strides(network, undo_strides, (in_channels, *size), name)
    return nn.Sequential(OrderedDict(normalize=Normalize(mean, std), network=network))


_Built = tuple[nn.Module, list[float], list[float]]
"""A network, and the mean and std of its published normalisation."""


def _build_timm(
    name: str,
    num_classes: int,
    in_channels: int,
    size: tuple[int, int],
    pretrained: bool | str,
    options: dict[str, Any],
) -> _Built:
    from robustill.models.weights import read_state_dict

    timm = import_timm(name)
    config: Any = timm.get_pretrained_cfg(name)
    if config.fixed_input_size:
        options = {"img_size": size, **_small_patches(name, size, min(config.input_size[1:])), **options}
    if pretrained is not False:
        file = Path(pretrained) if isinstance(pretrained, str) else _cached_timm_file(name, config)
        # timm itself would unpickle the file; its conversion of the tensors to another shape of images is used.
        overlay = {"state_dict": read_state_dict(file), "custom_load": False}
        options = {"pretrained": True, "pretrained_cfg_overlay": overlay, **options}
    network: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=in_channels, **options)
    return network, list(config.mean), list(config.std)


def _small_patches(name: str, size: tuple[int, int], published: int) -> dict[str, int]:
    """Return the patch size for images smaller than the published ones, as an option; none where it is not in the name.

    Example:
        >>> _small_patches("vit_tiny_patch16_224", (32, 32), 224)
        {'patch_size': 4}
    """
    found = re.search(r"patch(\d+)", name)
    if found is None or min(size) >= published:
        return {}
    own, common = int(found[1]), math.gcd(*size)
    divisors = [each for each in range(1, own + 1) if common % each == 0]
    return {"patch_size": next((each for each in divisors if min(size) <= _LARGEST_GRID * each), divisors[-1])}


def _cached_timm_file(name: str, config: Any) -> Path:
    """Return the published weights in the cache of huggingface_hub, or in that of torch.hub."""
    found: Any = None
    if config.hf_hub_id:
        try:
            hub: Any = importlib.import_module("huggingface_hub")
        except ImportError:
            pass
        else:
            found = hub.try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
    return Path(found) if isinstance(found, str) else _cached_torch_file(f"timm:{name}", config.url)


def _cached_torch_file(name: str, url: str | None) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / (url or "").rpartition("/")[2]
    if not file.is_file():
        raise CheckpointError(
            f"the published weights of {name} are in no cache on this machine: give their file as "
            f"--model.pretrained FILE, or put it at {file}"
            if url
            else f"{name} has no published weights: leave pretrained out"
        )
    return file


def _build_torchvision(
    name: str,
    num_classes: int,
    in_channels: int,
    size: tuple[int, int],
    pretrained: bool | str,
    options: dict[str, Any],
) -> _Built:
    from robustill.models.weights import read_state_dict

    models: Any = import_vision("torchvision").models
    names = models.list_models(module=models)
    if name not in names:
        raise ModelError(f"torchvision:{name} is unknown: {_name_hint(name, names)}")
    if in_channels != 3:
        raise ModelError(f"torchvision:{name} takes images of 3 channels; here are {in_channels}")
    if name.startswith("vit_"):
        options = {"image_size": size[0], **options}
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    weights: Any = models.get_model_weights(name).DEFAULT
    if pretrained is not False:
        file = (
            Path(pretrained) if isinstance(pretrained, str) else _cached_torch_file(f"torchvision:{name}", weights.url)
        )
        _load_all_but_head(network, read_state_dict(file), num_classes, f"torchvision:{name}")
    transforms: Any = weights.transforms()
    return network, list(transforms.mean), list(transforms.std)


def _load_all_but_head(network: nn.Module, tensors: Mapping[str, Tensor], num_classes: int, name: str) -> None:
    """Load published weights, except for layers of another number of classes, which keep their fresh weights.

    Raises:
        CheckpointError: another tensor is missing or has another shape.
    """
    own = network.state_dict()
    loaded = dict(tensors)
    for key, value in own.items():
        is_head = key in tensors and len(value) == num_classes and value.shape[1:] == tensors[key].shape[1:]
        if is_head and value.shape != tensors[key].shape:
            loaded[key] = value
    wrong = [key for key in own if key not in loaded or loaded[key].shape != own[key].shape]
    if wrong:
        raise CheckpointError(f"the weights do not fit {name}: {wrong[0]} is missing or has another shape")
    network.load_state_dict({key: loaded[key] for key in own})


def _name_hint(name: str, names: list[str]) -> str:
    hint = did_you_mean(name, names)
    return hint if hint.startswith("did") else f"{len(names)} names are known"


def import_timm(name: str) -> ModuleType:
    """Import timm after a check that it knows a network of this name.

    Raises:
        ModelError: timm is not installed, or does not know the name.
    """
    timm = import_vision("timm")
    if not timm.is_model(name):
        raise ModelError(f"timm:{name} is unknown: {_name_hint(name, timm.list_models())}")
    return timm


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
    timm = import_timm(name)
    if in_channels != 3:
        raise ModelError(f"timm:{name} takes images of 3 channels; here are {in_channels}")
    if file is not None:
        network: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=in_channels)
        from robustill.models.weights import load_public_weights

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
