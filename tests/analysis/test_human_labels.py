"""Files of human labels: valid ones are read, invalid ones are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import entropy

from robustill.analysis.human_labels import read_human_labels, vote_entropy
from robustill.core.errors import DataError

LABELS = np.array([0, 1, 2, 0])
COUNTS = np.array([[8, 2, 0], [0, 10, 0], [5, 1, 4], [9, 0, 1]], dtype=np.uint8)
EVERY = np.arange(4)


def archive(folder: Path, **arrays: Any) -> Path:
    file = folder / "labels.npz"
    np.savez(file, **arrays)
    return file


def checks(folder: Path, *rows: Any) -> Path:
    file = folder / "reviews.json"
    file.write_text(json.dumps(list(rows)))
    return file


def check(image: int, label: int, given: int, **others: int) -> dict[str, Any]:
    return {"id": image, "given_original_label": label, "mturk": {"given": given, **others}}


def test_vote_entropy_equals_scipy() -> None:
    counts = np.random.default_rng(0).integers(0, 5, (40, 6)) + np.eye(6, dtype=int)[np.arange(40) % 6]
    np.testing.assert_allclose(vote_entropy(counts), entropy(counts, axis=1), atol=1e-12)
    assert not np.signbit(vote_entropy(np.array([[50, 0]], dtype=np.uint8))[0])


def test_targetsof_votes(tmp_path: Path) -> None:
    human = read_human_labels(archive(tmp_path, counts=COUNTS))
    targets = human.targets(EVERY, LABELS)
    assert human.split == "test"
    assert targets["most people say another class"].tolist() == [False, False, True, False]
    np.testing.assert_allclose(targets["votes against the label"], [0.2, 0, 0.6, 0.1])
    expected = [-sum(p * np.log(p) for p in row / 10 if p) for row in COUNTS]
    np.testing.assert_allclose(targets["entropy of people's votes"], expected, atol=1e-12)
    part = human.targets(np.array([2, 0]), np.array([2, 0]))
    np.testing.assert_allclose(part["votes against the label"], [0.6, 0.2])


def test_targetsof_annotator_labels(tmp_path: Path) -> None:
    others = {f"random_label{k}": np.roll(LABELS, k).astype(np.uint8) for k in (0, 1, 3)}
    human = read_human_labels(archive(tmp_path, clean_label=LABELS, aggre_label=np.array([0, 1, 1, 0]), **others))
    targets = human.targets(EVERY, LABELS)
    assert human.split == "train"
    assert targets["aggre_label differs"].tolist() == [False, False, True, False]
    assert targets["annotators who differ, of 3"].tolist() == [1, 2, 2, 1]
    assert list(targets) == ["annotators who differ, of 3", "aggre_label differs"]


def test_targetsof_label_reviews(tmp_path: Path) -> None:
    rows = check(2, 2, 2, guessed=2, neither=1), check(0, 0, 3, both=2), check(9, 1, 5)
    human = read_human_labels(checks(tmp_path, *rows))
    targets = human.targets(EVERY, LABELS)
    assert human.split == "test"
    np.testing.assert_allclose(targets["people against a suspected label"], [0.4, np.nan, 0.6, np.nan])
    assert targets["label errors"].tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("arrays", "ids", "labels", "message"),
    [
        ({"counts": COUNTS}, [4], [0], "votes of 4 images and 3 classes"),
        ({"counts": COUNTS}, [0], [3], "votes of 4 images and 3 classes"),
        ({"counts": COUNTS}, EVERY, (LABELS + 1) % 3, "most people chose another class on 75% of the images"),
        ({"clean_label": LABELS, "worse_label": LABELS}, EVERY, 2 - LABELS, "the 4 labels are not those"),
        ({"clean_label": LABELS, "worse_label": LABELS}, [7], [0], "the 4 labels are not those"),
    ],
)
def test_labels_of_other_images_are_refused(tmp_path: Path, arrays: dict, ids: Any, labels: Any, message: str) -> None:
    human = read_human_labels(archive(tmp_path, **arrays))
    with pytest.raises(DataError, match=message):
        human.targets(np.array(ids), np.array(labels))


def test_reviews_of_other_images_are_refused(tmp_path: Path) -> None:
    human = read_human_labels(checks(tmp_path, check(2, 1, 5)))
    with pytest.raises(DataError, match="the reviewed labels are not those"):
        human.targets(EVERY, LABELS)
    with pytest.raises(DataError, match="none of the images was reviewed"):
        human.targets(EVERY[:2], LABELS[:2])


class Evil:
    def __reduce__(self) -> tuple:
        return (print, ("run",))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": EVERY}, "contains images: expected counts"),
        ({}, "contains nothing: expected counts"),
        ({"counts": COUNTS.astype(float)}, r"counts are float64 \[4, 3\]"),
        ({"counts": EVERY}, r"counts are int64 \[4\]"),
        ({"counts": COUNTS * 0}, "at least one for each image"),
        ({"clean_label": LABELS}, "contains clean_label alone"),
        ({"clean_label": LABELS, "aggre_label": LABELS[:2]}, r"aggre_label is int64 \[2\], expected labels \[4\]"),
        ({"counts": np.array([Evil()], dtype=object)}, "damaged or not of the expected format"),
    ],
)
def test_invalid_archives_are_refused(
    tmp_path: Path, arrays: dict, message: str, capsys: pytest.CaptureFixture
) -> None:
    file = archive(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        read_human_labels(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "{}", "[]", "[3]", "[{}]", "[" * 100_000),
        json.dumps([check(1, 0, 0)]),
        json.dumps([check(1, 0, 5), check(1, 0, 5)]),
        json.dumps([{**check(1, 0, 5), "id": "x"}]),
    ],
)
def test_invalid_reviews_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "reviews.json"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_human_labels(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    file = archive(tmp_path, counts=COUNTS)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="damaged"):
        read_human_labels(file)
    with pytest.raises(DataError, match="not found"):
        read_human_labels(tmp_path / "nowhere.npz")
