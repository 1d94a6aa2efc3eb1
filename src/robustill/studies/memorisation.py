"""What a study's runs on parts of the training images say of memorisation: of each image, and in the mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.difficulty import sample_metrics
from robustill.analysis.memorisation import Memorisation, mean_by_partition, memorisation
from robustill.analysis.statistics import Correlation, correlation, mean_std
from robustill.core.errors import RunError
from robustill.runs.directory import RunDirectory
from robustill.runs.dynamics import has_dynamics, read_dynamics
from robustill.runs.records import Records
from robustill.studies.design import Row, Subsets
from robustill.studies.job import evaluated
from robustill.studies.study import POOL, Study, seed_folder
from robustill.studies.table import SeedDifference, paired_over_seeds

Array = NDArray[Any]
KINDS = ("clean", "adversarial")
"""Right without an attack; right under it."""

PROXIES = {
    "memorisation": "rise of confidence",
    "adversarial_mean_probability": "mean confidence",
    "area_under_margin": "area under the margin",
    "forgetting": "forgetting events",
}
"""Of `sample_metrics`, what a single training tells for nothing, and how a table calls it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainings:
    """The trainings of one row and seed on parts of its N images, at one checkpoint.

    Args:
        ids: int64 [N], ascending.
        labels: int64 [N], that were trained on.
        flipped: bool [N], whether a label is noise.
        trained: bool [K,N], whether each of K trainings had the image.
        right: bool [K,N], by KINDS.
        partition: int [K].
    """

    ids: Array
    labels: Array
    flipped: Array
    trained: Array
    right: dict[str, Array]
    partition: Array

    @cached_property
    def memorisation(self) -> dict[str, Memorisation]:
        """By KINDS."""
        return {kind: memorisation(right, self.trained) for kind, right in self.right.items()}

    @property
    def groups(self) -> dict[str, Array]:
        """Images by their labels, each bool [N]; those with true and with wrong labels only where there are both."""
        every = np.ones(len(self.ids), dtype=np.bool_)
        if not self.flipped.any():
            return {"all": every}
        return {"all": every, "true labels": ~self.flipped, "wrong labels": self.flipped}


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Of one row, checkpoint, kind and group of images."""

    row: str
    checkpoint: str
    kind: str
    group: str
    images: int
    """of one seed, in the mean"""
    trained: float
    """share that is right where it was trained on"""
    left_out: float
    """share that is right where it was not"""
    by_partition: dict[tuple[int, int], float]
    """memorisation by seed and partition"""
    standard_error: float
    """of the score of one image, in the mean"""
    difference: SeedDifference | None
    """from the row that it is compared with, partition by partition"""

    @property
    def mean_std(self) -> tuple[float, float]:
        """Of memorisation over partitions and seeds; nan where no partition is whole."""
        values = list(self.by_partition.values())
        return mean_std(values)[:2] if values else (float("nan"), float("nan"))


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """How well what one training tells of an image orders images as memorisation does."""

    row: str
    seed: int
    name: str
    """of PROXIES"""
    found: Correlation
    """with memorisation under attack at the last epoch"""


@dataclass(frozen=True, kw_only=True)
class Influence:
    """Everything that a study says of memorisation."""

    trainings: dict[tuple[str, int, str], Trainings]
    """by row, seed and checkpoint"""
    means: tuple[Mean, ...]
    proxies: tuple[Proxy, ...]


def influence(study: Study) -> Influence | None:
    """From the runs that are done; None where the study asks nothing of the kind, or none is done.

    Raises:
        RunError: an evaluation is damaged.
    """
    found: dict[tuple[str, int, str], Trainings] = {}
    for subsets in study.design.subsets:
        for seed in study.seeds:
            for checkpoint, trainings in _trainings(study, subsets, seed).items():
                found[subsets.row, seed, checkpoint] = trainings
    if not found:
        return None
    rows = {row.label: row for row in study.design.rows}
    names = list(dict.fromkeys((row, checkpoint) for row, _, checkpoint in found))
    means: list[Mean] = []
    for row, checkpoint in names:
        means += _means(found, rows[row], checkpoint, means)
    proxies = [each for row, seed, what in found if what == "last" for each in _proxies(study, rows[row], seed, found)]
    return Influence(trainings=found, means=tuple(means), proxies=tuple(proxies))


def _trainings(study: Study, subsets: Subsets, seed: int) -> dict[str, Trainings]:
    """By checkpoint."""
    rows: dict[str, list[tuple[int, Array, Records]]] = {}
    ids = flipped = np.array([], dtype=np.int64)
    for fold, name in enumerate(subsets.runs):
        run = RunDirectory(study.folder / seed_folder(seed) / name)
        folders = evaluated(run, POOL)
        parts = run.read_json("split.json") if folders else None
        if not folders or parts is None:
            continue
        ids, flipped = np.array(sorted([*parts["train"], *parts["left_out"]])), np.array(parts["flipped"])
        trained = np.isin(ids, parts["train"])
        for checkpoint, folder in folders.items():
            records = Records.load(folder)
            if len(records) != len(ids):
                raise RunError(f"{folder} has {len(records)} images, expected the {len(ids)} of split.json")
            rows.setdefault(checkpoint, []).append((fold // subsets.folds, trained, records))
    return {
        checkpoint: Trainings(
            ids=ids,
            labels=each[0][2].label,
            flipped=np.isin(ids, flipped),
            trained=np.stack([trained for _, trained, _ in each]),
            right={
                "clean": np.stack([records.clean_correct for *_, records in each]),
                "adversarial": np.stack([records.robust for *_, records in each]),
            },
            partition=np.array([partition for partition, *_ in each]),
        )
        for checkpoint, each in rows.items()
    }


def _means(
    found: dict[tuple[str, int, str], Trainings], row: Row, checkpoint: str, before: list[Mean]
) -> Iterator[Mean]:
    seeds = {seed: each for (label, seed, what), each in found.items() if (label, what) == (row.label, checkpoint)}
    for kind in KINDS:
        for group in dict.fromkeys(group for each in seeds.values() for group in each.groups):
            parts = {seed: (each, each.groups[group]) for seed, each in seeds.items() if group in each.groups}
            of_images = [(each.memorisation[kind], images) for each, images in parts.values()]
            by_partition = {
                (seed, partition): mean
                for seed, (each, images) in parts.items()
                for partition, mean in mean_by_partition(each.right[kind], each.trained, each.partition, images).items()
            }
            yield Mean(
                row=row.label,
                checkpoint=checkpoint,
                kind=kind,
                group=group,
                images=round(float(np.mean([images.sum() for _, images in of_images]))),
                trained=_mean([each.trained[images] for each, images in of_images]),
                left_out=_mean([each.left_out[images] for each, images in of_images]),
                by_partition=by_partition,
                standard_error=_mean([each.standard_error[images] for each, images in of_images]),
                difference=_difference(by_partition, row, (checkpoint, kind, group), before),
            )


def _mean(values: list[Array]) -> float:
    every = np.concatenate(values)
    known = every[~np.isnan(every)]
    return float(known.mean()) if len(known) else float("nan")


def _difference(
    own: dict[tuple[int, int], float], row: Row, same: tuple[str, str, str], before: list[Mean]
) -> SeedDifference | None:
    """From the row that it is compared with, which comes before it; the two had the same images in every training."""
    for each in before:
        if each.row == row.against and (each.checkpoint, each.kind, each.group) == same:
            both = sorted(own.keys() & each.by_partition.keys())
            return (
                paired_over_seeds([own[key] for key in both], [each.by_partition[key] for key in both])
                if both
                else None
            )
    return None


def _proxies(study: Study, row: Row, seed: int, found: dict[tuple[str, int, str], Trainings]) -> Iterator[Proxy]:
    run = study.folder / study.run_of(seed, row)
    if not has_dynamics(run):
        return
    dynamics, trainings = read_dynamics(run), found[row.label, seed, "last"]
    metrics = sample_metrics(dynamics)
    _, here, there = np.intersect1d(trainings.ids, dynamics.ids, assume_unique=True, return_indices=True)
    score = trainings.memorisation["adversarial"].score[here]
    for name in PROXIES:
        if name in metrics:
            yield Proxy(row=row.label, seed=seed, name=name, found=correlation(metrics[name][there], score))
