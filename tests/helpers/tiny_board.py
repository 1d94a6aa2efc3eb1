"""A track of the board that takes seconds, and its runs, computed in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers.tiny_studies import SUITE, recipe
from robustill.studies.job import Job, _train_and_evaluate
from robustill.studies.study import Study
from robustill.studies.tracks import Track


def tiny_track(folder: Path, **changes: Any) -> Track:
    """Return a track of forty tiny images, whose recipe and images are in the folder."""
    values: dict[str, Any] = {"seeds": 2, "suite": SUITE, "settings": ("--optim.ema", "0.9"), "num_images": None}
    return Track(description="forty tiny images", recipe=recipe(folder), **{**values, **changes})


def compute(study: Study) -> None:
    """Train and evaluate every run of a study, teachers first, as its jobs do."""
    for name in sorted(study.runs, key=lambda each: len(study.needs[each])):
        job = Job(
            run=str(study.folder / name),
            config=study.runs[name].model_dump(mode="json"),
            evaluation=study.evaluation(name),
            log="",
            folder="",
            trust_code=True,
        )
        _train_and_evaluate(job)
