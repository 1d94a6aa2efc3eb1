"""A ranking of candidate teachers: measures, predicted gains and advice, and its file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.gain_model import GainModel, Prediction
from robustill.analysis.teacher_measures import Baselines, Measures, features
from robustill.core.checksums import parse_checksummed, with_checksum
from robustill.core.errors import RunError
from robustill.core.files import write_text
from robustill.core.formatting import points
from robustill.core.links import read_regular_file

NAME = "ranking.json"
_MEND = "run robustill teachers rank again"


@dataclass(frozen=True, kw_only=True)
class RankedTeacher:
    """One candidate.

    Args:
        name: its specification, or those of an ensemble, separated by commas.
        measures: what was measured of it.
        predictions: the predicted gain in robust accuracy over PGD-AT with averaged weights, by α.
        disagreement: mean share of images with another top label than each other candidate.
        networks: sha256, architecture and training of each of its networks.
    """

    name: str
    measures: Measures
    predictions: Mapping[float, Prediction]
    disagreement: float
    networks: Sequence[Mapping[str, Any]]

    @property
    def alpha(self) -> float:
        """The suggested α of AKD: the one whose interval has the highest lower end, since a bad teacher costs more."""
        return max(self.predictions, key=lambda alpha: self.predictions[alpha].low)

    @property
    def prediction(self) -> Prediction:
        """The prediction at the suggested α."""
        return self.predictions[self.alpha]


@dataclass(frozen=True, kw_only=True)
class TeacherRanking:
    """Candidates in the order of their predicted gains, the best first.

    Args:
        teachers: at least two.
        disagreement: of each pair of candidates, in the order of `teachers`, float64 [C,C].
        baselines: the measures of the cheap networks that the candidates were compared with.
        conditions: student, data, threat, attack, baselines and evidence, JSON values.
        warnings: why the numbers may mean little, one line each.
    """

    teachers: tuple[RankedTeacher, ...]
    disagreement: NDArray[Any]
    baselines: Mapping[str, float]
    conditions: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """One sentence on whether averaged weights alone would do."""
        best = self.teachers[0]
        gain = best.prediction
        figures = f"{points(gain.gain)} points, {points(gain.low)} to {points(gain.high)}"
        if gain.high < 0:
            return f"EMA alone is the better choice: even the best candidate is predicted to cost accuracy ({figures})."
        if gain.includes_zero:
            return f"EMA alone may do: the predicted gain of the best candidate includes 0 ({figures})."
        return f"A teacher is predicted to be worth more than EMA alone: {best.name} ({figures})."

    def save(self, folder: Path) -> None:
        """Write ranking.json with everything, atomically."""
        page = {
            "teachers": [
                {
                    "name": each.name,
                    "measures": _without_nan(asdict(each.measures)),
                    "alpha": each.alpha,
                    "predictions": {f"{alpha:g}": asdict(value) for alpha, value in each.predictions.items()},
                    "disagreement": each.disagreement,
                    "networks": [dict(network) for network in each.networks],
                }
                for each in self.teachers
            ],
            "disagreement": self.disagreement.tolist(),
            "baselines": dict(self.baselines),
            "conditions": dict(self.conditions),
            "warnings": list(self.warnings),
            "advice": self.advice,
        }
        # The checksum is of the page as it will be read.
        plain = json.loads(json.dumps(page, allow_nan=False))
        write_text(folder / NAME, json.dumps(with_checksum(plain), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> TeacherRanking:
        """Read what `save` wrote.

        Raises:
            RunError: the file is missing, damaged, or of another format.
        """
        file = folder / NAME
        try:
            content = read_regular_file(file)
        except OSError as error:
            raise RunError(f"{file} cannot be read ({error.strerror}): {_MEND}") from None
        page = parse_checksummed(content, file, _MEND)
        try:
            return cls(
                teachers=tuple(_teacher(each) for each in page["teachers"]),
                disagreement=np.array(page["disagreement"], dtype=np.float64),
                baselines={str(key): float(value) for key, value in page["baselines"].items()},
                conditions=dict(page["conditions"]),
                warnings=tuple(map(str, page["warnings"])),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"{file} is not a ranking of teachers ({error}): {_MEND}") from None


def rank(
    candidates: Sequence[RankedTeacher],
    disagreement: NDArray[Any],
    baselines: Mapping[str, float],
    conditions: Mapping[str, Any],
    warnings: Sequence[str] = (),
) -> TeacherRanking:
    """Put candidates in the order of their predicted gains; equal ones keep their order.

    Args:
        candidates: in any order.
        disagreement: of each pair, in that order.
        baselines: see `TeacherRanking`.
        conditions: see `TeacherRanking`.
        warnings: see `TeacherRanking`.
    """
    order = sorted(range(len(candidates)), key=lambda number: -candidates[number].prediction.gain)
    return TeacherRanking(
        teachers=tuple(candidates[number] for number in order),
        disagreement=disagreement[np.ix_(order, order)],
        baselines=baselines,
        conditions=conditions,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def predict_gains(
    model: GainModel, measures: Sequence[Measures], baselines: Baselines
) -> list[dict[float, Prediction]]:
    """Return the predicted gain from each candidate, by α."""
    return model.predict(np.stack([features(each, baselines) for each in measures]))


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


_OPTIONAL = "members_disagree"


def _teacher(values: Mapping[str, Any]) -> RankedTeacher:
    measures = {
        key: float(value) if value is not None else None if key == _OPTIONAL else math.nan
        for key, value in values["measures"].items()
    }
    return RankedTeacher(
        name=str(values["name"]),
        measures=Measures(**measures),  # type: ignore[arg-type]
        predictions={float(alpha): Prediction(**each) for alpha, each in values["predictions"].items()},
        disagreement=float(values["disagreement"]),
        networks=list(values["networks"]),
    )
