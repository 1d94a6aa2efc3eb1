"""The pictures that evaluations kept, with what every run says of each, for a reader who filters them on the page."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from robustill.analysis.difficulty import BINS, RADIUS_BINS, radius_bins
from robustill.analysis.runs import Evaluation, FinishedRun
from robustill.report.comparison import Comparison
from robustill.report.dynamics import Beside
from robustill.report.gallery import amplification, in_turn, outcome, png_uri, shown_size
from robustill.runs.records import Records

if TYPE_CHECKING:
    from markupsafe import Markup


_BUDGET = 11_000_000
"""Characters of pictures; the page of a full CIFAR-10 run stays under 15 MB and opens at once."""

_TOP = 3
"""Classes of either image whose probabilities are shown, beside the label."""

Json = dict[str, Any]
Options = list[tuple[Any, str]]
"""Of a filter: what the script compares, and what the reader sees."""


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """The filters that have something to choose from, and the data that they choose from."""

    sets: Options
    """which images under which attack; images of two sets are not compared"""
    runs: Options
    """those that kept pictures, by their number on the page"""
    first: int
    """the student of the first comparison, or the first run with pictures"""
    second: int | None
    """its baseline, or the next"""
    who: Options
    """of these two is right under attack"""
    outcomes: Options
    classes: Options
    """that a picture is of"""
    bins: Options
    """of difficulty; empty where it is known of no picture"""
    reference: str
    """the run by whose evaluation other images than those of training are difficult"""
    kept: int
    """pictures that the evaluations hold"""
    shown: int
    """pictures on the page"""
    data: Markup
    """JSON that neither ends a script element nor begins another"""

    @property
    def asked(self) -> str:
        """Whose outcome is filtered, in words."""
        return "the first run" if len(self.runs) > 2 else dict(self.runs)[self.first]


@dataclass(frozen=True, kw_only=True)
class _Set:
    """Evaluations of the same images under the same attack, by the number of the run on the page."""

    title: str
    members: dict[int, Evaluation]

    @property
    def ids(self) -> list[int]:
        """Every image of which a picture was kept, once."""
        return list(dict.fromkeys(i for each in self.members.values() for i in _examples(each.records)))


def explorer(
    runs: Sequence[FinishedRun], comparisons: Sequence[Comparison], beside: Sequence[Beside]
) -> Explorer | None:
    """What the page's explorer needs; None where no evaluation kept a picture.

    Args:
        runs: on the page.
        comparisons: of them; the first one says who is asked for first.
        beside: the reference of difficulty first.
    """
    sets = list(_sets(runs))
    if not sets:
        return None
    classes = list(dict.fromkeys(name for each in sets for e in each.members.values() for name in e.records.classes))
    first, second = _pair(runs, comparisons, sorted({number for each in sets for number in each.members}))
    candidates = list(_candidates(runs, sets, second if second is not None else first, beside))
    images = _chosen(candidates, sets, classes)
    names = {number: runs[number].name for number in sorted({number for each in sets for number in each.members})}
    labels = {image["label"] for image in images}
    found = {said["outcome"] for image in images for said in image["runs"].values()}
    data = {
        "sets": [_frame(each) for each in sets],
        "runs": names,
        "classes": classes,
        "first": first,
        "second": second,
        "images": images,
    }
    return Explorer(
        sets=[(number, each.title) for number, each in enumerate(sets)],
        runs=list(names.items()),
        first=first,
        second=second,
        who=[]
        if second is None
        else _who(
            *(names[each] if len(names) < 3 else word for each, word in ((first, "the first"), (second, "the second")))
        ),
        outcomes=[(name, name) for name in _OUTCOMES if name in found],
        classes=[(number, name) for number, name in enumerate(classes) if number in labels],
        bins=[(name, name) for name in (*BINS, *RADIUS_BINS) if any(image["bin"] == name for image in images)],
        reference=names[second if second is not None else first],
        kept=len(candidates),
        shown=len(images),
        data=_script_safe(data),
    )


_OUTCOMES = ("held", "fooled", "wrong without attack")


def _pair(runs: Sequence[FinishedRun], comparisons: Sequence[Comparison], numbers: list[int]) -> tuple[int, int | None]:
    """Student and baseline of the first comparison; without one, the first runs that there are."""
    paths = [run.path for each in comparisons[:1] for run in (each.student, each.baseline)]
    compared = [number for path in paths for number in numbers if runs[number].path == path]
    first, second, *_ = [*compared, *(number for number in numbers if number not in compared), None]
    assert first is not None
    return first, second


def _who(first: str, second: str) -> Options:
    return [("both", "both"), ("first", f"only {first}"), ("second", f"only {second}"), ("neither", "neither")]


def _script_safe(data: Json) -> Markup:
    from markupsafe import Markup

    # Without a "<" there is neither "</script" nor "<!--"; the two line ends are none in JavaScript's older strings.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _sets(runs: Sequence[FinishedRun]) -> Iterator[_Set]:
    """A run's first evaluation with pictures stands for it in a set; sets of the runs' main evaluations come first."""
    found: dict[tuple[Any, ...], dict[int, Evaluation]] = {}
    for number, run in enumerate(runs):
        for evaluation in run.evaluations:
            if _examples(evaluation.records):
                known = evaluation.conditions
                key = (
                    str(known.get("data", run.get("data.name"))),
                    evaluation.split,
                    str(known.get("data_fingerprint")),
                    evaluation.threat,
                    evaluation.attack_settings,
                )
                found.setdefault(key, {}).setdefault(number, evaluation)
    for key, members in sorted(
        found.items(), key=lambda pair: all(runs[number].main is not each for number, each in pair[1].items())
    ):
        data, split, _, threat, attack = key
        yield _Set(title=f"{data}, {split} images, {threat or 'threat not recorded'}, {attack}", members=members)


def _frame(each: _Set) -> Json:
    """What all pictures of a set share."""
    records = next(iter(each.members.values())).records
    assert records.example_clean is not None
    width, height = shown_size(records.example_clean[0])
    return {"factor": _factor(each), "width": width, "height": height}


def _factor(each: _Set) -> float:
    return min(amplification(evaluation.records) for evaluation in each.members.values())


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """An image of which a picture was kept: what is known before any picture is drawn."""

    set: int
    id: int
    label: str
    bin: str | None
    runs: tuple[int, ...]
    """those that kept its picture, by their number on the page"""
    outcomes: tuple[str, ...]

    @property
    def kind(self) -> Hashable:
        """What the reader filters by: every kind is to be found on the page."""
        return self.set, self.label, self.bin, self.runs, self.outcomes


def _candidates(
    runs: Sequence[FinishedRun], sets: Sequence[_Set], reference: int, beside: Sequence[Beside]
) -> Iterator[_Candidate]:
    """The reference is the run by whose evaluation an image is difficult."""
    for number, each in enumerate(sets):
        rows = {run: _rows(evaluation.records) for run, evaluation in each.members.items()}
        examples = {run: _examples(evaluation.records) for run, evaluation in each.members.items()}
        bins = _bins(runs, each, reference, beside)
        for index in each.ids:
            having = [run for run in each.members if index in examples[run]]
            shown = each.members[having[0]].records
            label, clean = _label(shown, rows[having[0]][index]), _clean(shown, examples[having[0]][index])
            # Two data sets may share a name; they never share a picture.
            same = [
                run
                for run in having
                if _label(each.members[run].records, rows[run][index]) == label
                and np.array_equal(_clean(each.members[run].records, examples[run][index]), clean)
            ]
            yield _Candidate(
                set=number,
                id=index,
                label=label,
                bin=bins.get(index),
                runs=tuple(same),
                outcomes=tuple(outcome(each.members[run].records, rows[run][index]) for run in same),
            )


def _chosen(candidates: Sequence[_Candidate], sets: Sequence[_Set], classes: Sequence[str]) -> list[Json]:
    """As many as the page has room for, every kind in turn, in the order of the candidates."""
    position = {name: k for k, name in enumerate(classes)}
    factors = [_factor(each) for each in sets]
    rows = [{run: _rows(e.records) for run, e in each.members.items()} for each in sets]
    examples = [{run: _examples(e.records) for run, e in each.members.items()} for each in sets]
    found: dict[int, Json] = {}
    spent = 0
    for place in in_turn([each.kind for each in candidates]):
        each = candidates[place]
        members = sets[each.set].members
        first = each.runs[0]
        image = {
            "set": each.set,
            "id": each.id,
            "label": position[each.label],
            "bin": each.bin,
            "clean": _base64(_clean(members[first].records, examples[each.set][first][each.id])),
            "runs": {
                run: _said(
                    members[run].records,
                    rows[each.set][run][each.id],
                    examples[each.set][run][each.id],
                    factors[each.set],
                    position,
                )
                for run in each.runs
            },
        }
        spent += sum(len(text) for text in _pictures(image))
        if spent > _BUDGET:
            break
        found[place] = image
    return [found[place] for place in sorted(found)]


def _said(records: Records, row: int, place: int, factor: float, position: dict[str, int]) -> Json:
    """One run about one image; probabilities in thousandths."""
    assert records.example_clean is not None
    assert records.example_adversarial is not None
    adversarial = records.example_adversarial[place]
    clean_p, adversarial_p = records.clean_probabilities[row], records.adversarial_probabilities[row]
    top = {int(records.label[row]), *_top(clean_p), *_top(adversarial_p)}
    return {
        "outcome": outcome(records, row),
        "adversarial": _base64(adversarial),
        "change": _base64(0.5 + factor * (adversarial - records.example_clean[place])),
        "top": [
            [position[records.classes[k]], round(1000 * float(clean_p[k])), round(1000 * float(adversarial_p[k]))]
            for k in sorted(top, key=lambda k: -adversarial_p[k])
        ],
    }


def _top(probabilities: Any) -> list[int]:
    best: list[int] = np.argsort(-probabilities, kind="stable")[:_TOP].tolist()
    return best


def _bins(runs: Sequence[FinishedRun], found: _Set, reference: int, beside: Sequence[Beside]) -> dict[int, str]:
    """Difficulty by id: of images that the reference of the data maps was trained on, from its training.

    Of others by the radius at which the reference here is broken, or the first run where it was not asked.
    """
    number, evaluation = next(
        (pair for pair in found.members.items() if pair[0] == reference), next(iter(found.members.items()))
    )
    if evaluation.split == "train":
        if not beside or runs[number].get("data.name") != beside[0].run.get("data.name"):
            return {}
        return {int(i): BINS[code] for i, code in zip(beside[0].ids, beside[0].bins, strict=True)}
    if evaluation.threat is None:
        return {}
    records = evaluation.records
    return {int(i): RADIUS_BINS[code] for i, code in zip(records.index, radius_bins(records), strict=True)}


def _examples(records: Records) -> dict[int, int]:
    """Position of the picture of each image that has one."""
    return {} if records.example_index is None else {int(each): i for i, each in enumerate(records.example_index)}


def _rows(records: Records) -> dict[int, int]:
    """Row of each image."""
    return {int(each): row for row, each in enumerate(records.index)}


def _label(records: Records, row: int) -> str:
    return str(records.classes[records.label[row]])


def _clean(records: Records, place: int) -> Any:
    assert records.example_clean is not None
    return records.example_clean[place]


def _base64(image: Any) -> str:
    return png_uri(image).partition(",")[2]


def _pictures(image: Json) -> Iterator[str]:
    yield image["clean"]
    for said in image["runs"].values():
        yield from (said["adversarial"], said["change"])
