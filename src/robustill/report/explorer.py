"""The example images of all evaluations with each run's predictions, which the reader filters on the page."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from robustill.analysis.difficulty import BINS, RADIUS_BINS, radius_bins
from robustill.analysis.evaluations import Evaluation
from robustill.analysis.runs import FinishedRun
from robustill.report.comparison import Comparison
from robustill.report.dynamics import AlignedRun
from robustill.report.gallery import MAX_PICTURES, amplification, image_outcome, png_size, png_uri, round_robin
from robustill.runs.records import Records

if TYPE_CHECKING:
    from markupsafe import Markup


_BUDGET = 1_000_000
"""Maximum number of characters of all pictures, so that a page of five runs stays under 3 MB."""

_TOP = 3
"""Number of most probable classes shown for either image, in addition to the label."""

_OUTCOMES = ("robust", "fooled", "wrong without attack")

Json = dict[str, Any]
Options = list[tuple[Any, str]]
"""Options of a filter as (value that the script compares, text that the reader sees)."""


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """The filters that offer a choice, and the data that they filter."""

    sets: Options
    """sets of images under one attack; images of different sets are not compared"""
    runs: Options
    """runs with example images, by their number on the page"""
    first: int
    """the student of the first comparison, or the first run with example images"""
    second: int | None
    """The baseline of the run, or the next run; None if there is only one."""
    robust: Options
    """which of these two runs is correct under attack; empty if there is only one"""
    outcomes: Options
    classes: Options
    """classes of the pictures on the page"""
    bins: Options
    """bins of difficulty; empty if the difficulty of no picture is recorded"""
    reference: str
    """the run whose evaluation defines the difficulty of images outside the training set"""
    num_saved: int
    """number of example images in the evaluations"""
    num_shown: int
    """number of example images on the page"""
    data: Markup
    """JSON that neither ends a script element nor begins another"""

    @property
    def first_name(self) -> str:
        """The run whose outcome is filtered, in words."""
        return "the first run" if len(self.runs) > 2 else dict(self.runs)[self.first]


@dataclass(frozen=True, kw_only=True)
class _ImageSet:
    """Evaluations of the same images under the same attack, by the number of the run on the page."""

    title: str
    evaluations: dict[int, Evaluation]

    @property
    def ids(self) -> list[int]:
        """The ids of all images with a picture in any of the evaluations, without duplicates."""
        return list(dict.fromkeys(i for each in self.evaluations.values() for i in _example_positions(each.records)))

    @property
    def factor(self) -> float:
        """Amplification of the perturbations, the same for all evaluations."""
        return min(amplification(evaluation.records) for evaluation in self.evaluations.values())

    def data(self) -> Json:
        """Return what all pictures of the set have in common."""
        records = next(iter(self.evaluations.values())).records
        assert records.example_clean is not None
        width, height = png_size(records.example_clean[0])
        return {"factor": self.factor, "width": width, "height": height}


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """An example image before any picture of it is drawn."""

    set: int
    id: int
    label: str
    bin: str | None
    runs: tuple[int, ...]
    """numbers on the page of the runs that saved its picture"""
    outcomes: tuple[str, ...]

    @property
    def kind(self) -> Hashable:
        """The values that the filters compare; the page shows an image of every kind if there is room."""
        return self.set, self.label, self.bin, self.runs, self.outcomes


def make_explorer(
    runs: Sequence[FinishedRun], comparisons: Sequence[Comparison], aligned: Sequence[AlignedRun]
) -> Explorer | None:
    """Collect the data of the page's explorer, which takes the place of the grids of images.

    Return None if no evaluation saved example images, or if so few large ones fit that a grid shows more.

    Args:
        runs: the runs on the page.
        comparisons: comparisons of these runs; the first one selects the two runs that are shown at first.
        aligned: the runs with training dynamics, the reference run first.
    """
    sets = list(_image_sets(runs))
    if not sets:
        return None
    all_records = [evaluation.records for each in sets for evaluation in each.evaluations.values()]
    classes = list(dict.fromkeys(name for records in all_records for name in records.classes))
    numbers = sorted({number for each in sets for number in each.evaluations})
    names = {number: runs[number].name for number in numbers}
    first, second = _initial_pair(runs, comparisons, numbers)
    reference = first if second is None else second
    candidates = list(_candidates(runs, sets, reference, aligned))
    images = _select_images(candidates, sets, classes)
    if len(images) < min(len(candidates), MAX_PICTURES):
        return None
    labels = {image["label"] for image in images}
    bins = {image["bin"] for image in images}
    outcomes = {result["outcome"] for image in images for result in image["runs"].values()}
    data = {
        "sets": [each.data() for each in sets],
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
        robust=_robust_options(names, first, second),
        outcomes=[(name, name) for name in _OUTCOMES if name in outcomes],
        classes=[(number, name) for number, name in enumerate(classes) if number in labels],
        bins=[(name, name) for name in (*BINS, *RADIUS_BINS) if name in bins],
        reference=names[reference],
        num_saved=len(candidates),
        num_shown=len(images),
        data=_script_safe(data),
    )


def _initial_pair(
    runs: Sequence[FinishedRun], comparisons: Sequence[Comparison], numbers: list[int]
) -> tuple[int, int | None]:
    """Return the student and the baseline of the first comparison; without one, the first two runs."""
    paths = [run.path for each in comparisons[:1] for run in (each.pairs[0].student, each.pairs[0].baseline)]
    compared = [number for path in paths for number in numbers if runs[number].path == path]
    ordered = [*compared, *(number for number in numbers if number not in compared)]
    return ordered[0], ordered[1] if len(ordered) > 1 else None


def _robust_options(names: dict[int, str], first: int, second: int | None) -> Options:
    if second is None:
        return []
    if len(names) > 2:
        # The reader may select any two of the runs.
        first_name, second_name = "the first", "the second"
    else:
        first_name, second_name = names[first], names[second]
    return [
        ("both", "both"),
        ("first", f"only {first_name}"),
        ("second", f"only {second_name}"),
        ("neither", "neither"),
    ]


def _script_safe(data: Json) -> Markup:
    from markupsafe import Markup

    # Without "<" there is neither "</script" nor "<!--". U+2028 and U+2029 end a line in older versions of JavaScript.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _image_sets(runs: Sequence[FinishedRun]) -> Iterator[_ImageSet]:
    """Group the evaluations with example images into sets; those with main evaluations alone come first.

    A run is represented in a set by its first evaluation.
    """
    groups: dict[tuple[Any, ...], dict[int, Evaluation]] = {}
    for number, run in enumerate(runs):
        for evaluation in run.evaluations:
            if not _example_positions(evaluation.records):
                continue
            conditions = evaluation.conditions
            key = (
                str(conditions.get("data", run.get("data.name"))),
                evaluation.split,
                str(conditions.get("data_fingerprint")),
                evaluation.threat,
                evaluation.attack_settings,
            )
            groups.setdefault(key, {}).setdefault(number, evaluation)

    def has_no_main_evaluation(group: tuple[tuple[Any, ...], dict[int, Evaluation]]) -> bool:
        return all(runs[number].main is not evaluation for number, evaluation in group[1].items())

    for (data, split, _, threat, attack), evaluations in sorted(groups.items(), key=has_no_main_evaluation):
        title = f"{data}, {split} images, {threat or 'threat not recorded'}, {attack}"
        yield _ImageSet(title=title, evaluations=evaluations)


def _candidates(
    runs: Sequence[FinishedRun], sets: Sequence[_ImageSet], reference: int, aligned: Sequence[AlignedRun]
) -> Iterator[_Candidate]:
    """Yield every example image once.

    Args:
        runs: the runs on the page.
        sets: the sets of images.
        reference: number of the run whose evaluation defines the difficulty.
        aligned: the runs with training dynamics, the reference run first.
    """
    for number, each in enumerate(sets):
        records = {run: evaluation.records for run, evaluation in each.evaluations.items()}
        rows = {run: _rows(own) for run, own in records.items()}
        positions = {run: _example_positions(own) for run, own in records.items()}
        bins = _bins(runs, each, reference, aligned)
        for index in each.ids:
            saved = [run for run in each.evaluations if index in positions[run]]
            label = _label(records[saved[0]], rows[saved[0]][index])
            clean = _clean(records[saved[0]], positions[saved[0]][index])
            # Different data sets may have the same name, but their pictures differ.
            same_picture = [
                run
                for run in saved
                if _label(records[run], rows[run][index]) == label
                and np.array_equal(_clean(records[run], positions[run][index]), clean)
            ]
            yield _Candidate(
                set=number,
                id=index,
                label=label,
                bin=bins.get(index),
                runs=tuple(same_picture),
                outcomes=tuple(image_outcome(records[run], rows[run][index]) for run in same_picture),
            )


def _select_images(candidates: Sequence[_Candidate], sets: Sequence[_ImageSet], classes: Sequence[str]) -> list[Json]:
    """Select images of every kind in turn until the budget is spent; return them in the order of the candidates."""
    class_numbers = {name: k for k, name in enumerate(classes)}
    factors = [each.factor for each in sets]
    rows = [{run: _rows(e.records) for run, e in each.evaluations.items()} for each in sets]
    positions = [{run: _example_positions(e.records) for run, e in each.evaluations.items()} for each in sets]
    selected: dict[int, Json] = {}
    spent = 0
    for place in round_robin([each.kind for each in candidates]):
        each = candidates[place]
        evaluations = sets[each.set].evaluations
        first = each.runs[0]
        image = {
            "set": each.set,
            "id": each.id,
            "label": class_numbers[each.label],
            "bin": each.bin,
            "clean": _base64(_clean(evaluations[first].records, positions[each.set][first][each.id])),
            "runs": {
                run: _run_result(
                    evaluations[run].records,
                    rows[each.set][run][each.id],
                    positions[each.set][run][each.id],
                    factors[each.set],
                    class_numbers,
                )
                for run in each.runs
            },
        }
        spent += sum(len(text) for text in _pictures(image))
        if spent > _BUDGET:
            break
        selected[place] = image
    return [selected[place] for place in sorted(selected)]


def _run_result(records: Records, row: int, position: int, factor: float, class_numbers: dict[str, int]) -> Json:
    """Return the outcome, pictures and top probabilities (in thousandths) of one run for one image."""
    assert records.example_clean is not None
    assert records.example_adversarial is not None
    adversarial = records.example_adversarial[position]
    clean_p, adversarial_p = records.clean_probabilities[row], records.adversarial_probabilities[row]
    top = {int(records.label[row]), *_top_classes(clean_p), *_top_classes(adversarial_p)}
    return {
        "outcome": image_outcome(records, row),
        "adversarial": _base64(adversarial),
        "change": _base64(0.5 + factor * (adversarial - records.example_clean[position])),
        "top": [
            [class_numbers[records.classes[k]], round(1000 * float(clean_p[k])), round(1000 * float(adversarial_p[k]))]
            for k in sorted(top, key=lambda k: -adversarial_p[k])
        ],
    }


def _top_classes(probabilities: Any) -> list[int]:
    best: list[int] = np.argsort(-probabilities, kind="stable")[:_TOP].tolist()
    return best


def _bins(
    runs: Sequence[FinishedRun], image_set: _ImageSet, reference: int, aligned: Sequence[AlignedRun]
) -> dict[int, str]:
    """Return the difficulty of each image of a set by its id.

    For training images it is the difficulty in the data map of the reference run. For other images it is the radius
    at which the reference is broken, or the first run of the set if the reference is not part of it.
    """
    number = reference if reference in image_set.evaluations else next(iter(image_set.evaluations))
    evaluation = image_set.evaluations[number]
    if evaluation.split == "train":
        if not aligned or runs[number].get("data.name") != aligned[0].run.get("data.name"):
            return {}
        return {int(i): BINS[code] for i, code in zip(aligned[0].ids, aligned[0].bins, strict=True)}
    if evaluation.threat is None:
        return {}
    records = evaluation.records
    return {int(i): RADIUS_BINS[code] for i, code in zip(records.index, radius_bins(records), strict=True)}


def _example_positions(records: Records) -> dict[int, int]:
    """Return the position of each example image among the examples by its id."""
    return {} if records.example_index is None else {int(each): i for i, each in enumerate(records.example_index)}


def _rows(records: Records) -> dict[int, int]:
    """Return the row of each image by its id."""
    return {int(each): row for row, each in enumerate(records.index)}


def _label(records: Records, row: int) -> str:
    return str(records.classes[records.label[row]])


def _clean(records: Records, position: int) -> Any:
    assert records.example_clean is not None
    return records.example_clean[position]


def _base64(image: Any) -> str:
    return png_uri(image).partition(",")[2]


def _pictures(image: Json) -> Iterator[str]:
    yield image["clean"]
    for result in image["runs"].values():
        yield from (result["adversarial"], result["change"])
