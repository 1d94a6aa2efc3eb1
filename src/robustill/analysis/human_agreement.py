"""Is what a network finds hard what people find hard? Scores of a run's images beside files of what people said."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.difficulty import evaluation_hardness, training_hardness
from robustill.analysis.human_labels import Detection, detection, read_judgements
from robustill.analysis.runs import FinishedRun, read_run
from robustill.analysis.statistics import Correlation, correlation
from robustill.core.errors import DataError
from robustill.core.files import reading
from robustill.runs.records import Records

Array = NDArray[Any]
_NO_SCORES = ("id", "label", "flipped")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Of some images, from one source.

    Args:
        source: in words.
        split: whose images; None is not known.
        ids: in the data set's own order, int64 [n].
        labels: int64 [n], none of them known to be noise.
        values: by name, float64 [n]; larger is harder.
    """

    source: str
    split: str | None
    ids: Array
    labels: Array
    values: dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of one score with one thing that people said.

    Args:
        file: of what people said.
        target: what they said.
        source: of the score.
        score: its name.
        correlation: of ranks; None where people said yes or no.
        detection: of the images they said yes of; None where they said more than that.
    """

    file: str
    target: str
    source: str
    score: str
    correlation: Correlation | None
    detection: Detection | None


def check_difficulty(target: Path, files: Sequence[Path]) -> list[Agreement]:
    """Compare every score of a run, or of a table, with everything that the files say.

    Samples whose label a run flipped are left out: what is hard about them is the noise.

    Args:
        target: a run directory, for its records of training and its evaluations; the folder of an evaluation; or a .csv
            with the columns id, label, scores (larger is harder), and perhaps flipped, as a study of memorisation
            writes it.
        files: as `read_judgements` takes them.

    Raises:
        RobustillError: something is missing, damaged, or of other images.
    """
    if not files:
        raise DataError("no file of what people said: give --uncertainty FILE")
    found: list[Agreement] = []
    known = list(_of_target(target))
    for file in files:
        said = read_judgements(file)
        scores = [each for each in known if each.split in (None, said.split)]
        if not scores:
            raise DataError(
                f"{target} has no score of {said.split} images, which {file} is of: "
                f"robustill evaluate {target} --split {said.split}"
            )
        for each in scores:
            for name, values in said.targets(each.ids, each.labels).items():
                found += _agreements(file.name, name, values, each)
    return found


def _agreements(file: str, target: str, values: Array, scores: Scores) -> Iterator[Agreement]:
    for name, score in scores.values.items():
        yes_or_no = values.dtype == np.bool_
        yield Agreement(
            file=file,
            target=target,
            source=scores.source,
            score=name,
            correlation=None if yes_or_no else correlation(score, values),
            detection=detection(score, values) if yes_or_no else None,
        )


def _of_target(target: Path) -> Iterator[Scores]:
    if target.suffix == ".csv":
        yield _table(target)
    elif (target / "summary.json").is_file():
        records = Records.load(target)
        yield _of_evaluation(records, str(records.conditions.get("split")), target.resolve().name)
    else:
        yield from _of_run(read_run(target, target.resolve().name))


def _of_run(run: FinishedRun) -> Iterator[Scores]:
    """The run's records of training, and its first evaluation of training and of test images."""
    if run.dynamics is not None:
        dynamics, true = run.dynamics, ~run.dynamics.flipped
        yield Scores(
            source=f"training of {run.name}",
            split="train",
            ids=dynamics.ids[true],
            labels=dynamics.labels[true],
            values={name: value[true] for name, value in training_hardness(dynamics).items()},
        )
    for split in ("train", "test"):
        evaluation = next((each for each in run.evaluations if each.split == split), None)
        if evaluation is not None:
            yield _of_evaluation(evaluation.records, split, f"{run.name} {evaluation.name}")


def _of_evaluation(records: Records, split: str, source: str) -> Scores:
    return Scores(
        source=source, split=split, ids=records.index, labels=records.label, values=evaluation_hardness(records)
    )


def _table(path: Path) -> Scores:
    if not path.is_file():
        raise DataError(f"{path} not found: give a run directory, or a .csv with the columns id, label and scores")
    with reading(path), path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
        names = list(rows[0]) if rows else []
        if not {"id", "label"} < set(names):
            raise DataError(f"{path} has the columns {', '.join(names) or 'none'}: expected id, label and scores")
        columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
    whole = [columns[name] for name in ("id", "label")]
    # Written so that nan fails it too.
    if not all(np.all((each >= 0) & (each < 2**53) & (each == np.floor(each))) for each in whole) or len(
        set(whole[0])
    ) < len(rows):
        raise DataError(f"{path}: expected every id once, and whole numbers from 0 for id and label")
    ids, labels = (each.astype(np.int64) for each in whole)
    true = ~columns.get("flipped", np.zeros(len(ids))).astype(np.bool_)
    if not true.any():
        raise DataError(f"{path}: every label is flipped: expected images whose label is their own")
    values = {
        name: each[true]
        for name, each in columns.items()
        if name not in _NO_SCORES and not name.endswith("_standard_error")
    }
    return Scores(source=path.name, split=None, ids=ids[true], labels=labels[true], values=values)


def agreement_rows(found: Sequence[Agreement]) -> Iterator[Sequence[object]]:
    """One row for each, every number in full, with a head."""
    yield [
        *("file", "target", "source", "score", "images", "spearman", "spearman_low", "spearman_high", "flagged"),
        *("auroc", "auroc_low", "auroc_high", "average_precision"),
    ]
    for each in found:
        start: list[object] = [each.file, each.target, each.source, each.score]
        if each.correlation is not None:
            own = each.correlation
            yield [*start, own.num_samples, own.rho, own.low, own.high, *[None] * 5]
        if each.detection is not None:
            told = each.detection
            area = [told.auroc, told.low, told.high, told.average_precision]
            yield [*start, told.num_samples, *[None] * 3, told.found, *area]
