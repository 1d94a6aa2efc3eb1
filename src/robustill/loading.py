"""Networks by specification: a checkpoint of a run, or a file of weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from robustill.errors import CheckpointError, ModelError, RobustillError, RunError
from robustill.models import build
from robustill.models.weights import file_sha256, load_public_weights
from robustill.run_directory import RunDirectory


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

    def __str__(self) -> str:
        H, W = self.image_size
        return f"{self.in_channels}×{H}×{W} images, {self.num_classes} classes"


@dataclass(frozen=True, kw_only=True)
class LoadedNetwork:
    """A network in eval mode, without gradients, and where it came from.

    Args:
        module: images [B,C,H,W] in [0,1] to logits [B,K].
        spec: what it was asked for by.
        sha256: of its file of weights.
        shape: what it was built for.
        config: the configuration of the run that made it; None for a file.
        epoch: of that run, counted from 1; None for a file.
    """

    module: nn.Module
    spec: str
    sha256: str
    shape: Shape
    config: dict[str, Any] | None = None
    epoch: int | None = None


def load_network(
    spec: str, *, shape: Shape | None = None, name: str | None = None, options: Mapping[str, Any] | None = None
) -> LoadedNetwork:
    """A frozen network.

    Args:
        spec: "run:DIR", "run:DIR@best", "@last", "@epoch-20", each also with "-ema"; or a file of weights.
        shape: what is needed; a run that was made for another is refused. A file needs it.
        name: the architecture, for a file.
        options: of the architecture, for a file.

    Raises:
        RobustillError: it is not there, is damaged, or does not fit.

    Example:
        ``load_network("run:runs/teacher@best").module(x)``
    """
    if spec.startswith("run:"):
        return _from_run(spec, shape)
    path = Path(spec)
    if not path.is_file():
        raise CheckpointError(f"{spec} not found: expected run:DIR, run:DIR@best or a file of weights")
    if name is None or shape is None:
        raise ModelError(f"{spec} holds weights alone: say which network they belong to, e.g. --model.name resnet18")
    module = build_network(name, shape, options or {})
    load_public_weights(module, path)
    return LoadedNetwork(module=_frozen(module), spec=spec, sha256=file_sha256(path), shape=shape)


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


def _from_run(spec: str, shape: Shape | None) -> LoadedNetwork:
    folder, _, what = spec.removeprefix("run:").partition("@")
    run = RunDirectory.existing(folder)
    described = run.read_json("model.json")
    if described is None:
        raise RunError(f"{folder} has no model.json: its training has not begun; run it first")
    try:
        made_for = Shape(
            num_classes=described["num_classes"],
            in_channels=described["in_channels"],
            image_size=tuple(described["image_size"]),
        )
        name, options = str(described["name"]), dict(described["options"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.path / 'model.json'} is damaged: {error}") from None
    if shape is not None and (made_for.num_classes, made_for.in_channels) != (shape.num_classes, shape.in_channels):
        raise ModelError(f"{spec} was trained on {made_for}; here are {shape}: give a network that fits")
    weights, sha256 = run.weights(what or "best")
    epoch, _ = run.resolve(what or "best")
    module = build_network(name, made_for, options)
    try:
        load_public_weights(module, weights)
    except RobustillError as error:
        raise CheckpointError(f"{spec}: {error}") from None
    return LoadedNetwork(
        module=_frozen(module), spec=spec, sha256=sha256, shape=made_for, config=run.config(), epoch=epoch
    )


def _frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)
