"""A study's folder and evaluations of networks without a run, as the commands write them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from helpers.made_up_runs import make_records, make_run
from helpers.records_by_hand import save_records

CLASSES = tuple("0123456789")


def make_network(folder: Path, *, sha: str = "ab", strength: float = 0.5, **conditions: Any) -> Path:
    """Write an evaluation as `robustill evaluate weights.pth` does."""
    known = {"checkpoint": "resnet.pth", "checkpoint_sha256": sha * 32, "architecture": "resnet8", **conditions}
    save_records(make_records(strength=strength, seed=7, classes=CLASSES, **known), folder)
    return folder


def make_study(folder: Path) -> Path:
    """Write a study of two rows and two seeds with its tables, and a teacher."""
    for seed in (0, 1):
        place = folder / f"seed-{seed}"
        make_run(place / "teacher-0", method={"name": "at"}, eps=0.15, seed=1000 + seed, evaluations=())
        make_run(place / "at", method={"name": "at"}, seed=seed)
        teacher = (f"run:{place / 'teacher-0'}@best",)
        make_run(place / "akd-alpha-0.5", method={"name": "akd", "alpha": 0.5}, teachers=teacher, seed=seed, strength=1)
    rows = [("at", "at", ""), ("alpha 0.5", "akd-alpha-0.5", "at")]
    with (folder / "alpha-akd-runs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["row", "series", "value", "seed", "run", "checkpoint"]]
            + [[label, "", "", seed, f"seed-{seed}/{run}", "best"] for label, run, _ in rows for seed in (0, 1)]
        )
    with (folder / "alpha-akd.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["row", "checkpoint", "against"]] + [[row, "best", base] for row, _, base in rows])
    text = "# alpha-akd\n\nThe weight of the teacher.\n\n| | |\n|---|---|\n\n- `robustill study alpha --seeds 2`\n"
    (folder / "alpha-akd.md").write_text(text)
    (folder / "study.lock").touch()
    (folder / "logs").mkdir()
    return folder
