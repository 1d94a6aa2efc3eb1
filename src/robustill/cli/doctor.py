"""Whether this installation can do its work, and whether every file of a run is whole."""

from __future__ import annotations

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
from robustill.evaluation.state import EvaluationState
from robustill.runs import checkpoints as unfinished
from robustill.runs import dynamics
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records, is_whole_but_for_its_summary

Verdict = Literal["fine", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        what: it.
        found: in a few words; of what is wrong, one line with what to do about it.
        verdict: "wrong" where something has to be done, "note" where something is worth knowing.
    """

    what: str
    found: str
    verdict: Verdict = "fine"


def examine_installation(device: str = "auto") -> list[Finding]:
    """Versions, libraries, the device, and what its precisions are worth; a second of computing."""
    versions = {name: installed_version(name) for name in ("robustill", "torch", "numpy")}
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    findings = [Finding("versions", f"Python {platform.python_version()}, {known}"), _libraries()]
    try:
        chosen = pick_device(device)
    except ConfigError as error:
        return [*findings, Finding("device", str(error), "wrong")]
    return [*findings, _device(chosen), _attempted("repeats", lambda: _repeats(chosen)),
            _attempted("float32", lambda: _float32(chosen)), _attempted("bf16", lambda: _bf16(chosen))]  # fmt: skip


def examine_run(path: Path | str) -> list[Finding]:
    """Every file of a run directory against its checksum, and the files that ought to be there.

    Raises:
        RunError: there is no run directory.
    """
    return list(_files(RunDirectory.existing(path)))


def _libraries() -> Finding:
    needed = [each for each in metadata.requires("robustill") or [] if "extra ==" not in each]
    names = [found[0] for each in needed if (found := re.match(r"[\w.-]+", each))]
    missing = [name for name in names if installed_version(name) is None]
    if missing:
        return Finding("libraries", f"{', '.join(missing)} missing: pip install {' '.join(missing)}", "wrong")
    extras = {"vision": "timm", "hub": "huggingface_hub", "cluster": "ray"}
    without = [extra for extra, package in extras.items() if installed_version(package) is None]
    return Finding("libraries", f"all {len(names)}" + (f"; without the extras {', '.join(without)}" if without else ""))


def _device(device: torch.device) -> Finding:
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        return Finding("device", f"{device}: {about.name}, {free:.1f} of {total:.1f} GiB free")
    known = environment()
    return Finding("device", f"{device}: {known['processor']}, {known['cores']} cores, {known['threads']} threads")


def _attempted(what: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except RuntimeError as error:
        return Finding(what, f"not here: {first_line(error)}", "wrong")


def _gradient(device: torch.device, kind: torch.dtype) -> torch.Tensor:
    """Of a small convolutional network towards its images."""
    draws = generator(0, "doctor")
    x = torch.rand(8, 3, 16, 16, generator=draws).to(device, kind).requires_grad_(True)
    weight = (torch.rand(16, 3, 3, 3, generator=draws) - 0.5).to(device, kind)
    logits = nn.functional.conv2d(x, weight, padding=1).relu().mean(dim=(2, 3))
    return torch.autograd.grad(logits.logsumexp(dim=1).sum(), x)[0].double().cpu()


def _error(device: torch.device, kind: torch.dtype) -> float:
    """Relative, of the gradient against float64 on the CPU."""
    exact = _gradient(torch.device("cpu"), torch.float64)
    with full_float32():
        return float((_gradient(device, kind) - exact).norm() / exact.norm())


def _repeats(device: torch.device) -> Finding:
    same = torch.equal(_gradient(device, torch.float32), _gradient(device, torch.float32))
    if same:
        return Finding("repeats", "the same gradient twice, bit for bit")
    return Finding("repeats", "two gradients of one batch differ: runs here do not repeat to the bit", "note")


def _float32(device: torch.device) -> Finding:
    error = _error(device, torch.float32)
    fine = error < 1e-5
    said = f"gradient within {error:.0e} of float64"
    return Finding(
        "float32", said if fine else f"{said}: more than float32 allows, trust no number", "fine" if fine else "wrong"
    )


def _bf16(device: torch.device) -> Finding:
    error = _error(device, torch.bfloat16)
    fine = error < 0.05
    said = f"gradient within {error:.0e} of float64"
    return Finding("bf16", said if fine else f"{said}: do not train in bf16 here", "fine" if fine else "note")


# --- a run


def _files(run: RunDirectory) -> Iterator[Finding]:
    config = _Look("config.yaml", run.config)
    yield config.finding
    for name in ("environment.json", "model.json", "split.json", "teachers.json", "study.json"):
        needed = name != "study.json" and (name != "teachers.json" or bool((config.value or {}).get("teachers")))
        page = _Look(name, lambda name=name: run.read_json(name))  # type: ignore[misc]
        if page.value is not None or page.finding.verdict == "wrong":
            yield page.finding
        elif needed:
            yield Finding(name, "missing: run the same training command to write it anew", "wrong")
        if name == "environment.json" and page.value is not None:
            yield from _elsewhere(page.value)
    yield from _code(run, config.value or {})
    lines = _Look("metrics.jsonl", run.metrics)
    trained = bool(run.epochs())
    if lines.value == [] and trained:
        yield Finding("metrics.jsonl", "missing: run the same training command to restore it", "wrong")
    else:
        yield _and(lines.finding, f"{len(lines.value or [])} epochs")
    yield from _checkpoints(run)
    if dynamics.has_dynamics(run.path) or (trained and (config.value or {}).get("dynamics", {}).get("record")):
        yield _Look("dynamics", lambda: dynamics.read_dynamics(run.path)).finding
    yield from _evaluations(run)


def _code(run: RunDirectory, config: dict[str, Any]) -> Iterator[Finding]:
    """The import paths in the files of a run; nothing is imported."""
    page = _Look("model.json", lambda: run.read_json("model.json")).value
    network = page.get("name") if isinstance(page, dict) else None
    paths = dict.fromkeys([*named_code(config), *([str(network)] if network and ":" in str(network) else [])])
    if paths:
        said = "runs when it is imported, which takes your word: name it, or give --trust-code"
        yield Finding("code", f"{', '.join(paths)}: {said} {shlex.quote(','.join(paths))}", "note")


class _Look:
    """What a reader gives, or the line with which it refuses."""

    def __init__(self, what: str, read: Callable[[], Any]) -> None:
        self.value: Any = None
        try:
            self.value = read()
            self.finding = Finding(what, "whole")
        except RobustillError as error:
            self.finding = Finding(what, str(error), "wrong")
        except OSError as error:
            self.finding = Finding(what, f"{error.filename}: {error.strerror}", "wrong")


def _and(finding: Finding, more: str) -> Finding:
    """A finding that is fine, with something more to say."""
    return Finding(finding.what, f"{finding.found}, {more}") if finding.verdict == "fine" else finding


def _elsewhere(page: dict[str, Any]) -> Iterator[Finding]:
    here, there = environment(), page
    known = {**(there.get("versions") or {}), "processor": there.get("processor"), "gpu": there.get("gpu")}
    now = {**here["versions"], "processor": here["processor"], "gpu": here["gpu"]}
    changed = [f"{key} {known[key]} there, {now[key]} here" for key in now if key in known and known[key] != now[key]]
    if changed:
        yield Finding("environment", f"{'; '.join(changed)}: the same bits are not to be expected here", "note")


def _checkpoints(run: RunDirectory) -> Iterator[Finding]:
    for epoch in run.epochs():
        yield _Look(f"checkpoints/epoch-{epoch:04d}", lambda epoch=epoch: run.checkpoint(epoch)).finding  # type: ignore[misc]
    for name in ("best", "last", *_averages(run)):
        pointer = _Look(f"checkpoints/{name}", lambda name=name: run.pointed(name))  # type: ignore[misc]
        if pointer.finding.verdict == "wrong":
            yield pointer.finding
        elif pointer.value is None and run.epochs():
            mend = "missing: run the same training command to restore it"
            yield Finding(f"checkpoints/{name}", mend, "wrong")
        elif pointer.value is not None:
            there = pointer.value in run.epochs()
            found = (
                f"epoch {pointer.value}"
                if there
                else f"epoch {pointer.value}, whose checkpoint is missing: train again"
            )
            yield Finding(f"checkpoints/{name}", found, "fine" if there else "wrong")
    folder = run.path / "checkpoints" / unfinished.FOLDER
    if folder.is_dir():
        yield _Look(f"checkpoints/{folder.name}", lambda: read_checksummed_state(folder, "state.pt")).finding


def _averages(run: RunDirectory) -> list[str]:
    """The names of the best epochs of averaged weights that this run ought to have."""
    lines = _Look("metrics.jsonl", run.metrics).value or []
    return [
        f"best-{kind}" for kind in ("ema", "swa") if any(f"{kind}_validation_robust_accuracy" in line for line in lines)
    ]


def _evaluations(run: RunDirectory) -> Iterator[Finding]:
    for folder in sorted(path for path in (run.path / "evaluations").glob("*") if path.is_dir()):
        name = f"evaluations/{folder.name}"
        if (folder / "summary.json").exists() or is_whole_but_for_its_summary(folder):
            look = _Look(name, lambda folder=folder: Records.load(folder))  # type: ignore[misc]
            yield _and(look.finding, f"{len(look.value) if look.value is not None else 0} images")
        state = folder / ".state"
        if (state / "header.json").exists():
            half = _Look(f"{name}/.state", lambda state=state: EvaluationState(state, {}, 1))  # type: ignore[misc]
            yield _and(half.finding, "half done: the same evaluation goes on")
