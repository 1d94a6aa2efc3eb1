"""A study that takes a few seconds: a teacher, a baseline and two students on forty tiny images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from helpers.small_runs import small_values
from robustill.studies import Design, Row, Study, StudyRuns, make_study
from robustill.studies.engines import Workers

ONE = Workers(count=1, threads=1, gpu=False, engine="local")
TWO = Workers(count=2, threads=1, gpu=False, engine="local")
SUITE = "pgd-20"


def pair(runs: StudyRuns) -> Design:
    """AKD with a weight of its teacher of one half, and of one."""
    rows = [
        Row(
            label=f"alpha {value:g}",
            run=runs.student(f"alpha-{value:g}", options={"alpha": value}),
            series="akd",
            value=value,
            against="at",
        )
        for value in (0.5, 1.0)
    ]
    return Design(rows=(Row(label="at", run=runs.baseline()), *rows), axis="alpha")


def recipe(folder: Path, **changes: Any) -> str:
    """Write a tiny configuration as a .yaml file beside its images."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    for name, number in (("train", 62), ("test", 20)):
        labels = np.arange(number) % 4
        images = (draws.random((number, 8, 8)) * 0.3 + labels[:, None, None] / 6).astype(np.float32)
        np.savez(folder / f"{name}.npz", images=images, labels=labels)
    data = {"name": "npz", "root": str(folder), "train_size": None, "validation": 30}
    values = small_values(**{"data": data, "optim": {"learning_rate": 0.05}, **changes})
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)


def tiny(
    folder: Path, *, seeds: int = 1, name: str = "helpers.tiny_studies:pair", overrides: tuple[str, ...] = ()
) -> Study:
    """Return the study with its runs in folder/runs."""
    file = recipe(folder / "data")
    return make_study(name, folder=folder / "runs", seeds=seeds, recipe=file, overrides=overrides, suite=SUITE)
