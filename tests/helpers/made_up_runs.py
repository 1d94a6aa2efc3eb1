"""Run directories as training and evaluation write them, with plausible numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from helpers.records_by_hand import save_records
from robustill.data.digits import FILE
from robustill.runs.directory import RunDirectory
from robustill.runs.dynamics import write_epoch, write_samples
from robustill.runs.records import ROBUST, WRONG_ON_CLEAN, Records
from robustill.threat import Threat

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
EPOCHS = 40


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def make_images(channels: int, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return clean images and a random pattern of signs, like the perturbation of an attack."""
    rng = np.random.default_rng(3)
    if channels == 1:
        with np.load(FILE) as digits:
            clean = (digits["images"][:count, None] / 16).astype(np.float32)
    else:
        y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
        phase = rng.uniform(0, 6, size=(count, channels, 1, 1))
        centre = rng.uniform(0.3, 0.7, size=(count, 1, 2))
        disk = (x - centre[..., :1]) ** 2 + (y - centre[..., 1:]) ** 2 < 0.05
        clean = 0.45 + 0.3 * np.sin(phase + 2 * x + 3 * y) - 0.3 * disk[:, None] * rng.uniform(-1, 1, phase.shape)
        clean = clean.clip(0, 1).astype(np.float32)
    return clean, np.sign(rng.normal(size=clean.shape)).astype(np.float32)


def make_records(
    *,
    strength: float,
    seed: int,
    n: int = 500,
    channels: int = 1,
    eps: float = 0.2,
    classes: tuple[str, ...],
    **conditions,
) -> Records:
    """Return records of a made-up model; all models find the same images difficult."""
    task = np.random.default_rng(0)
    label = task.integers(0, len(classes), n)
    difficulty = task.normal(size=n)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), label] += 5 + 0.5 * strength - 1.1 * difficulty + 0.7 * rng.normal(size=n)
    grid = np.linspace(0, 2 * eps, 9).astype(np.float32)

    def attacked(radius: float) -> np.ndarray:
        attacked_logits = logits.copy()
        attacked_logits[np.arange(n), label] -= radius / eps * (4.2 + 0.4 * rng.normal(size=n))
        return attacked_logits

    adversarial = attacked(eps)
    correct = logits.argmax(1) == label
    robust = correct & (adversarial.argmax(1) == label)
    broken_by = np.where(~correct, WRONG_ON_CLEAN, np.where(robust, ROBUST, rng.random(n) < 0.06)).astype(np.int8)
    others = np.where(np.eye(len(classes), dtype=bool)[label], -np.inf, adversarial)
    at_eps = np.stack([correct & (attacked(r).argmax(1) == label) for r in grid], axis=1)
    at_eps[:, 0], at_eps[:, 4] = correct, robust
    at_eps = np.logical_and.accumulate(at_eps, axis=1) if n > 50 else at_eps
    clean, pattern = make_images(channels, 8 if channels == 1 else 32, 16)
    return Records(
        index=np.arange(1000, 1000 + n),
        label=label,
        clean_probabilities=softmax(2 * logits),
        adversarial_probabilities=softmax(2 * adversarial),
        robust=robust,
        broken_by=broken_by,
        margin=(adversarial[np.arange(n), label] - others.max(1)).astype(np.float32),
        distance=np.full(n, eps, np.float32),
        eps_grid=grid,
        robust_at_eps=at_eps,
        stages=("pgd-ce", "pgd-margin"),
        classes=classes,
        conditions={
            "data": "digits" if channels == 1 else "cifar10",
            "split": "test",
            "data_fingerprint": "3f6b" * 16,
            "checkpoint_sha256": f"{seed:02x}" * 32,
            "threat": {"norm": "linf", "eps": eps, "text": str(Threat(norm="linf", eps=eps))},
            "suite": {
                "name": "pgd",
                "stages": [{"name": f"pgd-{loss}", "steps": 20, "restarts": 5} for loss in ("ce", "margin")],
            },
            "curve": {"attack": "pgd-ce", "steps": 20, "restarts": 1},
            "seed": 0,
            "precision": "fp32",
            "num_images": n,
            "of_images": n,
            "parameters": 77_850,
            "versions": {"robustill": "0.1.0", "torch": "2.13.0"},
            "date": "2026-11-23",
            **conditions,
        },
        example_index=np.arange(1000, 1016),
        example_clean=clean,
        example_adversarial=(clean + eps * pattern).clip(0, 1).astype(np.float32),
    )


def make_dynamics(run: Path, *, strength: float, seed: int, samples: int, noise: float = 0.0) -> None:
    """Write training dynamics: easy samples are learned first, and a stronger student is less confident."""
    task, rng = np.random.default_rng(1), np.random.default_rng(seed)
    ease = task.normal(size=samples) * 1.6
    flipped = task.random(samples) < noise
    ids = np.arange(0, 3 * samples, 3)
    write_samples(run, ids, ids % 10, flipped)
    for epoch in range(1, EPOCHS + 1):
        shift = (4.5 - strength) * epoch / EPOCHS - 1.5 - 2 * flipped
        arrays: dict[str, np.ndarray] = {}
        for kind, extra in (("adversarial", 0.0), ("clean", 1.5), ("teacher_adversarial", 0.5)):
            if kind == "clean" and epoch % 5:
                continue
            z = ease + shift + extra + 0.6 * rng.normal(size=samples)
            arrays[f"{kind}_loss"] = np.log1p(np.exp(-z)).astype(np.float16)
            arrays[f"{kind}_margin"] = z.astype(np.float16)
            arrays[f"{kind}_correct"] = z > 0
        write_epoch(run, epoch, arrays)


def add_fixed_attack(run: Path) -> Path:
    """Give every evaluation of a run the probabilities of the fixed attack; they lie between its others."""
    for folder in (run / "evaluations").iterdir():
        records = Records.load(folder)
        mean = (records.clean_probabilities + 3 * records.adversarial_probabilities) / 4
        save_records(replace(records, pgd_probabilities=mean), folder)
    return run


def make_run(
    folder: Path,
    *,
    method: dict[str, Any],
    teachers: tuple[str, ...] = (),
    strength: float = 0.0,
    seed: int = 0,
    channels: int = 1,
    eps: float = 0.2,
    classes: tuple[str, ...] = tuple("0123456789"),
    evaluations: tuple[str, ...] = ("test-best-pgd", "test-last-pgd"),
    config: dict[str, Any] | None = None,
    dynamics: int = 0,
    noise: float = 0.0,
    **conditions: Any,
) -> Path:
    """Write a complete run directory."""
    resolved = {
        "seed": seed,
        "data": {"name": "digits" if channels == 1 else "cifar10", "train_size": 250},
        "model": {"name": "resnet8", "width": 16},
        "method": method,
        "teachers": [{"spec": spec, "role": "robust", "weight": 1.0, "model": None} for spec in teachers],
        "threat": {"norm": "linf", "eps": eps},
        "attack": {"steps": 10, "step_size": eps / 4},
        "optim": {"name": "sgd", "epochs": EPOCHS, "batch_size": 64, "learning_rate": 0.2},
        **(config or {}),
    }
    directory = RunDirectory(folder)
    directory.start(yaml.safe_dump(resolved, sort_keys=False))
    environment = {
        "python": "3.11.7",
        "platform": "Linux-6.1",
        "versions": {"robustill": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
        "processor": "x86_64 AVX2",
        "cores": 2,
        "threads": 2,
        "gpu": None,
    }
    directory.write_json("environment.json", environment)
    rng = np.random.default_rng(seed + 17)
    lines = []
    for epoch in range(1, EPOCHS + 1):
        t = epoch / EPOCHS
        line = {
            "epoch": epoch,
            "learning_rate": 0.2 * min(t / 0.4, (1 - t) / 0.6 + 0.01),
            "train_loss": 2.2 * np.exp(-2.6 * t) + 0.15 - 0.08 * strength,
            "train_adversarial_accuracy": 0.1 + 0.78 * (1 - np.exp(-3.2 * t)) - 0.04 * strength,
            "seconds": 2.3,
            "images_per_second": 1180.0,
        }
        if epoch % 2 == 0 or epoch == EPOCHS:
            drop = (0.16 - 0.1 * strength) * max(0.0, t - 0.6)
            line["validation_clean_accuracy"] = 0.1 + 0.86 * (1 - np.exp(-6 * t)) + 0.01 * rng.normal()
            line["validation_robust_accuracy"] = 0.1 + 0.45 * (1 - np.exp(-5 * t)) - drop + 0.012 * rng.normal()
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    directory.checkpoints.point("best", 28)
    directory.checkpoints.point("last", EPOCHS)
    if dynamics:
        make_dynamics(folder, strength=strength, seed=seed + len(teachers), samples=dynamics, noise=noise)
    for position, name in enumerate(evaluations):
        worse = 0.25 * position
        save_records(
            make_records(
                strength=strength - worse,
                seed=100 * seed + position + len(teachers),
                channels=channels,
                eps=eps,
                classes=classes,
                **{"split": name.split("-")[0], "checkpoint": name.partition("-")[2].rpartition("-")[0], **conditions},
            ),
            folder / "evaluations" / name,
        )
    return folder
