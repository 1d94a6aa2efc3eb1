"""Networks by specification: a checkpoint of a run, a file of weights, RobustBench, timm, a hub folder, a function."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustill.core.contexts import freeze_for_good
from robustill.core.contract import check_weights_exist
from robustill.core.errors import CheckpointError, ModelError, RobustillError, RunError, first_line
from robustill.core.user_code import TrustCode, explain_file, only_named
from robustill.core.validation import check_integer, check_path, check_type
from robustill.data import Dataset
from robustill.models import hub, robustbench, vision
from robustill.models.exported_program import load_exported
from robustill.models.layers import ResizedNetwork
from robustill.models.registry import MODELS, build
from robustill.models.weights import (
    check_beginning,
    file_sha256,
    fits,
    load_public_weights,
    refuse_other_format,
    tensors_sha256,
)
from robustill.runs.directory import RunDirectory, split_checkpoint
from robustill.threat import Threat

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_SMALL = 2**24
"""Number of weights, 64 MiB, up to which a network is built even if its file is smaller, to report the mismatch."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The images that a network takes and the classes that it predicts.

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
        """Return the shape of the images and classes of a data set."""
        C, H, W = dataset.image_shape
        return cls(num_classes=dataset.num_classes, in_channels=C, image_size=(H, W))

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Shape:
        """Return the shape in a description that `hub.check_description` returned."""
        H, W = description["image_size"]
        return cls(num_classes=description["num_classes"], in_channels=description["in_channels"], image_size=(H, W))

    def __str__(self) -> str:
        H, W = self.image_size
        return f"{self.in_channels}×{H}×{W} images, {self.num_classes} classes"


@dataclass(frozen=True, kw_only=True)
class LoadedNetwork:
    """A network in eval mode, without gradients, and its origin.

    Args:
        module: images [B,C,H,W] in [0,1] to logits [B,K].
        spec: the specification that it was loaded by.
        sha256: of its file of weights; of its tensors as .safetensors where it does not come from one file.
        shape: the images and classes that it was built for.
        architecture: its name and options.
        trained: a short description of its training.
        config: the configuration of the run that trained it; None for other origins.
        epoch: of that run, counted from 1; None for other origins.
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
    spec: str | Path,
    *,
    shape: Shape | None = None,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    image_size: int | None = None,
    download: bool = False,
    trust_code: TrustCode = False,
) -> LoadedNetwork:
    """Load a frozen network.

    Args:
        spec: one of

            - "run:DIR", "run:DIR@best", "@last", "@epoch-20", each also with "-ema" or "-swa";
            - a file of weights, .safetensors or of torch.save; needs a name;
            - "robustbench:ID" from the cache folder, "robustbench:ID=FILE" from a file, see
              `robustill.models.robustbench`;
            - "timm:NAME=FILE", or "timm:NAME" with `download`; "torchvision:NAME=FILE";
            - "hf:FOLDER", or "hf:OWNER/NAME" with `download`, see `robustill.models.hub.open_folder`;
            - a .pt2 file of torch.export.save, see `robustill.models.exported_program`;
            - "my_pkg.my_mod:build", a function as `build_model` takes it, that returns the network with its weights; or
              a network.
        shape: the images and classes that the network must fit; a network made for others is refused. Runs and hub
            folders have their own shape, everything else requires it.
        name: the architecture, for a file; for a run whose own network is an import path, that path.
        options: of the architecture, for a file; of the function, for an import path.
        sha256: the expected `LoadedNetwork.sha256`; a file is checked before it is read.
        image_size: of the square images that the network takes, if it differs from `shape`: the images are resized
            before the network.
        download: whether timm and the hub may download.
        trust_code: import paths that a run may name, such as ["my_mod:net"]; True is all of them.

    Raises:
        UntrustedCodeError: the network of a run is an import path that only the run names.
        RobustillError: the network is missing, damaged or untrusted, or does not fit.

    Example:
        ``load_network("run:runs/teacher@best").module(x)``
    """
    spec = str(check_path("spec", spec)) if isinstance(spec, Path) else spec
    check_type("spec", spec, str, "a specification such as 'run:runs/teacher@best', or a file of weights")
    _check_arguments(shape, name, options, sha256)
    if image_size is not None:
        check_integer("image_size", image_size, at_least=1)
    load = _loader(spec, shape, name)
    network_shape = shape
    if shape is not None and image_size is not None:
        network_shape = replace(shape, image_size=(image_size, image_size))
    request = _Request(
        spec=spec,
        shape=network_shape,
        name=name,
        options=options or {},
        sha256=sha256,
        download=download,
        trust_code=trust_code,
    )
    network = load(request)
    if sha256 is not None and network.sha256 != sha256:
        raise _sha256_error(spec, network.sha256, sha256)
    module = freeze_for_good(network.module)
    if shape is not None and network_shape is not None and network_shape.image_size != shape.image_size:
        module = ResizedNetwork(module, network_shape.image_size[0]).eval()
    return replace(network, module=module)


def _check_arguments(shape: Any, name: Any, options: Any, sha256: Any) -> None:
    for argument, value, kind, expected in (
        (
            "shape",
            shape,
            Shape,
            "a Shape(num_classes=..., in_channels=..., image_size=(H, W)) of robustill.models.loading",
        ),
        ("name", name, str, "the name of a network, such as 'resnet18'"),
        ("options", options, Mapping, "a dictionary of the network's options"),
        ("sha256", sha256, str, "the checksum as text"),
    ):
        if value is not None:
            check_type(argument, value, kind, expected)


def build_network(name: str, shape: Shape, options: Mapping[str, Any], *, seed: int = 0) -> nn.Module:
    """Build a network with fresh weights for images of a shape.

    Raises:
        ModelError: an unknown network, options that are invalid for its constructor, or lazy layers.
    """
    with warnings.catch_warnings():
        # Warnings about layers without weights, which are refused below.
        warnings.simplefilter("ignore")
        module = build(
            name,
            num_classes=shape.num_classes,
            in_channels=shape.in_channels,
            image_size=shape.image_size,
            seed=seed,
            **options,
        )
    own_options = {key: value for key, value in options.items() if key not in ("mean", "std")}
    check_weights_exist(module, f"model {name}")
    if any(parameter.numel() == 0 for parameter in module.parameters()):
        raise ModelError(f"model {name} with {own_options} has layers without a single weight: give larger options")
    return module


def describe_run(config: Mapping[str, Any] | None) -> str:
    """Describe how a network was trained, e.g. "at linf:4/255, 50 epochs"; "a file of weights" without a config."""
    if config is None:
        return "a file of weights"
    method, epochs = config["method"]["name"], config["optim"]["epochs"]
    threat = "" if method == "clean" else f" {Threat(**config['threat'])}"
    extra = ", extra images" if config.get("data", {}).get("extra") else ""
    return f"{method}{threat}, {epochs} epochs{extra}"


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The arguments of `load_network`; `shape` is the network's own, before a resize."""

    spec: str
    shape: Shape | None
    name: str | None
    options: Mapping[str, Any]
    sha256: str | None
    download: bool
    trust_code: TrustCode

    @property
    def source(self) -> str:
        """The specification without its kind: DIR@best of run:DIR@best."""
        return self.spec.partition(":")[2]

    @property
    def required_shape(self) -> Shape:
        assert self.shape is not None
        return self.shape

    def check_sha256(self, file: Path) -> str:
        """Return the sha256 of a file, after comparing it with the expected one, before anything reads the file."""
        check_beginning(file)
        try:
            sha256 = file_sha256(file)
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror or error}") from None
        if self.sha256 is not None and sha256 != self.sha256:
            raise _sha256_error(str(file), sha256, self.sha256)
        return sha256

    def loaded(
        self, module: nn.Module, sha256: str, architecture: str, trained: str = "a file of weights"
    ) -> LoadedNetwork:
        """Return a module that was loaded as requested, with its origin."""
        return LoadedNetwork(
            module=module,
            spec=self.spec,
            sha256=sha256,
            shape=self.required_shape,
            architecture=architecture,
            trained=trained,
        )


def _loader(spec: str, shape: Shape | None, name: str | None) -> Callable[[_Request], LoadedNetwork]:
    """Return the function that loads a kind of specification, after checking that shape and name suit it."""
    kind, _, source = spec.partition(":")
    is_kind = kind in _LOADERS
    is_file = not is_kind and Path(spec).is_file()
    is_function = not is_file and _IMPORT_PATH.fullmatch(spec) is not None
    if name is not None and (is_kind or is_function) and not (kind == "run" and ":" in name):
        raise ModelError(f"{spec} names its own network: leave the model {name} out")
    if is_file:
        refuse_other_format(Path(spec))
    if not source and (Path(spec) / "config.yaml").is_file():
        raise CheckpointError(f"{spec} is a run directory: write run:{spec}@best for the weights in it")
    if not is_file and (advice := explain_file(spec)) is not None:
        raise ModelError(f"{spec} {advice}")
    if not is_kind and not is_file and not is_function:
        kinds = ", ".join(f"{each}:" for each in _LOADERS)
        raise CheckpointError(
            f"{spec} not found: expected run:DIR, run:DIR@best or a file of weights, or one of {kinds}"
        )
    if shape is None and kind not in ("run", "hf"):
        raise ModelError(f"{spec}: give the Shape of the images" if name else _no_name(spec))
    if is_kind:
        return _LOADERS[kind]
    if not is_file:
        return _from_function
    return _from_program if spec.endswith(".pt2") else _from_file


def _from_run(request: _Request) -> LoadedNetwork:
    spec, shape = request.spec, request.shape
    folder, checkpoint = split_checkpoint(request.source)
    checkpoint = checkpoint or "best"
    run = RunDirectory.existing(folder)
    content = run.read_json("model.json")
    if content is None:
        raise RunError(f"{folder} has no model.json: its training has not started; run it first")
    try:
        description = hub.check_description(content)
    except ValueError as error:
        raise RunError(f"{run.path / 'model.json'} is damaged: {error}") from None
    run_shape, name, options = Shape.from_description(description), description["name"], description["options"]
    if shape is not None and (run_shape.num_classes, run_shape.in_channels) != (shape.num_classes, shape.in_channels):
        raise ModelError(f"{spec} was trained on {run_shape}; here are {shape}: give a network that fits")
    if request.name not in (None, name):
        raise ModelError(f"{spec} is the network {name}: leave the model {request.name} out")
    weights, sha256 = run.checkpoints.weights(checkpoint)
    epoch, _ = run.checkpoints.resolve(checkpoint)
    num_bytes = sum(each.nbytes for each in weights.values())
    _check_size(name, run_shape, options, num_bytes, run.path / "model.json")
    named = () if request.name is None else (request.name,)
    with only_named(*named, trust=request.trust_code, origin=str(run.path / "model.json")):
        module = build_network(name, run_shape, options)
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
        shape=run_shape,
        architecture=_describe_architecture(name, options),
        trained=trained,
        config=config,
        epoch=epoch,
    )


def _from_robustbench(request: _Request) -> LoadedNetwork:
    identifier, _, path = request.source.partition("=")
    shape = request.required_shape
    entry = robustbench.find_entry(identifier, shape.num_classes)
    entry_shape = Shape(num_classes=entry.num_classes, in_channels=3, image_size=(32, 32))
    if entry_shape != shape:
        differs_in_size_only = replace(shape, image_size=(32, 32)) == entry_shape
        hint = " or image_size: 32" if differs_in_size_only else ""
        raise ModelError(
            f"robustbench:{identifier} was trained on {entry_shape}; here are {shape}: give a network that fits{hint}"
        )
    file = Path(path) if path else entry.cache_path
    if not file.is_file():
        raise CheckpointError(
            f"{file} not found: no checksum is known for {entry.name}, so it is not downloaded: take it from "
            f"RobustBench's model zoo ({entry.data}, {entry.norm}) and put it there, or give "
            f"robustbench:{identifier}=FILE"
        )
    sha256 = request.check_sha256(file)
    module = build_network(entry.model, shape, entry.options)
    load_public_weights(module, file)
    return request.loaded(module, sha256, _describe_architecture(entry.model, entry.options), str(entry))


def _from_timm(request: _Request) -> LoadedNetwork:
    name, _, path = request.source.partition("=")
    file = Path(path) if path else None
    shape = request.required_shape
    sha256 = None if file is None else request.check_sha256(file)
    module, size = vision.timm_network(
        name, file, num_classes=shape.num_classes, in_channels=shape.in_channels, download=request.download
    )
    trained = f"timm, at {size} pixels" if file is None else "a file of weights"
    return request.loaded(module, sha256 or tensors_sha256(module), f"timm {name}", trained)


def _from_torchvision(request: _Request) -> LoadedNetwork:
    name, _, path = request.source.partition("=")
    if not path:
        raise CheckpointError(f"torchvision:{name} has no local weights: give torchvision:{name}=FILE")
    sha256 = request.check_sha256(Path(path))
    module = build_network(f"torchvision:{name}", request.required_shape, {})
    load_public_weights(module.get_submodule("network"), Path(path))
    return request.loaded(module, sha256, f"torchvision {name}")


def _from_folder(request: _Request) -> LoadedNetwork:
    folder = hub.open_folder(request.source, download=request.download)
    name, options = folder.description["name"], folder.description["options"]
    folder_shape = Shape.from_description(folder.description)
    shape = request.shape or folder_shape
    if folder_shape != shape:
        raise ModelError(
            f"{request.spec} was trained on {folder_shape}; here are {shape}: "
            "give a network that fits, or its image_size"
        )
    sha256 = request.check_sha256(folder.weights)
    _check_size(name, shape, options, folder.weights.stat().st_size, Path(request.source) / "config.json")
    module = build_network(name, shape, options)
    load_public_weights(module, folder.weights)
    return replace(request, shape=shape).loaded(module, sha256, _describe_architecture(name, options))


_LOADERS: dict[str, Callable[[_Request], LoadedNetwork]] = {
    "run": _from_run,
    "robustbench": _from_robustbench,
    "timm": _from_timm,
    "torchvision": _from_torchvision,
    "hf": _from_folder,
}


def _from_file(request: _Request) -> LoadedNetwork:
    file, name = Path(request.spec), request.name
    if name is None:
        raise ModelError(_no_name(request.spec))
    sha256 = request.check_sha256(file)
    module = build_network(name, request.required_shape, request.options)
    try:
        load_public_weights(module, file)
    except CheckpointError as error:
        others = [each for each in MODELS if each != name and _fits(each, request.required_shape, file)]
        if not others:
            raise
        raise CheckpointError(f"{error}. These weights fit --model {' and '.join(others)}") from None
    return request.loaded(module, sha256, _describe_architecture(name, request.options))


def _fits(name: str, shape: Shape, file: Path) -> bool:
    """Return whether a network of MODELS with its default options has the tensors of a file."""
    try:
        with torch.device("meta"):
            return fits(build_network(name, shape, {}), file)
    except RobustillError:
        return False


def _from_program(request: _Request) -> LoadedNetwork:
    if request.name is not None:
        raise ModelError(f"{request.spec} holds its own network: leave the model {request.name} out")
    file, shape = Path(request.spec), request.required_shape
    sha256 = request.check_sha256(file)
    module = load_exported(file, (shape.in_channels, *shape.image_size))
    return request.loaded(module, sha256, "exported program", "an exported program")


def _from_function(request: _Request) -> LoadedNetwork:
    module = build_network(request.spec, request.required_shape, request.options)
    architecture = _describe_architecture(request.spec, request.options)
    return request.loaded(module, tensors_sha256(module), architecture, "by its function")


def _check_size(name: str, shape: Shape, options: Mapping[str, Any], num_bytes: int, file: Path) -> None:
    """Refuse a description, which may come from a stranger, of a network too large for its weights before building it.

    Args:
        name: the architecture in the description.
        shape: the shape in the description.
        options: the options in the description.
        num_bytes: size of the weights.
        file: the file with the description.

    Raises:
        CheckpointError: the network has more weights than there are bytes.
        ModelError: as for `build_network`.
    """
    if name not in MODELS and not vision.is_published(name):
        return
    numbers = [abs(each) for each in options.values() if isinstance(each, int | float)]
    count = max([shape.num_classes, shape.in_channels, *numbers])
    limit = num_bytes
    if count <= limit:
        with torch.device("meta"):
            network = build_network(name, shape, options)
        count = sum(each.numel() for each in network.parameters())
        limit = max(num_bytes, _SMALL)
    if count > limit:
        raise CheckpointError(f"{file} describes a network of more weights than its file of weights has bytes")


def needs_name(spec: str) -> bool:
    """Return whether a specification is a file of weights, which does not say to which network they belong."""
    return spec.partition(":")[0] not in _LOADERS and Path(spec).is_file() and not spec.endswith(".pt2")


def check_names_itself(spec: str, role: str) -> None:
    """Check that a network, which no model can be named for, is not a mere file of weights.

    Args:
        spec: the specification.
        role: what it is given as, for the error, such as "--surrogate".

    Raises:
        ModelError: it is.
    """
    if needs_name(spec):
        refuse_other_format(Path(spec))
        raise ModelError(
            f"{role} {spec} holds weights only: give a network that names itself: run:DIR@best, hf:FOLDER, a .pt2 "
            "file, or my_pkg.my_mod:build that loads them"
        )


def _no_name(spec: str) -> str:
    return f"{spec} holds weights only: name the network that they belong to, e.g. --model.name resnet18"


def _sha256_error(name: str, sha256: str, expected: str) -> CheckpointError:
    return CheckpointError(f"{name} has sha256 {sha256}, expected {expected}: fetch it again, or correct the sha256")


def _describe_architecture(name: str, options: Mapping[str, Any]) -> str:
    own_options = [f"{key}={value}" for key, value in options.items() if key not in ("mean", "std")]
    return " ".join([name, *own_options])
