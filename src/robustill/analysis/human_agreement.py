"""Agreement of scores of hardness with human labels: is an image hard for a network where it is hard for people?"""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.difficulty import evaluation_hardness, training_hardness
from robustill.analysis.human_labels import read_human_labels
from robustill.analysis.runs import FinishedRun, read_run
from robustill.analysis.statistics import Correlation, Detection, correlation, detection
from robustill.core.errors import DataError
from robustill.core.files import reading
from robustill.runs.records import Records

Array = NDArray[Any]
_NO_SCORES = ("id", "label", "flipped")


@dataclass(frozen=True, kw_only=True, eq=False)
class HardnessScores:
    """Scores of hardness of some images, from one source.

    Args:
        source: description of the source.
        split: the split that the images belong to; None if it is not known.
        ids: ids in the data set's own order, int64 [n].
        labels: int64 [n], without those that are known to be noise.
        values: by name, float64 [n]; larger is harder.
    """

    source: str
    split: str | None
    ids: Array
    labels: Array
    values: dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of one score with one target from human labels.

    Args:
        file: name of the file of human labels.
        target: name of the target.
        source: source of the score.
        score: name of the score.
        correlation: rank correlation; None if the target is boolean.
        detection: how well the score separates the images for which the target is True; None if it is not boolean.
    """

    file: str
    target: str
    source: str
    score: str
    correlation: Correlation | None
    detection: Detection | None


def check_difficulty(target: Path, files: Sequence[Path]) -> list[Agreement]:
    """Compare every score of a run, an evaluation or a table with every target of the files of human labels.

    Samples whose label a run flipped are left out: they are hard because of the noise.

    Args:
        target: a run directory, for its training dynamics and its evaluations; the folder of an evaluation; or a .csv
            with the columns id, label, scores (larger is harder), and optionally flipped, as a study of memorisation
            writes it.
        files: as `read_human_labels` takes them.

    Raises:
        RobustillError: a file is missing, damaged, or of other images.
    """
    if not files:
        raise DataError("no file of human labels: give --uncertainty FILE")
    agreements: list[Agreement] = []
    all_scores = list(_scores_of(target))
    for file in files:
        human = read_human_labels(file)
        matching = [scores for scores in all_scores if scores.split in (None, human.split)]
        if not matching:
            raise DataError(
                f"{target} has no score of {human.split} images, which {file} is of: "
                f"robustill evaluate {shlex.quote(str(target))} --split {human.split}"
            )
        for scores in matching:
            for name, values in human.targets(scores.ids, scores.labels).items():
                agreements += _agreements(file.name, name, values, scores)
    return agreements


def _agreements(file: str, target: str, values: Array, scores: HardnessScores) -> Iterator[Agreement]:
    is_boolean = values.dtype == np.bool_
    for name, score in scores.values.items():
        yield Agreement(
            file=file,
            target=target,
            source=scores.source,
            score=name,
            correlation=None if is_boolean else correlation(score, values),
            detection=detection(score, values) if is_boolean else None,
        )


def _scores_of(target: Path) -> Iterator[HardnessScores]:
    if target.suffix == ".csv":
        yield _read_table(target)
    elif (target / "summary.json").is_file():
        records = Records.load(target)
        yield _evaluation_scores(records, str(records.conditions.get("split")), target.resolve().name)
    else:
        yield from _run_scores(read_run(target, target.resolve().name))


def _run_scores(run: FinishedRun) -> Iterator[HardnessScores]:
    """Yield the scores from the run's training dynamics and from its first evaluation of training and test images."""
    if run.dynamics is not None:
        dynamics, unflipped = run.dynamics, ~run.dynamics.flipped
        yield HardnessScores(
            source=f"training of {run.name}",
            split="train",
            ids=dynamics.ids[unflipped],
            labels=dynamics.labels[unflipped],
            values={name: value[unflipped] for name, value in training_hardness(dynamics).items()},
        )
    for split in ("train", "test"):
        evaluations = [each for each in run.evaluations if each.split == split]
        if evaluations:
            first = evaluations[0]
            yield _evaluation_scores(first.records, split, f"{run.name} {first.name}")


def _evaluation_scores(records: Records, split: str, source: str) -> HardnessScores:
    return HardnessScores(
        source=source, split=split, ids=records.index, labels=records.label, values=evaluation_hardness(records)
    )


def _read_table(path: Path) -> HardnessScores:
    """Read a table of scores.

    Raises:
        DataError: the file is missing, damaged, or lacks a column, or every label is flipped.
    """
    if not path.is_file():
        raise DataError(f"{path} not found: give a run directory, or a .csv with the columns id, label and scores")
    with reading(path), path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
        names = list(rows[0]) if rows else []
        if not {"id", "label"} < set(names):
            columns_found = ", ".join(names) or "none"
            raise DataError(f"{path} has the columns {columns_found}: expected id, label and scores")
        columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
    is_whole = all(_are_whole_numbers(columns[name]) for name in ("id", "label"))
    if not is_whole or len(set(columns["id"])) < len(rows):
        raise DataError(f"{path}: expected every id once, and whole numbers from 0 for id and label")
    ids, labels = columns["id"].astype(np.int64), columns["label"].astype(np.int64)
    unflipped = ~columns.get("flipped", np.zeros(len(ids))).astype(np.bool_)
    if not unflipped.any():
        raise DataError(f"{path}: every label is flipped: expected images with their true label")
    values = {}
    for name, column in columns.items():
        if name not in _NO_SCORES and not name.endswith("_standard_error"):
            values[name] = column[unflipped]
    return HardnessScores(source=path.name, split=None, ids=ids[unflipped], labels=labels[unflipped], values=values)


def _are_whole_numbers(column: Array) -> bool:
    # Written so that nan is refused too; float64 holds every whole number below 2^53.
    return bool(np.all((column >= 0) & (column < 2**53) & (column == np.floor(column))))


def agreement_rows(agreements: Sequence[Agreement]) -> Iterator[Sequence[object]]:
    """Yield the rows of a table: a header, then one row for each agreement, every number in full."""
    yield [
        *("file", "target", "source", "score", "images", "spearman", "spearman_low", "spearman_high", "flagged"),
        *("auroc", "auroc_low", "auroc_high", "average_precision"),
    ]
    for each in agreements:
        names: list[object] = [each.file, each.target, each.source, each.score]
        if each.correlation is not None:
            ranks = each.correlation
            yield [*names, ranks.num_samples, ranks.rho, ranks.low, ranks.high, *[None] * 5]
        if each.detection is not None:
            flags = each.detection
            area = [flags.auroc, flags.low, flags.high, flags.average_precision]
            yield [*names, flags.num_samples, *[None] * 3, flags.num_flagged, *area]
