"""What people said of the images of a data set, from published files: votes, other labels, labels looked at again."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.statistics import rank_above
from robustill.core.archives import read_arrays
from robustill.core.errors import DataError
from robustill.core.files import reading


def vote_entropy(counts: Array) -> Array:
    """−Σ_k p_k log p_k of the share p_k of people who chose class k, in nats, float64 [N].

    Args:
        counts: votes, [N,K], at least one an image.

    Example:
        >>> vote_entropy(np.array([[5, 5], [10, 0]])).round(4)   # log 2, 0
        array([0.6931, 0.    ])

    Reference: as human uncertainty: Peterson et al. 2019, Human uncertainty makes classification more robust.
    """
    p = counts / counts.sum(axis=1, keepdims=True, dtype=np.float64)
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    # Not −(p·log p), which is −0 where all agree.
    entropy: Array = (p * (0.0 - logs)).sum(axis=1)
    return entropy


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well a score tells some images from the others: high scores should be theirs."""

    auroc: float
    """probability that one of them has a higher score than one of the others; 1/2 if nothing tells them"""
    low: float
    """lower end of its 95 % interval (Hanley and McNeil)"""
    high: float
    average_precision: float
    """precision averaged over recall; the share of them if nothing tells them"""
    found: int
    """how many there are"""
    num_samples: int
    """of all images that have a score"""


def detection(score: Array, flagged: Array) -> Detection:
    """Area under the ROC, with an interval, and average precision.

    Args:
        score: [N]; nan is left out.
        flagged: bool [N].

    Returns:
        nan where no image or every one is flagged.

    Reference: the interval: Hanley and McNeil 1982, The meaning and use of the area under a ROC curve.
    """
    known = ~np.isnan(score)
    score, flagged = score[known], flagged[known]
    n, m = int(flagged.sum()), int((~flagged).sum())
    if not n or not m:
        nan = math.nan
        return Detection(auroc=nan, low=nan, high=nan, average_precision=nan, found=n, num_samples=n + m)
    area = rank_above(score[flagged], score[~flagged])
    above, below = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (n - 1) * (above - area**2) + (m - 1) * (below - area**2)) / (n * m)
    half = NormalDist().inv_cdf(0.975) * math.sqrt(max(0.0, variance))
    return Detection(
        auroc=area,
        low=max(0.0, area - half),
        high=min(1.0, area + half),
        average_precision=average_precision(score, flagged),
        found=n,
        num_samples=n + m,
    )


def average_precision(score: Array, flagged: Array) -> float:
    """Σ_t (recall_t − recall_{t−1})·precision_t over the thresholds t from the highest score down; ties come together.

    Args:
        score: [N].
        flagged: bool [N], at least one.

    Example:
        >>> average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))   # (1/1 + 2/3) / 2
        0.8333333333333333
    """
    values, place = np.unique(-score, return_inverse=True)
    hits = np.bincount(place, weights=flagged, minlength=len(values))
    reached = np.cumsum(np.bincount(place, minlength=len(values)))
    return float((hits * np.cumsum(hits) / reached).sum() / hits.sum())


Array = NDArray[Any]
_ALIKE = 0.5
"""Of the labels that the votes of people must agree with, or they are of other images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgements(ABC):
    """What one file says.

    Args:
        file: it.
        split: whose images.
    """

    file: Path
    split: Literal["train", "test"]

    @abstractmethod
    def targets(self, ids: Array, labels: Array) -> dict[str, Array]:
        """What scores are compared with, by name: float64 [n], larger is harder, nan unknown; or bool [n].

        Args:
            ids: of images in the data set's own order, int [n].
            labels: of these images, int [n].

        Raises:
            DataError: the file is of other images.
        """

    def _refuse(self, reason: str) -> DataError:
        return DataError(f"{self.file}: {reason}: it is of another data set, split or order of the images")


@dataclass(frozen=True, kw_only=True, eq=False)
class Votes(Judgements):
    """How many people chose which class, [N,K], such as CIFAR-10H of the test images."""

    counts: Array

    def targets(self, ids: Array, labels: Array) -> dict[str, Array]:
        """Entropy of the votes, share of votes against the label, and whether most chose another class."""
        if ids.max() >= len(self.counts) or labels.max() >= self.counts.shape[1]:
            raise self._refuse(f"votes of {len(self.counts)} images and {self.counts.shape[1]} classes")
        counts = self.counts[ids].astype(np.float64)
        other = counts.argmax(axis=1) != labels
        if other.mean() > 1 - _ALIKE:
            raise self._refuse(f"most people chose another class on {other.mean():.0%} of the images")
        return {
            "entropy of people's votes": vote_entropy(counts),
            "votes against the label": 1 - counts[np.arange(len(ids)), labels] / counts.sum(axis=1),
            "most people say another class": other,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Relabelled(Judgements):
    """Labels that people gave again, such as CIFAR-10N of the training images.

    Args:
        labels: the data set's own, int64 [N].
        others: by name, each int64 [N].
    """

    labels: Array
    others: dict[str, Array]

    def targets(self, ids: Array, labels: Array) -> dict[str, Array]:
        """How many of the annotators differ from the label, and whether each combination of them does."""
        if ids.max() >= len(self.labels) or np.any(self.labels[ids] != labels):
            raise self._refuse(f"the {len(self.labels)} labels are not those of the images")
        differ = {name: other[ids] != labels for name, other in self.others.items()}
        single = [value for name, value in differ.items() if name.startswith("random_label")]
        found: dict[str, Array] = {}
        if single:
            found[f"annotators who differ, of {len(single)}"] = np.stack(single).sum(axis=0, dtype=np.float64)
        return found | {f"{name} differs": value for name, value in differ.items() if not name.startswith("random_")}


@dataclass(frozen=True, kw_only=True, eq=False)
class Checked(Judgements):
    """Labels that a program suspected and people looked at, such as the label errors of cleanlab.

    Args:
        ids: of the images that were looked at, int64 [n].
        labels: that they have, int64 [n].
        kept: share of the people who kept the label, float64 [n].
    """

    ids: Array
    labels: Array
    kept: Array

    def targets(self, ids: Array, labels: Array) -> dict[str, Array]:
        """Share of people against the label where it was looked at, and whether it is wrong: half kept it at most."""
        _, mine, theirs = np.intersect1d(ids, self.ids, return_indices=True)
        if not len(mine):
            raise self._refuse("none of the images was looked at")
        if np.any(labels[mine] != self.labels[theirs]):
            raise self._refuse("the labels that were looked at are not those of the images")
        against = np.full(len(ids), np.nan)
        against[mine] = 1 - self.kept[theirs]
        return {"people against a suspected label": against, "label errors": against >= 0.5}


def read_judgements(path: Path) -> Judgements:
    """A file by what is in it; nothing is unpickled.

    An .npz with `counts` [N,K], of the test images; an .npz with `clean_label` and `aggre_label`, `worse_label` or
    `random_label1` ..., each [N], of the training images; or a .json with a list of `id`, `given_original_label` and
    `mturk` {given, guessed ...}, of the test images. All are in the official order of the images.

    Raises:
        DataError: it is missing, damaged, or none of these.
    """
    if not path.is_file():
        raise DataError(f"{path} not found: give a file of people's votes, labels or checks, .npz or .json")
    with reading(path):
        if path.suffix == ".json":
            return _checked(path)
        arrays = read_arrays(path.read_bytes())
        if "counts" in arrays:
            return _votes(path, arrays["counts"])
        if "clean_label" in arrays:
            return _relabelled(path, arrays)
        raise DataError(f"{path} holds {', '.join(arrays) or 'nothing'}: expected counts, or clean_label and others")


def _votes(path: Path, counts: Array) -> Votes:
    if counts.ndim != 2 or counts.dtype.kind not in "iu" or np.any(counts < 0) or np.any(counts.sum(axis=1) == 0):
        raise DataError(f"{path}: counts are {counts.dtype} {list(counts.shape)}, expected votes [N,K], some an image")
    return Votes(file=path, split="test", counts=counts)


def _relabelled(path: Path, arrays: dict[str, Array]) -> Relabelled:
    labels = arrays["clean_label"]
    others = {name: each for name, each in arrays.items() if name.startswith(("aggre_", "worse_", "random_label"))}
    for name, each in {"clean_label": labels, **others}.items():
        if each.ndim != 1 or each.dtype.kind not in "iu" or len(each) != len(labels):
            raise DataError(f"{path}: {name} is {each.dtype} {list(each.shape)}, expected labels [{len(labels)}]")
    if not others:
        raise DataError(f"{path} holds clean_label alone: expected aggre_label, worse_label or random_label1 beside it")
    others = {name: each.astype(np.int64) for name, each in others.items()}
    return Relabelled(file=path, split="train", labels=labels.astype(np.int64), others=others)


def _checked(path: Path) -> Checked:
    rows = json.loads(path.read_bytes())
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a list of images that people looked at")
    ids, labels, kept = [], [], []
    for row in rows:
        votes = {name: int(number) for name, number in row["mturk"].items()}
        ids.append(int(row["id"]))
        labels.append(int(row["given_original_label"]))
        kept.append(votes["given"] / sum(votes.values()))
    if len(set(ids)) < len(ids):
        raise DataError(f"{path}: an image is there twice")
    return Checked(file=path, split="test", ids=np.array(ids), labels=np.array(labels), kept=np.array(kept))
