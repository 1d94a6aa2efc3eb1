"""Export of a network for use without its run or library: a folder, a program of torch.export, an ONNX model."""

from __future__ import annotations

import copy
import io
import json
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from robustill.core.chance import GUESSING, is_near_chance
from robustill.core.contract import check_network
from robustill.core.errors import ConfigError, ModelError, first_line, printable
from robustill.core.files import abandoned, new_folder, temporary_folder, write_bytes
from robustill.core.formatting import describe_deployment, join_with_and
from robustill.core.outputs import check_place
from robustill.core.randomness import generator
from robustill.core.user_code import TrustCode
from robustill.models.card import (
    Calibration,
    Card,
    Quantisation,
    describe_calibration,
    describe_quantisation,
    evaluated_checkpoints,
    evaluations_table,
    metadata,
    recorded_evaluations,
)
from robustill.models.deployment import measure_model
from robustill.models.fake_quantisation import float_copy, is_fake_quantised
from robustill.models.hub import open_folder
from robustill.models.loading import LoadedNetwork, Shape, load_network
from robustill.models.onnx import onnx_logits, onnx_model, set_metadata
from robustill.models.quantisation import HeldOutImages, compare_quantised, quantised_model
from robustill.models.registry import MODELS
from robustill.models.robustbench import find_entry
from robustill.models.sharing import FOLDER_FILES, read_card
from robustill.models.vision import is_published
from robustill.runs.directory import RunDirectory, split_checkpoint
from robustill.threat import Threat

_BATCH_SIZE = 4
_MAX_NAMES = 20
_LOW_AGREEMENT = 0.9
_TOLERANCE = 1e-4
"""Of a program's logits, relative to the largest logit: compilers may change the order of additions."""


class TemperatureScaled(nn.Module):
    """A network whose logits are divided by a temperature: the same predictions with other confidences."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W]."""
        return self.network(x) / self.temperature  # type: ignore[no-any-return]


def export_network(
    spec: str,
    out: Path,
    *,
    shape: Shape | None = None,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    download: bool = False,
    calibration: Calibration | None = None,
    int8: HeldOutImages | None = None,
    progress: bool = False,
    trust_code: TrustCode = False,
) -> LoadedNetwork:
    """Write a network to a folder, a program or an ONNX model, after comparing the logits of what was written.

    The folder, which `load_network("hf:FOLDER")` and `from_pretrained` read, holds model.safetensors, config.json (the
    architecture, see `robustill.models.hub.open_folder`, and the card) and a README.md with its training and every
    evaluation of these weights: those in the run directory or in the folder that it comes from, or, for others, in
    the folder "evaluations" of `robustill evaluate`.
    A program (.pt2) runs with torch alone, an ONNX model (.onnx) without torch; an ONNX model carries the text of that
    README.md as its doc string. Both take batches of any size.

    Args:
        spec: a network as for `load_network`, such as "run:DIR@best". A folder holds no code, so it takes our own
            architectures alone, and networks of timm and torchvision that a run has trained.
        out: the .pt2 or .onnx file, or the folder, to write; it must not exist.
        shape: as for `load_network`; by default that of RobustBench's networks for these.
        name: as for `load_network`.
        options: as for `load_network`.
        download: as for `load_network`.
        calibration: divide the logits by a temperature, see `robustill.evaluation.temperature`; a folder's last layer
            is divided by it, so that every reader of its weights gets the calibrated network.
        int8: quantise an ONNX model to int8 with these images, see `robustill.evaluation.held_out`.
        progress: say on stderr, if it is a terminal, what takes long.
        trust_code: as for `load_network`.

    Returns:
        The network as it was read back; for ONNX the given network.

    Raises:
        ConfigError: `out` exists, or packages for ONNX are missing.
        ModelError: a folder cannot describe the network or its temperature, torch.export cannot trace it, or its logits
            differ after it was written.
        RobustillError: as for `load_network`.
    """
    if out.exists():
        raise ConfigError(f"{out} exists: give another name, or move it away")
    if out.suffix in (".pt", ".pth", ".safetensors"):
        raise ConfigError(
            f"{out} would be a folder: give a name without {out.suffix}, NAME.pt2 for a program, or NAME.onnx"
        )
    check_place(out, "OUT")
    if int8 is not None and out.suffix != ".onnx":
        raise ConfigError(f"{out} cannot be quantised to int8: give a name that ends in .onnx, or leave --int8 out")
    kind, _, source = spec.partition(":")
    if kind == "robustbench" and shape is None:
        entry = find_entry(source.partition("=")[0])
        shape = Shape(num_classes=entry.num_classes, in_channels=3, image_size=(32, 32))
    network = load_network(spec, shape=shape, name=name, options=options, download=download, trust_code=trust_code)
    for line in _network_warnings(network):
        warnings.warn(line, stacklevel=2)
    if int8 is not None and int8.x.shape[1:] != _example_images(network).shape[1:]:
        found, expected = ("×".join(map(str, each.shape[1:])) for each in (int8.x, _example_images(network)))
        raise ModelError(f"{network.spec} takes images of {expected}, and those to calibrate on are {found}")
    _remove_abandoned(out.parent)
    is_rounded = is_fake_quantised(network.module)
    if is_rounded:
        # What was attacked rounds; what is written does not, until it is quantised.
        plain = network.architecture.replace(" quantize=int8", "")
        network = replace(network, module=float_copy(network.module), architecture=plain)
    is_file = out.suffix in (".pt2", ".onnx")
    if calibration is not None:
        network = _calibrated(network, calibration.temperature, must_fold=not is_file)
    card = _card(network, calibration)
    if is_rounded:
        card = replace(card, evaluations=())
    elif network.config is not None and not card.evaluations:
        _warn_of_evaluated(network)
    if not is_file:
        architecture = (name, dict(options or {})) if name is not None else None
        return _write_folder(network, out, card, calibration, architecture)
    _say(progress, f"tracing {network.spec}")
    program = _export_program(network)
    if out.suffix == ".pt2":
        return _write_program(network, program, out)
    _say(progress, "translating the program to ONNX")
    return _write_onnx(network, program, out, card, calibration, int8)


def _say(progress: bool, text: str) -> None:
    if progress and sys.stderr.isatty():
        print(f"export: {printable(text)} ...", file=sys.stderr)


def _calibrated(network: LoadedNetwork, temperature: float, *, must_fold: bool) -> LoadedNetwork:
    """Return the network with its logits divided by a temperature.

    Args:
        network: the network, which is not changed.
        temperature: above 0.
        must_fold: the tensors of the network alone must hold the temperature.

    Raises:
        ModelError: they cannot, because the logits are not the output of the network's last linear layer.
    """
    folded = copy.deepcopy(network.module)
    linear = [each for each in folded.modules() if isinstance(each, nn.Linear)]
    if linear:
        for parameter in linear[-1].parameters():
            parameter.data /= temperature
        x = _example_images(network)
        with torch.inference_mode():
            logits, expected = folded(x), network.module(x) / temperature
        if (logits - expected).abs().max() <= _TOLERANCE * expected.abs().max():
            return replace(network, module=folded)
    if must_fold:
        raise ModelError(
            f"{network.architecture} does not end in a linear layer that a temperature could be folded into: write a "
            ".pt2 or .onnx file, or leave --calibrated out"
        )
    return replace(network, module=TemperatureScaled(network.module, temperature).eval())


def _network_warnings(network: LoadedNetwork) -> list[str]:
    """Return why the network may not be worth exporting, after checking that it keeps the contract.

    Raises:
        ModelError: it does not, see `check_network`.
    """
    num_classes = network.shape.num_classes
    lines = check_network(network.module, _example_images(network), num_classes, printable(network.spec))
    if network.config is None:
        return lines
    checkpoint = network.spec.rpartition("@")[2]
    average = next((f"{each}_" for each in ("ema", "swa") if checkpoint.endswith(each)), "")
    for line in RunDirectory.existing(_run_folder(network.spec)).metrics():
        accuracy = line.get(f"{average}validation_clean_accuracy")
        if line.get("epoch") != network.epoch or not isinstance(accuracy, float):
            continue
        # The number of validation images is not in the metrics; with many of them the limit is the lowest.
        if is_near_chance(round(accuracy * 1e6), 10**6, num_classes):
            lines.append(
                f"{printable(network.spec)} is {GUESSING} among {num_classes} classes: right on {accuracy:.3f} of its "
                "clean validation images; export a checkpoint that was trained longer"
            )
    return lines


def _remove_abandoned(folder: Path) -> None:
    """Remove what exports that were killed left in a folder; nothing else, whatever its name."""
    for path in abandoned(folder):
        if path.is_symlink():
            continue
        if path.is_dir() and all(_is_export(each) for each in path.iterdir()):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file() and path.name.rsplit(".", 2)[0].endswith((".pt2", ".onnx")):
            path.unlink(missing_ok=True)


def _is_export(path: Path) -> bool:
    """Return whether a file has a name that an export gives to what it writes."""
    return path.is_file() and (path.name in FOLDER_FILES or path.suffix == ".pt2")


def _card(network: LoadedNetwork, calibration: Calibration | None) -> Card:
    """Return the threat, the classes and the evaluations of a network, as far as its origin tells them."""
    kind, _, source = network.spec.partition(":")
    if kind == "hf":
        # If it is a repository, it has just been downloaded.
        card = read_card(open_folder(source, download=True).weights.parent, network.shape.num_classes)
    elif kind == "robustbench":
        entry = find_entry(source.partition("=")[0], network.shape.num_classes)
        # The radii of RobustBench's leaderboards for CIFAR, against which its network "Standard" was not trained.
        radius = Threat(norm="linf", eps=8 / 255) if entry.norm == "Linf" else Threat(norm="l2", eps=0.5)
        card = Card(threat=None if entry.autoattack == 0 else radius)
    elif network.config is not None:
        description = RunDirectory.existing(_run_folder(network.spec)).read_json("model.json") or {}
        is_clean = network.config["method"]["name"] == "clean"
        threat = None if is_clean else Threat(**network.config["threat"])
        card = Card(threat=threat, classes=tuple(map(str, description.get("classes") or ())))
    else:
        card = Card()
    parent = Path() if network.config is None else _run_folder(network.spec)
    recorded = tuple(recorded_evaluations(parent / "evaluations", network.sha256, calibration))
    return replace(card, evaluations=recorded or card.evaluations)


def _description(network: LoadedNetwork, given: tuple[str, dict[str, Any]] | None) -> dict[str, Any]:
    """Return what config.json says of the architecture.

    Args:
        network: the network.
        given: name and options of the architecture, where its origin does not tell them.

    Raises:
        ModelError: it is not one of our networks.
    """
    kind, _, source = network.spec.partition(":")
    name, options = given or (network.architecture, {})
    if kind == "robustbench":
        entry = find_entry(source.partition("=")[0], network.shape.num_classes)
        name, options = entry.model, entry.options
    elif kind == "hf":
        description = open_folder(source, download=True).description
        name, options = description["name"], description["options"]
    elif network.config is not None:
        content = RunDirectory.existing(_run_folder(network.spec)).read_json("model.json")
        assert content is not None
        name, options = content["name"], content["options"]
    if name not in MODELS and not is_published(name):
        raise ModelError(
            f"{printable(name)} is not one of our networks, and a folder holds no code: write a .pt2 file instead"
        )
    shape = network.shape
    return {
        "name": name,
        "options": {key: value for key, value in options.items() if key != "quantize"},
        "num_classes": shape.num_classes,
        "in_channels": shape.in_channels,
        "image_size": list(shape.image_size),
    }


def _write_folder(
    network: LoadedNetwork,
    out: Path,
    card: Card,
    calibration: Calibration | None,
    given: tuple[str, dict[str, Any]] | None,
) -> LoadedNetwork:
    description = {**_description(network, given), **card.to_json()}
    if calibration is not None:
        # The weights hold it already.
        description = {**description, "temperature": calibration.temperature}
    with new_folder(out) as folder:
        weights = {name: value.contiguous() for name, value in network.module.state_dict().items()}
        (folder / "model.safetensors").write_bytes(save(weights))
        (folder / "config.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_model_card(network, out, card, calibration), encoding="utf-8")
        _check_reloaded(network, load_network(f"hf:{folder}"), tolerance=0.0)
    return load_network(f"hf:{out}")


def _write_program(network: LoadedNetwork, program: torch.export.ExportedProgram, out: Path) -> LoadedNetwork:
    content = io.BytesIO()
    torch.export.save(program, content)
    # Beside the program, where the next export finds what a killed one leaves.
    with temporary_folder(out) as folder:
        file = folder / out.name
        file.write_bytes(content.getvalue())
        _check_reloaded(network, load_network(str(file), shape=network.shape), tolerance=_TOLERANCE)
    write_bytes(out, content.getvalue())
    return load_network(str(out), shape=network.shape)


def _write_onnx(
    network: LoadedNetwork,
    program: torch.export.ExportedProgram,
    out: Path,
    card: Card,
    calibration: Calibration | None,
    int8: HeldOutImages | None,
) -> LoadedNetwork:
    content, quantisation = onnx_model(program, ""), None
    images = _example_images(network)
    # A second batch size, with which the model was not translated.
    for batch in (images, images[:1]):
        _check_logits(network, batch, onnx_logits(content, batch), _TOLERANCE)
    if int8 is not None:
        quantised = quantised_model(content, int8.calibration)
        quantisation = compare_quantised(content, quantised, int8)
        content = quantised
        if quantisation.agreement < _LOW_AGREEMENT:
            warnings.warn(
                f"the int8 model predicts as float32 does on {quantisation.agreement:.3f} of the images only: hold "
                "out more with --data.validation, for a run when it is trained, or ship float32",
                stacklevel=3,
            )
    deployment = measure_model(content, tuple(images.shape[1:]))
    text = _describe(network, out, card, calibration, quantisation=quantisation, deployment=deployment)
    facts = {**_facts(network, calibration, quantisation), "deployment": deployment, "classes": list(card.classes)}
    write_bytes(out, set_metadata(content, "\n".join(text), facts))
    return network


def _warn_of_evaluated(network: LoadedNetwork) -> None:
    """Warn if other checkpoints of the run have been evaluated, and these weights have not."""
    evaluated = evaluated_checkpoints(_run_folder(network.spec) / "evaluations")
    if evaluated:
        warnings.warn(
            f"{printable(network.spec)} has not been evaluated, but {join_with_and(evaluated)} of this run: "
            "name the checkpoint that you mean, run:DIR@CHECKPOINT",
            stacklevel=3,
        )


def _class_names(card: Card) -> str:
    """Return the names of the classes in the order of the logits, of many the first and the last."""
    names = [printable(name) for name in card.classes]
    if len(names) > _MAX_NAMES:
        names = [*names[: _MAX_NAMES - 1], "...", names[-1]]
    return f" ({', '.join(names)})" if names else ""


def _facts(
    network: LoadedNetwork, calibration: Calibration | None, quantisation: Quantisation | None
) -> dict[str, Any]:
    """Return what an ONNX model says of its origin, from which `robustill evaluate` finds the network in float32."""
    return {
        "source": _public_spec(network.spec),
        "source_sha256": network.sha256,
        "architecture": network.architecture,
        "parameters": sum(each.numel() for each in network.module.parameters()),
        "temperature": None if calibration is None else calibration.temperature,
        "quantisation": None if quantisation is None else asdict(quantisation),
    }


def _public_spec(spec: str) -> str:
    """Return a specification for others to read.

    Where a file lies on the disk of its author is nobody's business, and of no use elsewhere: of an absolute path the
    name is left.

    Example:
        >>> _public_spec("robustbench:Standard=/home/me/x.pt"), _public_spec("run:/sweep/lr=0.1/akd@best")
        ('robustbench:Standard=x.pt', 'run:akd@best')
    """
    is_path = Path(spec).is_absolute() or ":" not in spec
    kind, colon, rest = ("", "", spec) if is_path else spec.partition(":")
    name, equals, path = rest.partition("=") if kind in ("robustbench", "timm", "torchvision") else ("", "", rest)
    return printable(f"{kind}{colon}{name}{equals}{Path(path).name if Path(path).is_absolute() else path}")


def _export_program(network: LoadedNetwork) -> torch.export.ExportedProgram:
    """Trace the network for batches of any size."""
    dynamic_shapes = ({0: torch.export.Dim("batch", min=1)},)
    try:
        return torch.export.export(network.module, (_example_images(network),), dynamic_shapes=dynamic_shapes)
    except Exception as error:  # Tracing runs the network's own code, which may raise anything.
        raise ModelError(f"{network.architecture} cannot be traced by torch.export: {first_line(error)}") from None


def _example_images(network: LoadedNetwork) -> Tensor:
    H, W = network.shape.image_size
    return torch.rand(_BATCH_SIZE, network.shape.in_channels, H, W, generator=generator(0, "export"))


def _check_reloaded(network: LoadedNetwork, reloaded: LoadedNetwork, *, tolerance: float) -> None:
    """Raise ModelError if a network gives other logits after it was written and read back."""
    x = _example_images(network)
    with torch.inference_mode():
        logits = reloaded.module(x)
    _check_logits(network, x, logits, tolerance)


def _check_logits(network: LoadedNetwork, x: Tensor, logits: Tensor, tolerance: float) -> None:
    """Raise ModelError if logits of the images x differ from the network's own."""
    with torch.inference_mode():
        expected = network.module(x)
    difference = (logits - expected).abs().max().item()
    # Also true for NaN.
    if not difference <= tolerance * expected.abs().max().clamp_min(1).item():
        raise ModelError(f"{network.spec} gives other logits after export: they differ by {difference:.3g}")


def _run_folder(spec: str) -> Path:
    return Path(split_checkpoint(spec.removeprefix("run:"))[0])


def _model_card(network: LoadedNetwork, out: Path, card: Card, calibration: Calibration | None) -> str:
    usage = ["```python", f'network = robustill.load_network("hf:{printable(out.name)}").module', "```", ""]
    text = "\n".join(_describe(network, out, card, calibration, usage))
    return f"{metadata(printable(out.name), card.evaluations)}\n{text}\n"


def _describe(
    network: LoadedNetwork,
    out: Path,
    card: Card,
    calibration: Calibration | None,
    usage: Sequence[str] = (),
    *,
    quantisation: Quantisation | None = None,
    deployment: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return the lines of the model card: the network, its training, its calibration, its size and its evaluations."""
    C, (H, W) = network.shape.in_channels, network.shape.image_size
    count = sum(each.numel() for each in network.module.parameters())
    origin = f"From {_public_spec(network.spec)}: {network.trained}."
    if network.config is not None:
        origin = f"Trained by {network.trained}, epoch {network.epoch}."
    return [
        f"# {printable(out.name)}",
        "",
        f"{network.architecture}, {count:,} parameters: images [B,{C},{H},{W}] in [0,1] to "
        f"{network.shape.num_classes} logits{_class_names(card)}; the normalisation is inside.",
        origin,
        *describe_calibration(calibration),
        *describe_quantisation(quantisation),
        *([] if deployment is None else [f"Without this card: {describe_deployment(deployment)}."]),
        "",
        *usage,
        *evaluations_table(card.evaluations),
    ]
