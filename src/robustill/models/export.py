"""From a run to files for others, who need no run directories: a folder, a program of torch.export, an ONNX model."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from robustill.core.errors import ConfigError, ModelError, RunError, first_line
from robustill.core.files import new_folder, write_bytes
from robustill.core.randomness import generator
from robustill.models.registry import MODELS
from robustill.models.loading import LoadedNetwork, load_network
from robustill.models.onnx import onnx_logits, onnx_model
from robustill.runs.directory import RunDirectory
from robustill.runs.records import read_summary

_BATCH = 4
_TOLERANCE = 1e-4
"""Of a program's logits, as a share of the largest: compilers may add in another order."""


def export_network(spec: str, out: Path) -> LoadedNetwork:
    """Write a run's network for others: into a folder for `hf:`, or as a program; read back and compared before.

    The folder holds model.safetensors, config.json (the architecture, as `robustill.models.hub.open_folder` reads
    it) and a README.md with how it was trained and every evaluation of these very weights. A program (.pt2) needs torch
    alone, an ONNX model (.onnx) no torch at all; it says inside what that README.md says. Both take batches of any
    size.

    Args:
        spec: "run:DIR", "run:DIR@best", "@last", "@epoch-20", each also with "-ema" or "-swa".
        out: what is written: a .pt2 or .onnx file, or a folder that is not there yet.

    Returns:
        The network, as it was read back; of ONNX the run's own.

    Raises:
        ConfigError: it is no run, something is at `out`, or packages for ONNX are missing.
        ModelError: a network that a folder cannot name or torch.export cannot follow, or that answers otherwise when
            it is read back.
        RobustillError: as for `load_network`.
    """
    if not spec.startswith("run:"):
        raise ConfigError(f"{spec} is no run: expected run:DIR, run:DIR@best, run:DIR@last or run:DIR@epoch-20")
    if out.exists():
        raise ConfigError(f"{out} exists: give another name, or move it away")
    if out.suffix in (".pt", ".pth", ".safetensors"):
        raise ConfigError(
            f"{out} would be a folder: give a name without {out.suffix}, NAME.pt2 for a program, or NAME.onnx"
        )
    network = load_network(spec)
    if out.suffix == ".pt2":
        return _write_program(network, out)
    if out.suffix == ".onnx":
        return _write_onnx(network, out)
    page = RunDirectory.existing(_folder_of(spec)).read_json("model.json")
    assert page is not None
    if page["name"] not in MODELS:
        raise ModelError(f"{page['name']} is no network of ours, and a folder holds no code: write a .pt2 file instead")
    with new_folder(out) as new:
        weights = {name: value.contiguous() for name, value in network.module.state_dict().items()}
        (new / "model.safetensors").write_bytes(save(weights))
        (new / "config.json").write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
        (new / "README.md").write_text(_card(network, out), encoding="utf-8")
        _compare(network, load_network(f"hf:{new}"), exact=True)
    return load_network(f"hf:{out}")


def _folder_of(spec: str) -> Path:
    return Path(spec.removeprefix("run:").partition("@")[0])


def _program(network: LoadedNetwork) -> torch.export.ExportedProgram:
    """For batches of any size."""
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    try:
        return torch.export.export(network.module, (_images(network),), dynamic_shapes=dynamic)
    except Exception as error:  # Tracing runs the network's own code, and fails in as many ways.
        raise ModelError(f"{network.architecture} cannot be followed by torch.export: {first_line(error)}") from None


def _write_program(network: LoadedNetwork, out: Path) -> LoadedNetwork:
    content = io.BytesIO()
    torch.export.save(_program(network), content)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / out.name
        trial.write_bytes(content.getvalue())
        _compare(network, load_network(str(trial), shape=network.shape), exact=False)
    write_bytes(out, content.getvalue())
    return load_network(str(out), shape=network.shape)


def _write_onnx(network: LoadedNetwork, out: Path) -> LoadedNetwork:
    content, images = onnx_model(_program(network), "\n".join(_about(network, out))), _images(network)
    # Another size of batch than it was translated with.
    for batch in (images, images[:1]):
        _same_logits(network, batch, onnx_logits(content, batch), _TOLERANCE)
    write_bytes(out, content)
    return network


def _images(network: LoadedNetwork) -> Tensor:
    H, W = network.shape.image_size
    return torch.rand(_BATCH, network.shape.in_channels, H, W, generator=generator(0, "export"))


def _compare(network: LoadedNetwork, again: LoadedNetwork, *, exact: bool) -> None:
    x = _images(network)
    with torch.inference_mode():
        found = again.module(x)
    _same_logits(network, x, found, 0.0 if exact else _TOLERANCE)


def _same_logits(network: LoadedNetwork, x: Tensor, found: Tensor, tolerance: float) -> None:
    with torch.inference_mode():
        logits = network.module(x)
    largest = (found - logits).abs().max().item()
    if not largest <= tolerance * logits.abs().max().clamp_min(1).item():
        raise ModelError(f"{network.spec} answers otherwise once written: its logits differ by {largest:.3g}")


def _card(network: LoadedNetwork, out: Path) -> str:
    use = ["```python", f'network = robustill.load_network("hf:{out.name}").module', "```", ""]
    return "\n".join(_about(network, out, use)) + "\n"


def _about(network: LoadedNetwork, out: Path, use: Sequence[str] = ()) -> list[str]:
    C, (H, W) = network.shape.in_channels, network.shape.image_size
    count = sum(each.numel() for each in network.module.parameters())
    return [
        f"# {out.name}",
        "",
        f"{network.architecture}, {count:,} parameters: images [B,{C},{H},{W}] in [0,1] to "
        f"{network.shape.num_classes} logits; the normalisation is inside.",
        f"Trained by {network.trained}, epoch {network.epoch}.",
        "",
        *use,
        *_evaluations(network),
    ]


def _evaluations(network: LoadedNetwork) -> list[str]:
    """One row for each evaluation of these weights that lies in the run."""
    rows = []
    for folder in sorted((_folder_of(network.spec) / "evaluations").glob("*")):
        # One that is unfinished or damaged has no place here; `robustill doctor` names it.
        with contextlib.suppress(RunError, KeyError, TypeError, ValueError):
            page = read_summary(folder)
            if page["conditions"].get("checkpoint_sha256") == network.sha256:
                rows.append(_row(page["results"], page["conditions"]))
    if not rows:
        return ["Not evaluated yet."]
    head = ["images", "number", "threat", "suite", "clean", "robust, 95 %", "ECE clean", "ECE adversarial", "date"]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]


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
