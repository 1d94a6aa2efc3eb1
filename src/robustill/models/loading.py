"""Networks by specification: a checkpoint of a run, a file of weights, a network of somebody's zoo or one's own."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustill.core.errors import CheckpointError, ModelError, RobustillError, RunError, first_line
from robustill.data import Dataset
from robustill.models import MODELS, build, hub, robustbench
from robustill.models.exported import load_exported
from robustill.models.layers import Resized
from robustill.models.weights import file_sha256, load_public_weights, tensors_sha256
from robustill.runs.directory import RunDirectory
from robustill.threat import Threat


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a network takes and gives.

    Args:
        num_classes: K.
        in_channels: C.
        image_size: H and W, in pixels.
    """

    num_classes: int
    in_channels: int
    image_size: tuple[int, int]

    @classmethod
    def of(cls, dataset: Dataset) -> Shape:
        """That of the images and classes of a data set."""
        C, H, W = dataset.image_shape
        return cls(num_classes=dataset.num_classes, in_channels=C, image_size=(H, W))

    @classmethod
    def on_page(cls, page: Mapping[str, Any]) -> Shape:
        """That of a `hub.network_page`."""
        H, W = page["image_size"]
        return cls(num_classes=page["num_classes"], in_channels=page["in_channels"], image_size=(H, W))

    def __str__(self) -> str:
        H, W = self.image_size
        return f"{self.in_channels}×{H}×{W} images, {self.num_classes} classes"


@dataclass(frozen=True, kw_only=True)
class LoadedNetwork:
    """A network in eval mode, without gradients, and where it came from.

    Args:
        module: images [B,C,H,W] in [0,1] to logits [B,K].
        spec: what it was asked for by.
        sha256: of its file of weights; of its tensors as .safetensors where it does not come from one file.
        shape: what it was built for.
        architecture: its name and options.
        trained: how, in a few words.
        config: the configuration of the run that made it; None for others.
        epoch: of that run, counted from 1; None for others.
    """

    module: nn.Module
    spec: str
    sha256: str
    shape: Shape
    architecture: str
    trained: str = "a file of weights"
    config: dict[str, Any] | None = None
    epoch: int | None = None


def load_network(
    spec: str,
    *,
    shape: Shape | None = None,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    image_size: int | None = None,
    download: bool = False,
) -> LoadedNetwork:
    """A frozen network.

    Args:
        spec: one of

            - "run:DIR", "run:DIR@best", "@last", "@epoch-20", each also with "-ema" or "-swa";
            - a file of weights, .safetensors or of torch.save; needs a name;
            - "robustbench:ID" from the cache folder, "robustbench:ID=FILE" from a file, see
              `robustill.models.robustbench`;
            - "timm:NAME=FILE", or "timm:NAME" with `download`;
            - "hf:FOLDER", or "hf:OWNER/NAME" with `download`, see `robustill.models.hub.open_folder`;
            - a .pt2 file of torch.export.save, see `robustill.models.exported`;
            - "my_pkg.my_mod:build", a function as `build` takes it, that returns the network with its weights.
        shape: what is needed; a network that was made for another is refused. All but runs and folders need it.
        name: the architecture, for a file.
        options: of the architecture, for a file.
        sha256: what `LoadedNetwork.sha256` must be; a file is checked before it is read.
        image_size: of the square images that the network wants, where it is not theirs: a resize becomes its first
            layer.
        download: timm and the hub may fetch what is not here.

    Raises:
        RobustillError: it is not there, is damaged or untrusted, or does not fit.

    Example:
        ``load_network("run:runs/teacher@best").module(x)``
    """
    kind, _, rest = spec.partition(":")
    is_file = kind not in _READERS and Path(spec).is_file()
    if not is_file and name is not None and (kind in _READERS or _IMPORT_PATH.fullmatch(spec)):
        raise ModelError(f"{spec} names its own network: leave the model {name} out")
    if not rest and (Path(spec) / "config.yaml").is_file():
        raise CheckpointError(f"{spec} is a run directory: write run:{spec}@best for the weights in it")
    if not is_file and kind not in _READERS and not _IMPORT_PATH.fullmatch(spec):
        raise CheckpointError(
            f"{spec} not found: expected run:DIR, run:DIR@best or a file of weights, "
            f"or one of {', '.join(f'{each}:' for each in _READERS)}"
        )
    if shape is None and kind not in ("run", "hf"):
        raise ModelError(f"{spec}: say for which images, a Shape" if name else _NO_NAME.format(spec))
    own = shape
    if shape is not None and image_size is not None:
        own = replace(shape, image_size=(image_size, image_size))
    wanted = _Wanted(spec=spec, shape=own, name=name, options=options or {}, sha256=sha256, download=download)
    if kind in _READERS:
        network = _READERS[kind](rest, wanted)
    elif not is_file:
        network = _from_function(wanted)
    else:
        network = _from_program(wanted) if spec.endswith(".pt2") else _from_file(wanted)
    if sha256 is not None and network.sha256 != sha256:
        raise _other_sha256(spec, network.sha256, sha256)
    module = network.module.eval().requires_grad_(False)
    if own is not None and shape is not None and own.image_size != shape.image_size:
        module = Resized(module, own.image_size[0]).eval()
    return replace(network, module=module)


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    spec: str
    shape: Shape | None
    name: str | None
    options: Mapping[str, Any]
    sha256: str | None
    download: bool

    @property
    def images(self) -> Shape:
        assert self.shape is not None
        return self.shape

    def checked(self, file: Path) -> str:
        """The sha256 of a file, compared before anything reads it."""
        try:
            found = file_sha256(file)
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror or error}") from None
        if self.sha256 is not None and found != self.sha256:
            raise _other_sha256(str(file), found, self.sha256)
        return found


_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_NO_NAME = "{} holds weights alone: say which network they belong to, e.g. --model.name resnet18"


def _other_sha256(what: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(f"{what} has sha256 {found}, expected {expected}: fetch it again, or mend the sha256")


def build_network(name: str, shape: Shape, options: Mapping[str, Any], *, seed: int = 0) -> nn.Module:
    """A network with fresh weights for images of a shape.

    Raises:
        ModelError: an unknown network, or options that its constructor cannot take.
    """
    chosen = {key: value for key, value in options.items() if key not in ("mean", "std")}
    try:
        with warnings.catch_warnings():
            # Of layers without a single weight, which are refused below.
            warnings.simplefilter("ignore")
            module = build(
                name,
                num_classes=shape.num_classes,
                in_channels=shape.in_channels,
                image_size=shape.image_size,
                seed=seed,
                **options,
            )
    except RobustillError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        # What constructors, also those behind an import path, make of options that cannot be.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model {name} cannot be built with {chosen}: {reason}") from None
    if any(parameter.numel() == 0 for parameter in module.parameters()):
        raise ModelError(f"model {name} with {chosen} has layers without a single weight: give larger options")
    return module


_SMALL = 2**24
"""Weights, 64 MiB of them: of smaller networks it is said how they do not fit."""


def _refuse_larger(name: str, shape: Shape, options: Mapping[str, Any], size: int, page: Path) -> None:
    """A page that a stranger wrote may ask for any network: one with more weights than there are bytes is not built.

    Raises:
        CheckpointError: it asks for such a network.
        ModelError: as for `build_network`.
    """
    if name not in MODELS:
        return
    numbers = [abs(each) for each in options.values() if isinstance(each, int | float)]
    count = max([shape.num_classes, shape.in_channels, *numbers])
    if count <= size:
        with torch.device("meta"):
            network = build_network(name, shape, options)
        count = sum(each.numel() for each in network.parameters())
        size = max(size, _SMALL)
    if count > size:
        raise CheckpointError(f"{page} describes a network of more weights than its file of weights has bytes")


def _from_run(where: str, wanted: _Wanted) -> LoadedNetwork:
    spec, shape = wanted.spec, wanted.shape
    folder, _, what = where.partition("@")
    run = RunDirectory.existing(folder)
    described = run.read_json("model.json")
    if described is None:
        raise RunError(f"{folder} has no model.json: its training has not begun; run it first")
    try:
        page = hub.network_page(described)
    except ValueError as error:
        raise RunError(f"{run.path / 'model.json'} is damaged: {error}") from None
    made_for, name, options = Shape.on_page(page), page["name"], page["options"]
    if shape is not None and (made_for.num_classes, made_for.in_channels) != (shape.num_classes, shape.in_channels):
        raise ModelError(f"{spec} was trained on {made_for}; here are {shape}: give a network that fits")
    weights, sha256 = run.checkpoints.weights(what or "best")
    epoch, _ = run.checkpoints.resolve(what or "best")
    _refuse_larger(name, made_for, options, sum(each.nbytes for each in weights.values()), run.path / "model.json")
    module = build_network(name, made_for, options)
    try:
        load_public_weights(module, weights)
    except RobustillError as error:
        raise CheckpointError(f"{spec}: {error}") from None
    config = run.config()
    try:
        trained = describe_run(config)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.path / 'config.yaml'} does not describe a training: {first_line(error)}") from None
    return LoadedNetwork(
        module=module,
        spec=spec,
        sha256=sha256,
        shape=made_for,
        architecture=_described(name, options),
        trained=trained,
        config=config,
        epoch=epoch,
    )


def _from_file(wanted: _Wanted) -> LoadedNetwork:
    file, name = Path(wanted.spec), wanted.name
    if name is None:
        raise ModelError(_NO_NAME.format(wanted.spec))
    sha256 = wanted.checked(file)
    module = build_network(name, wanted.images, wanted.options)
    load_public_weights(module, file)
    return _loaded(wanted, module, sha256, _described(name, wanted.options))


def _from_zoo(where: str, wanted: _Wanted) -> LoadedNetwork:
    identifier, _, given = where.partition("=")
    shape = wanted.images
    entry = robustbench.find(identifier, shape.num_classes)
    made_for = Shape(num_classes=entry.num_classes, in_channels=3, image_size=(32, 32))
    if made_for != shape:
        size = " or image_size: 32" if (made_for.num_classes, 3) == (shape.num_classes, shape.in_channels) else ""
        raise ModelError(
            f"robustbench:{identifier} was trained on {made_for}; here are {shape}: give a network that fits{size}"
        )
    file = Path(given) if given else entry.cached
    if not file.is_file():
        raise CheckpointError(
            f"{file} not found: no checksum is known for {entry.name}, so it is fetched by hand: take it from "
            f"the zoo of RobustBench ({entry.data}, {entry.norm}) and put there, or give robustbench:{identifier}=FILE"
        )
    sha256 = wanted.checked(file)
    module = build_network(entry.model, shape, entry.options)
    load_public_weights(module, file)
    return _loaded(wanted, module, sha256, _described(entry.model, entry.options), str(entry))


def _from_timm(where: str, wanted: _Wanted) -> LoadedNetwork:
    name, _, given = where.partition("=")
    file, shape = Path(given) if given else None, wanted.images
    sha256 = None if file is None else wanted.checked(file)
    module, size = hub.timm_network(
        name, file, num_classes=shape.num_classes, in_channels=shape.in_channels, download=wanted.download
    )
    trained = f"timm, at {size} pixels" if file is None else "a file of weights"
    return _loaded(wanted, module, sha256 or tensors_sha256(module), f"timm {name}", trained)


def _from_folder(where: str, wanted: _Wanted) -> LoadedNetwork:
    folder = hub.open_folder(where, download=wanted.download)
    page = folder.page
    made_for = Shape.on_page(page)
    shape = wanted.shape or made_for
    if made_for != shape:
        raise ModelError(
            f"{wanted.spec} was trained on {made_for}; here are {shape}: give a network that fits, or its image_size"
        )
    sha256 = wanted.checked(folder.weights)
    _refuse_larger(page["name"], shape, page["options"], folder.weights.stat().st_size, Path(where) / "config.json")
    module = build_network(page["name"], shape, page["options"])
    load_public_weights(module, folder.weights)
    return _loaded(replace(wanted, shape=shape), module, sha256, _described(page["name"], page["options"]))


def _from_program(wanted: _Wanted) -> LoadedNetwork:
    if wanted.name is not None:
        raise ModelError(f"{wanted.spec} holds its own network: leave the model {wanted.name} out")
    file, shape = Path(wanted.spec), wanted.images
    sha256 = wanted.checked(file)
    module = load_exported(file, (shape.in_channels, *shape.image_size))
    return _loaded(wanted, module, sha256, "exported program", "an exported program")


def _from_function(wanted: _Wanted) -> LoadedNetwork:
    module = build_network(wanted.spec, wanted.images, {})
    return _loaded(wanted, module, tensors_sha256(module), wanted.spec, "by its function")


_READERS: dict[str, Callable[[str, _Wanted], LoadedNetwork]] = {
    "run": _from_run,
    "robustbench": _from_zoo,
    "timm": _from_timm,
    "hf": _from_folder,
}


def _loaded(
    wanted: _Wanted, module: nn.Module, sha256: str, architecture: str, trained: str = "a file of weights"
) -> LoadedNetwork:
    return LoadedNetwork(
        module=module,
        spec=wanted.spec,
        sha256=sha256,
        shape=wanted.images,
        architecture=architecture,
        trained=trained,
    )


def _described(name: str, options: Mapping[str, Any]) -> str:
    shown = [f"{key}={value}" for key, value in options.items() if key not in ("mean", "std")]
    return " ".join([name, *shown])


def describe_run(config: Mapping[str, Any] | None) -> str:
    """How a teacher was trained, in a few words: "at linf:4/255, 50 epochs"; None is a file that does not say."""
    if config is None:
        return "a file of weights"
    method, epochs = config["method"]["name"], config["optim"]["epochs"]
    against = "" if method == "clean" else f" {Threat(**config['threat'])}"
    more = ", extra images" if config.get("data", {}).get("extra") else ""
    return f"{method}{against}, {epochs} epochs{more}"
