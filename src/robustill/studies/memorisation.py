"""How much the rows of a study memorise: measured on each image from runs on subsets of the training images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.difficulty import sample_metrics
from robustill.analysis.memorisation import Memorisation, mean_by_partition, memorisation
from robustill.analysis.statistics import Correlation, SeedDifference, correlation, mean_std, paired_over_seeds
from robustill.core.errors import RunError
from robustill.runs.directory import RunDirectory
from robustill.runs.dynamics import has_dynamics, read_dynamics
from robustill.runs.records import Records
from robustill.studies.design import Row, Subsets
from robustill.studies.job import finished_evaluations
from robustill.studies.study import POOL_EVALUATION, Study, seed_folder

Array = NDArray[Any]
KINDS = ("clean", "adversarial")
"""Whether an image is classified correctly without an attack, and under attack."""

PROXIES = {
    "memorisation": "rise of confidence",
    "adversarial_mean_probability": "mean confidence",
    "area_under_margin": "area under the margin",
    "forgetting": "forgetting events",
}
"""The keys of `sample_metrics`, which need one training only, that are compared with memorisation; and their names."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SubsetTrainings:
    """The K trainings of one row and seed on subsets of its N images, evaluated at one checkpoint.

    Args:
        ids: the ids of the images, int64 [N], ascending.
        labels: the labels that were trained on, int64 [N].
        flipped: whether a label is noise, bool [N].
        trained: whether a training had the image, bool [K,N].
        correct: whether a training classifies the image correctly, bool [K,N], for each of KINDS.
        partition: the partition that a training belongs to, int [K].
    """

    ids: Array
    labels: Array
    flipped: Array
    trained: Array
    correct: dict[str, Array]
    partition: Array

    @cached_property
    def memorisation(self) -> dict[str, Memorisation]:
        """The memorisation of each image, for each of KINDS."""
        return {kind: memorisation(correct, self.trained) for kind, correct in self.correct.items()}

    @property
    def groups(self) -> dict[str, Array]:
        """The groups of images, each bool [N]: all and, if some labels are noise, those with true and wrong labels."""
        all_images = np.ones(len(self.ids), dtype=np.bool_)
        if not self.flipped.any():
            return {"all": all_images}
        return {"all": all_images, "true labels": ~self.flipped, "wrong labels": self.flipped}


TrainingsByKey = dict[tuple[str, int, str], SubsetTrainings]
"""The trainings of each row, seed and checkpoint."""


@dataclass(frozen=True, kw_only=True)
class MeanMemorisation:
    """The mean memorisation of one group of images, for one row, checkpoint and kind."""

    row: str
    checkpoint: str
    kind: str
    group: str
    images: int
    """mean number of images over seeds"""
    trained: float
    """share of correct classifications by trainings that had the image"""
    left_out: float
    """share of correct classifications by trainings that had not"""
    by_partition: dict[tuple[int, int], float]
    """mean memorisation by seed and partition"""
    standard_error: float
    """mean standard error of the score of one image"""
    difference: SeedDifference | None
    """difference from the row that this one is compared with, paired by partition"""

    @property
    def mean_std(self) -> tuple[float, float]:
        """The mean and standard deviation over partitions and seeds; nan if no partition is complete."""
        values = list(self.by_partition.values())
        return mean_std(values)[:2] if values else (float("nan"), float("nan"))


@dataclass(frozen=True, kw_only=True)
class ProxyCorrelation:
    """The rank correlation of a metric from one training on all images with memorisation.

    Args:
        row: the label of the row.
        seed: the seed of the training.
        metric: a key of PROXIES.
        correlation: the correlation with memorisation under attack at the last epoch.
    """

    row: str
    seed: int
    metric: str
    correlation: Correlation


@dataclass(frozen=True, kw_only=True)
class MemorisationResult:
    """The memorisation that a study has measured.

    Args:
        trainings: the trainings on subsets, by row, seed and checkpoint.
        means: the means over images.
        proxies: the correlations of cheaper metrics with memorisation.
    """

    trainings: TrainingsByKey
    means: tuple[MeanMemorisation, ...]
    proxies: tuple[ProxyCorrelation, ...]


def measure_memorisation(study: Study) -> MemorisationResult | None:
    """Measure memorisation from the runs that have been finished; None if there are none on subsets.

    Raises:
        RunError: an evaluation is damaged.
    """
    trainings: TrainingsByKey = {}
    for subsets in study.design.subsets:
        for seed in study.seeds:
            for checkpoint, each in _load_trainings(study, subsets, seed).items():
                trainings[subsets.row, seed, checkpoint] = each
    if not trainings:
        return None
    rows = {row.label: row for row in study.design.rows}
    means: list[MeanMemorisation] = []
    for label, checkpoint in dict.fromkeys((label, checkpoint) for label, _, checkpoint in trainings):
        means += _means(trainings, rows[label], checkpoint, means)
    proxies: list[ProxyCorrelation] = []
    for (label, seed, checkpoint), each in trainings.items():
        if checkpoint == "last":
            proxies += _proxy_correlations(study, rows[label], seed, each)
    return MemorisationResult(trainings=trainings, means=tuple(means), proxies=tuple(proxies))


def _load_trainings(study: Study, subsets: Subsets, seed: int) -> dict[str, SubsetTrainings]:
    """Load the finished trainings of one row and seed, by checkpoint."""
    evaluations: dict[str, list[tuple[int, Array, Records]]] = {}
    ids = flipped = np.array([], dtype=np.int64)
    for fold, name in enumerate(subsets.runs):
        run = RunDirectory(study.folder / seed_folder(seed) / name)
        folders = finished_evaluations(run, POOL_EVALUATION)
        split = run.read_json("split.json") if folders else None
        if not folders or split is None:
            continue
        ids = np.array(sorted([*split["train"], *split["left_out"]]))
        flipped = np.array(split["flipped"])
        trained = np.isin(ids, split["train"])
        for checkpoint, folder in folders.items():
            records = Records.load(folder)
            if len(records) != len(ids):
                raise RunError(f"{folder} has {len(records)} images, expected the {len(ids)} of split.json")
            evaluations.setdefault(checkpoint, []).append((fold // subsets.folds, trained, records))
    return {
        checkpoint: SubsetTrainings(
            ids=ids,
            labels=each[0][2].label,
            flipped=np.isin(ids, flipped),
            trained=np.stack([trained for _, trained, _ in each]),
            correct={
                "clean": np.stack([records.clean_correct for *_, records in each]),
                "adversarial": np.stack([records.robust for *_, records in each]),
            },
            partition=np.array([partition for partition, *_ in each]),
        )
        for checkpoint, each in evaluations.items()
    }


def _means(
    trainings: TrainingsByKey, row: Row, checkpoint: str, previous: Sequence[MeanMemorisation]
) -> Iterator[MeanMemorisation]:
    """Compute the means of one row and checkpoint; `previous` are those of the rows before it."""
    by_seed = {
        seed: each for (label, seed, name), each in trainings.items() if (label, name) == (row.label, checkpoint)
    }
    groups = dict.fromkeys(group for each in by_seed.values() for group in each.groups)
    for kind in KINDS:
        for group in groups:
            images = {seed: each.groups[group] for seed, each in by_seed.items() if group in each.groups}
            scores = {seed: by_seed[seed].memorisation[kind] for seed in images}
            by_partition: dict[tuple[int, int], float] = {}
            for seed, mask in images.items():
                each = by_seed[seed]
                partitions = mean_by_partition(each.correct[kind], each.trained, each.partition, mask)
                for partition, mean in partitions.items():
                    by_partition[seed, partition] = mean
            baseline = _matching_mean(previous, row.against, checkpoint, kind, group)
            yield MeanMemorisation(
                row=row.label,
                checkpoint=checkpoint,
                kind=kind,
                group=group,
                images=round(float(np.mean([mask.sum() for mask in images.values()]))),
                trained=_nanmean([scores[seed].trained[mask] for seed, mask in images.items()]),
                left_out=_nanmean([scores[seed].left_out[mask] for seed, mask in images.items()]),
                by_partition=by_partition,
                standard_error=_nanmean([scores[seed].standard_error[mask] for seed, mask in images.items()]),
                difference=None if baseline is None else _difference(by_partition, baseline.by_partition),
            )


def _nanmean(values: Sequence[Array]) -> float:
    """Return the mean of all values that are not nan; nan if there are none."""
    joined = np.concatenate(values)
    finite = joined[~np.isnan(joined)]
    return float(finite.mean()) if len(finite) else float("nan")


def _matching_mean(
    means: Sequence[MeanMemorisation], row: str | None, checkpoint: str, kind: str, group: str
) -> MeanMemorisation | None:
    for each in means:
        if (each.row, each.checkpoint, each.kind, each.group) == (row, checkpoint, kind, group):
            return each
    return None


def _difference(
    own: Mapping[tuple[int, int], float], baseline: Mapping[tuple[int, int], float]
) -> SeedDifference | None:
    """Pair two rows by seed and partition, in which their trainings had the same images."""
    common = sorted(own.keys() & baseline.keys())
    if not common:
        return None
    return paired_over_seeds([own[key] for key in common], [baseline[key] for key in common])


def _proxy_correlations(study: Study, row: Row, seed: int, trainings: SubsetTrainings) -> Iterator[ProxyCorrelation]:
    run = study.folder / study.run_of(seed, row)
    if not has_dynamics(run):
        return
    dynamics = read_dynamics(run)
    metrics = sample_metrics(dynamics)
    _, of_trainings, of_dynamics = np.intersect1d(trainings.ids, dynamics.ids, assume_unique=True, return_indices=True)
    score = trainings.memorisation["adversarial"].score[of_trainings]
    for metric in PROXIES:
        if metric in metrics:
            values = metrics[metric][of_dynamics]
            yield ProxyCorrelation(row=row.label, seed=seed, metric=metric, correlation=correlation(values, score))
