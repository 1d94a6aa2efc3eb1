"""`robustill doctor`: whether the installation computes correctly, and whether every file of a run is complete."""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from robustill.config.files import named_code
from robustill.core.checksums import read_checksummed_state
from robustill.core.contexts import full_float32
from robustill.core.device import environment, installed_version, pick_device
from robustill.core.errors import ConfigError, RobustillError, first_line
from robustill.core.randomness import generator
from robustill.core.user_code import names_code
from robustill.evaluation.state import EvaluationState
from robustill.runs import dynamics
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records, has_lost_its_summary

Verdict = Literal["fine", "note", "wrong"]

_MAX_FLOAT32_ERROR = 1e-5
_MAX_BF16_ERROR = 0.05


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        subject: what was checked.
        message: the result in a few words or, if something is wrong, one line that says how to mend it.
        verdict: "wrong" if something has to be mended, "note" if something is worth knowing, otherwise "fine".
    """

    subject: str
    message: str
    verdict: Verdict = "fine"

    def with_detail(self, detail: str) -> Finding:
        """Append a detail to the message, if the finding is fine."""
        return Finding(self.subject, f"{self.message}, {detail}") if self.verdict == "fine" else self


# --- the installation


def examine_installation(device: str = "auto") -> list[Finding]:
    """Check the versions, the libraries, the device and its precision; takes about a second."""
    installed = {name: installed_version(name) for name in ("robustill", "torch", "numpy")}
    versions = ", ".join(f"{name} {version}" for name, version in installed.items())
    findings = [Finding("versions", f"Python {platform.python_version()}, {versions}"), _examine_libraries()]
    try:
        chosen = pick_device(device)
    except ConfigError as error:
        return [*findings, Finding("device", str(error), "wrong")]
    findings.append(_examine_device(chosen))
    checks = {"repeats": _examine_repeatability, "float32": _examine_float32, "bf16": _examine_bf16}
    for subject, check in checks.items():
        try:
            findings.append(check(chosen))
        except RuntimeError as error:
            findings.append(Finding(subject, f"fails on this device: {first_line(error)}", "wrong"))
    return findings


def _examine_libraries() -> Finding:
    required = [each for each in metadata.requires("robustill") or [] if "extra ==" not in each]
    names = [match[0] for each in required if (match := re.match(r"[\w.-]+", each))]
    missing = [name for name in names if installed_version(name) is None]
    if missing:
        return Finding("libraries", f"{', '.join(missing)} missing: pip install {' '.join(missing)}", "wrong")
    extras = {"vision": "timm", "hub": "huggingface_hub", "data": "pyarrow", "cluster": "ray", "export": "onnx"}
    missing_extras = [extra for extra, package in extras.items() if installed_version(package) is None]
    message = f"all {len(names)}"
    if missing_extras:
        message += f"; without the extras {', '.join(missing_extras)}"
    return Finding("libraries", message)


def _examine_device(device: torch.device) -> Finding:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        return Finding("device", f"{device}: {properties.name}, {free:.1f} of {total:.1f} GiB free")
    machine = environment()
    return Finding(
        "device", f"{device}: {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    )


def _gradient(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Compute the gradient of a small convolutional network with respect to its images."""
    draws = generator(0, "doctor")
    x = torch.rand(8, 3, 16, 16, generator=draws).to(device, dtype).requires_grad_(True)
    weight = (torch.rand(16, 3, 3, 3, generator=draws) - 0.5).to(device, dtype)
    logits = nn.functional.conv2d(x, weight, padding=1).relu().mean(dim=(2, 3))
    return torch.autograd.grad(logits.logsumexp(dim=1).sum(), x)[0].double().cpu()


def _gradient_error(device: torch.device, dtype: torch.dtype) -> float:
    """Compute the relative error of that gradient, compared with float64 on the CPU."""
    exact = _gradient(torch.device("cpu"), torch.float64)
    with full_float32():
        return float((_gradient(device, dtype) - exact).norm() / exact.norm())


def _examine_repeatability(device: torch.device) -> Finding:
    if torch.equal(_gradient(device, torch.float32), _gradient(device, torch.float32)):
        return Finding("repeats", "the same gradient twice, bit for bit")
    return Finding(
        "repeats", "two gradients of one batch differ: runs on this device do not repeat bit for bit", "note"
    )


def _examine_float32(device: torch.device) -> Finding:
    error = _gradient_error(device, torch.float32)
    message = f"gradient within {error:.0e} of float64"
    if error < _MAX_FLOAT32_ERROR:
        return Finding("float32", message)
    return Finding("float32", f"{message}: more than float32 explains, so trust no result of this device", "wrong")


def _examine_bf16(device: torch.device) -> Finding:
    error = _gradient_error(device, torch.bfloat16)
    message = f"gradient within {error:.0e} of float64"
    if error < _MAX_BF16_ERROR:
        return Finding("bf16", message)
    return Finding("bf16", f"{message}: do not train in bf16 on this device", "note")


# --- a run


def examine_run(path: Path | str) -> list[Finding]:
    """Compare every file of a run directory with its checksum, and check that no file is missing.

    Raises:
        RunError: there is no run directory.
    """
    return list(_examine_files(RunDirectory.existing(path)))


class _Reading:
    """The result of a reader: its value, or None and the message with which it refused the file."""

    def __init__(self, subject: str, read: Callable[[], Any]) -> None:
        self.value: Any = None
        try:
            self.value = read()
            self.finding = Finding(subject, "complete")
        except RobustillError as error:
            self.finding = Finding(subject, str(error), "wrong")
        except OSError as error:
            self.finding = Finding(subject, f"{error.filename}: {error.strerror}", "wrong")


def _examine_files(run: RunDirectory) -> Iterator[Finding]:
    yield from _find_links(run.path)
    config = _Reading("config.yaml", run.config)
    settings = config.value or {}
    yield config.finding
    yield from _examine_json_files(run, has_teachers=bool(settings.get("teachers")))
    yield from _find_code(run, settings)
    metrics = _Reading("metrics.jsonl", run.metrics)
    is_trained = bool(run.checkpoints.epochs())
    if metrics.value == [] and is_trained:
        yield Finding("metrics.jsonl", "missing: run the same training command to restore it", "wrong")
    else:
        yield metrics.finding.with_detail(f"{len(metrics.value or [])} epochs")
    yield from _examine_checkpoints(run)
    expects_dynamics = is_trained and settings.get("dynamics", {}).get("record")
    if dynamics.has_dynamics(run.path) or expects_dynamics:
        yield _Reading("dynamics", lambda: dynamics.read_dynamics(run.path)).finding
    yield from _examine_evaluations(run)


def _examine_json_files(run: RunDirectory, *, has_teachers: bool) -> Iterator[Finding]:
    required = {
        "environment.json": True,
        "model.json": True,
        "split.json": True,
        "teachers.json": has_teachers,
        "study.json": False,
    }
    for name, is_required in required.items():
        reading = _Reading(name, lambda name=name: run.read_json(name))  # type: ignore[misc]
        if reading.value is not None or reading.finding.verdict == "wrong":
            yield reading.finding
        elif is_required:
            yield Finding(name, "missing: run the same training command to restore it", "wrong")
        if name == "environment.json" and reading.value is not None:
            yield from _compare_environments(reading.value)


def _find_links(folder: Path) -> Iterator[Finding]:
    """Find the symbolic links inside a folder, which no command follows."""
    for place, folders, files in os.walk(folder):
        for path in (Path(place) / name for name in sorted([*folders, *files])):
            if path.is_symlink():
                message = "a link, which is not followed: put a copy in its place, or remove it"
                yield Finding(str(path.relative_to(folder)), message, "wrong")


def _find_code(run: RunDirectory, settings: dict[str, Any]) -> Iterator[Finding]:
    """Note the import paths in the files of the run; nothing is imported."""
    model = _Reading("model.json", lambda: run.read_json("model.json")).value
    network = str(model.get("name")) if isinstance(model, dict) else ""
    paths = dict.fromkeys([*named_code(settings), *([network] if names_code(network) else [])])
    if paths:
        option = f"--trust-code {shlex.quote(','.join(paths))}"
        message = f"{', '.join(paths)}: code, which runs when it is imported; if you trust it, add {option}"
        yield Finding("code", message, "note")


def _compare_environments(recorded: dict[str, Any]) -> Iterator[Finding]:
    """Note what differs between the environment of the run and this one."""
    here = environment()
    there = {
        **(recorded.get("versions") or {}),
        "processor": recorded.get("processor"),
        "gpu": recorded.get("gpu"),
    }
    now = {**here["versions"], "processor": here["processor"], "gpu": here["gpu"]}
    changes = [f"{key} {there[key]} there, {now[key]} here" for key in now if key in there and there[key] != now[key]]
    if changes:
        yield Finding("environment", f"{'; '.join(changes)}: bitwise equal results cannot be expected here", "note")


def _examine_checkpoints(run: RunDirectory) -> Iterator[Finding]:
    epochs = run.checkpoints.epochs()
    for epoch in epochs:
        name = f"checkpoints/epoch-{epoch:04d}"
        yield _Reading(name, lambda epoch=epoch: run.checkpoints.read(epoch)).finding  # type: ignore[misc]
    for pointer in ("best", "last", *_average_pointers(run)):
        name = f"checkpoints/{pointer}"
        reading = _Reading(name, lambda pointer=pointer: run.checkpoints.pointed(pointer))  # type: ignore[misc]
        if reading.finding.verdict == "wrong":
            yield reading.finding
        elif reading.value is None and epochs:
            yield Finding(name, "missing: run the same training command to restore it", "wrong")
        elif reading.value in epochs:
            yield Finding(name, f"epoch {reading.value}")
        elif reading.value is not None:
            yield Finding(name, f"epoch {reading.value}, whose checkpoint is missing: train again", "wrong")
    unfinished = run.checkpoints.unfinished_folder
    if unfinished.is_dir():
        name = f"checkpoints/{unfinished.name}"
        yield _Reading(name, lambda: read_checksummed_state(unfinished, "state.pt")).finding


def _average_pointers(run: RunDirectory) -> list[str]:
    """Return the names of the best epochs of averaged weights that this run should have."""
    lines = _Reading("metrics.jsonl", run.metrics).value or []
    return [
        f"best-{kind}" for kind in ("ema", "swa") if any(f"{kind}_validation_robust_accuracy" in line for line in lines)
    ]


def _examine_evaluations(run: RunDirectory) -> Iterator[Finding]:
    for folder in sorted(path for path in (run.path / "evaluations").glob("*") if path.is_dir()):
        name = f"evaluations/{folder.name}"
        if (folder / "summary.json").exists() or has_lost_its_summary(folder):
            records = _Reading(name, lambda folder=folder: Records.load(folder))  # type: ignore[misc]
            num_images = 0 if records.value is None else len(records.value)
            yield records.finding.with_detail(f"{num_images} images")
        state = folder / ".state"
        if (state / "header.json").exists():
            partial = _Reading(f"{name}/.state", lambda state=state: EvaluationState(state, {}, 1))  # type: ignore[misc]
            yield partial.finding.with_detail("partly done: the same evaluation command resumes it")
