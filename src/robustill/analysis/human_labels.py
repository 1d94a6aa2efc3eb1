"""Published human labels of images: votes, labels of several annotators, and reviews of suspected labels."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robustill.core.archives import read_arrays
from robustill.core.errors import DataError
from robustill.core.files import reading

Array = NDArray[Any]
# Share of the images on which most votes must agree with the label; below it, the votes are of other images.
_MIN_AGREEMENT = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class HumanLabels(ABC):
    """The content of one file of human labels.

    Args:
        file: the file.
        split: the split that its images belong to.
    """

    file: Path
    split: Literal["train", "test"]

    @abstractmethod
    def targets(self, ids: Array, labels: Array) -> dict[str, Array]:
        """Return what scores of hardness are compared with, by name.

        Args:
            ids: ids of images in the data set's own order, int [n].
            labels: labels of these images, int [n].

        Returns:
            Each float64 [n], where larger is harder and nan is unknown, or bool [n].

        Raises:
            DataError: the file is of other images.
        """

    def _mismatch(self, reason: str) -> DataError:
        return DataError(f"{self.file}: {reason}: it is of another data set, split or order of the images")


@dataclass(frozen=True, kw_only=True, eq=False)
class Votes(HumanLabels):
    """How many people chose each class, such as CIFAR-10H of the test images.

    Args:
        counts: int [N,K].
    """

    counts: Array

    def targets(self, ids: Array, labels: Array) -> dict[str, Array]:
        """Return the entropy of the votes, the share against the label, and whether most chose another class."""
        if ids.max() >= len(self.counts) or labels.max() >= self.counts.shape[1]:
            raise self._mismatch(f"votes of {len(self.counts)} images and {self.counts.shape[1]} classes")
        counts = self.counts[ids].astype(np.float64)
        most_differ = counts.argmax(axis=1) != labels
        if most_differ.mean() > 1 - _MIN_AGREEMENT:
            raise self._mismatch(f"most people chose another class on {most_differ.mean():.0%} of the images")
        share_of_label = counts[np.arange(len(ids)), labels] / counts.sum(axis=1)
        return {
            "entropy of people's votes": vote_entropy(counts),
            "votes against the label": 1 - share_of_label,
            "most people say another class": most_differ,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotatorLabels(HumanLabels):
    """Labels by further annotators, such as CIFAR-10N of the training images.

    Args:
        labels: the data set's own labels, int64 [N].
        others: the annotators' labels and combinations of them, by name, each int64 [N].
    """

    labels: Array
    others: dict[str, Array]

    def targets(self, ids: Array, labels: Array) -> dict[str, Array]:
        """Return how many annotators differ from the label, and whether each combination of them does."""
        if ids.max() >= len(self.labels) or np.any(self.labels[ids] != labels):
            raise self._mismatch(f"the {len(self.labels)} labels are not those of the images")
        differs = {name: other[ids] != labels for name, other in self.others.items()}
        annotators = [value for name, value in differs.items() if name.startswith("random_label")]
        targets: dict[str, Array] = {}
        if annotators:
            targets[f"annotators who differ, of {len(annotators)}"] = np.stack(annotators).sum(axis=0, dtype=np.float64)
        for name, value in differs.items():
            if not name.startswith("random_"):
                targets[f"{name} differs"] = value
        return targets


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelReviews(HumanLabels):
    """Reviews by people of labels that a program suspected, such as the label errors of cleanlab.

    Args:
        ids: ids of the reviewed images, int64 [n].
        labels: their labels, int64 [n].
        approval: share of the people who confirmed the label, float64 [n].
    """

    ids: Array
    labels: Array
    approval: Array

    def targets(self, ids: Array, labels: Array) -> dict[str, Array]:
        """Return the share of people against each reviewed label, and whether at least half of them are."""
        _, rows, reviews = np.intersect1d(ids, self.ids, return_indices=True)
        if not len(rows):
            raise self._mismatch("none of the images was reviewed")
        if np.any(labels[rows] != self.labels[reviews]):
            raise self._mismatch("the reviewed labels are not those of the images")
        against = np.full(len(ids), np.nan)
        against[rows] = 1 - self.approval[reviews]
        return {"people against a suspected label": against, "label errors": against >= 0.5}


def vote_entropy(counts: Array) -> Array:
    """Return −Σ_k p_k log p_k of the share p_k of people who chose class k, in nats, float64 [N].

    Args:
        counts: votes, [N,K], at least one for each image.

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


def read_human_labels(path: Path) -> HumanLabels:
    """Read a file of human labels; its content decides which kind. Nothing is unpickled.

    An .npz with `counts` [N,K] is of the test images; an .npz with `clean_label` and `aggre_label`, `worse_label` or
    `random_label1` ..., each [N], of the training images; a .json with a list of `id`, `given_original_label` and
    `mturk` {given, guessed ...} of the test images. All are in the official order of the images.

    Raises:
        DataError: the file is missing, damaged, or none of these.
    """
    if not path.is_file():
        raise DataError(f"{path} not found: give a file of people's votes, labels or reviews, .npz or .json")
    with reading(path):
        if path.suffix == ".json":
            return _read_reviews(path)
        arrays = read_arrays(path.read_bytes())
        if "counts" in arrays:
            return _read_votes(path, arrays["counts"])
        if "clean_label" in arrays:
            return _read_annotators(path, arrays)
        content = ", ".join(arrays) or "nothing"
        raise DataError(f"{path} contains {content}: expected counts, or clean_label and others")


def _read_votes(path: Path, counts: Array) -> Votes:
    if counts.ndim != 2 or counts.dtype.kind not in "iu" or np.any(counts < 0) or np.any(counts.sum(axis=1) == 0):
        shape = list(counts.shape)
        raise DataError(f"{path}: counts are {counts.dtype} {shape}, expected votes [N,K], at least one for each image")
    return Votes(file=path, split="test", counts=counts)


def _read_annotators(path: Path, arrays: dict[str, Array]) -> AnnotatorLabels:
    labels = arrays["clean_label"]
    others = {name: each for name, each in arrays.items() if name.startswith(("aggre_", "worse_", "random_label"))}
    for name, each in {"clean_label": labels, **others}.items():
        if each.ndim != 1 or each.dtype.kind not in "iu" or len(each) != len(labels):
            raise DataError(f"{path}: {name} is {each.dtype} {list(each.shape)}, expected labels [{len(labels)}]")
    if not others:
        raise DataError(
            f"{path} contains clean_label alone: expected aggre_label, worse_label or random_label1 beside it"
        )
    others = {name: each.astype(np.int64) for name, each in others.items()}
    return AnnotatorLabels(file=path, split="train", labels=labels.astype(np.int64), others=others)


def _read_reviews(path: Path) -> LabelReviews:
    rows = json.loads(path.read_bytes())
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a list of reviewed images")
    ids, labels, approval = [], [], []
    for row in rows:
        votes = {name: int(number) for name, number in row["mturk"].items()}
        ids.append(int(row["id"]))
        labels.append(int(row["given_original_label"]))
        approval.append(votes["given"] / sum(votes.values()))
    if len(set(ids)) < len(ids):
        raise DataError(f"{path}: an image is listed twice, expected each once")
    return LabelReviews(
        file=path, split="test", ids=np.array(ids), labels=np.array(labels), approval=np.array(approval)
    )
