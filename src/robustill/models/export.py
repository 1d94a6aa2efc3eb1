"""Export of a run's network for use without the run directory: a folder, a program of torch.export, an ONNX model."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from robustill.core.chance import GUESSING, is_near_chance
from robustill.core.contract import check_network
from robustill.core.errors import ConfigError, ModelError, RunError, first_line, printable
from robustill.core.files import abandoned, new_folder, temporary_folder, write_bytes
from robustill.core.randomness import generator
from robustill.core.user_code import TrustCode
from robustill.models.loading import LoadedNetwork, load_network
from robustill.models.onnx import onnx_logits, onnx_model
from robustill.models.registry import MODELS
from robustill.runs.directory import RunDirectory, split_checkpoint
from robustill.runs.records import read_summary

_FOLDER_FILES = ("model.safetensors", "config.json", "README.md")
_BATCH_SIZE = 4
_TOLERANCE = 1e-4
"""Of a program's logits, relative to the largest logit: compilers may change the order of additions."""


def export_network(spec: str, out: Path, *, trust_code: TrustCode = False) -> LoadedNetwork:
    """Write a run's network to a folder, a program or an ONNX model, after comparing the logits of what was written.

    The folder, which `load_network("hf:FOLDER")` reads, holds model.safetensors, config.json (the architecture, see
    `robustill.models.hub.open_folder`) and a README.md with its training and every evaluation of these weights.
    A program (.pt2) runs with torch alone, an ONNX model (.onnx) without torch; an ONNX model carries the text of that
    README.md as its doc string. Both take batches of any size.

    Args:
        spec: "run:DIR", "run:DIR@best", "@last", "@epoch-20", each also with "-ema" or "-swa".
        out: the .pt2 or .onnx file, or the folder, to write; it must not exist.
        trust_code: as for `load_network`.

    Returns:
        The network as it was read back; for ONNX the network of the run.

    Raises:
        ConfigError: `spec` does not name a run, `out` exists, or packages for ONNX are missing.
        ModelError: a folder cannot describe the network, torch.export cannot trace it, or its logits differ after it
            was written.
        RobustillError: as for `load_network`.
    """
    if not spec.startswith("run:"):
        raise ConfigError(f"{spec} is not a run: expected run:DIR, run:DIR@best, run:DIR@last or run:DIR@epoch-20")
    if out.exists():
        raise ConfigError(f"{out} exists: give another name, or move it away")
    if out.suffix in (".pt", ".pth", ".safetensors"):
        raise ConfigError(
            f"{out} would be a folder: give a name without {out.suffix}, NAME.pt2 for a program, or NAME.onnx"
        )
    folder = _run_folder(spec)
    if folder.is_file():
        raise ConfigError(f"{folder} is a file, and only the networks of runs are exported: give a run directory")
    network = load_network(spec, trust_code=trust_code)
    for line in _network_warnings(network):
        warnings.warn(line, stacklevel=2)
    _remove_abandoned(out.parent)
    if out.suffix == ".pt2":
        return _write_program(network, out)
    if out.suffix == ".onnx":
        return _write_onnx(network, out)
    return _write_folder(network, out)


def _network_warnings(network: LoadedNetwork) -> list[str]:
    """Return why the network may not be worth exporting, after checking that it keeps the contract.

    Raises:
        ModelError: it does not, see `check_network`.
    """
    num_classes = network.shape.num_classes
    lines = check_network(network.module, _example_images(network), num_classes, printable(network.spec))
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
    return path.is_file() and (path.name in _FOLDER_FILES or path.suffix == ".pt2")


def _write_folder(network: LoadedNetwork, out: Path) -> LoadedNetwork:
    description = RunDirectory.existing(_run_folder(network.spec)).read_json("model.json")
    assert description is not None
    if description["name"] not in MODELS:
        raise ModelError(
            f"{description['name']} is not one of our networks, and a folder holds no code: write a .pt2 file instead"
        )
    with new_folder(out) as folder:
        weights = {name: value.contiguous() for name, value in network.module.state_dict().items()}
        (folder / "model.safetensors").write_bytes(save(weights))
        (folder / "config.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_model_card(network, out), encoding="utf-8")
        _check_reloaded(network, load_network(f"hf:{folder}"), tolerance=0.0)
    return load_network(f"hf:{out}")


def _write_program(network: LoadedNetwork, out: Path) -> LoadedNetwork:
    content = io.BytesIO()
    torch.export.save(_export_program(network), content)
    # Beside the program, where the next export finds what a killed one leaves.
    with temporary_folder(out) as folder:
        file = folder / out.name
        file.write_bytes(content.getvalue())
        _check_reloaded(network, load_network(str(file), shape=network.shape), tolerance=_TOLERANCE)
    write_bytes(out, content.getvalue())
    return load_network(str(out), shape=network.shape)


def _write_onnx(network: LoadedNetwork, out: Path) -> LoadedNetwork:
    content = onnx_model(_export_program(network), "\n".join(_describe(network, out)))
    images = _example_images(network)
    # A second batch size, with which the model was not translated.
    for batch in (images, images[:1]):
        _check_logits(network, batch, onnx_logits(content, batch), _TOLERANCE)
    write_bytes(out, content)
    return network


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


def _model_card(network: LoadedNetwork, out: Path) -> str:
    usage = ["```python", f'network = robustill.load_network("hf:{printable(out.name)}").module', "```", ""]
    return "\n".join(_describe(network, out, usage)) + "\n"


def _describe(network: LoadedNetwork, out: Path, usage: Sequence[str] = ()) -> list[str]:
    """Return the lines of the model card: the network, its training, and its evaluations."""
    C, (H, W) = network.shape.in_channels, network.shape.image_size
    count = sum(each.numel() for each in network.module.parameters())
    return [
        f"# {printable(out.name)}",
        "",
        f"{network.architecture}, {count:,} parameters: images [B,{C},{H},{W}] in [0,1] to "
        f"{network.shape.num_classes} logits; the normalisation is inside.",
        f"Trained by {network.trained}, epoch {network.epoch}.",
        "",
        *usage,
        *_evaluations_table(network),
    ]


def _evaluations_table(network: LoadedNetwork) -> list[str]:
    """Return one row for each evaluation of these weights in the run directory."""
    rows = []
    for folder in sorted((_run_folder(network.spec) / "evaluations").glob("*")):
        # An evaluation that is unfinished or damaged is left out; `robustill doctor` reports it.
        with contextlib.suppress(RunError, KeyError, TypeError, ValueError):
            summary = read_summary(folder)
            if summary["conditions"].get("checkpoint_sha256") == network.sha256:
                rows.append(_row(summary["results"], summary["conditions"]))
    if not rows:
        return ["Not evaluated yet."]
    header = ["images", "number", "threat", "suite", "clean", "robust, 95 %", "ECE clean", "ECE adversarial", "date"]
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *rows]


def _row(results: dict[str, Any], conditions: dict[str, Any]) -> str:
    low, high = results["robust_accuracy_interval"]
    cells = [
        f"{conditions['data']} {conditions['split']}",
        f"{results['num_images']} of {conditions['of_images']}",
        conditions["threat"]["text"],
        conditions["suite"]["name"],
        f"{results['clean_accuracy']:.3f}",
        f"{results['robust_accuracy']:.3f} [{low:.3f}, {high:.3f}]",
        f"{results['ece_clean']:.3f}",
        f"{results['ece_adversarial']:.3f}",
        conditions["date"],
    ]
    return f"| {' | '.join(cells)} |"
