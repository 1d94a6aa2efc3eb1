"""Agreement of scores with human labels: the numbers are those of the pure functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from helpers.made_up_runs import make_run
from robustill.analysis.human_agreement import Agreement, agreement_rows, check_difficulty
from robustill.analysis.training_dynamics import data_map
from robustill.cli.tables import difficulty_table
from robustill.core.errors import DataError
from robustill.runs.dynamics import read_dynamics
from robustill.runs.records import Records


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With records of 300 training images, a fifth of them with wrong labels, and of 500 test images."""
    place = tmp_path_factory.mktemp("runs") / "at"
    return make_run(place, method={"name": "at"}, dynamics=300, noise=0.2, evaluations=("test-best-pgd",))


@pytest.fixture(scope="module")
def votes(run: Path) -> Path:
    """Of ten people on 1500 test images; those of the evaluation are divided the more, the less robust it is."""
    records = Records.load(run / "evaluations" / "test-best-pgd")
    counts = np.zeros((1500, 10), dtype=np.uint8)
    counts[:, 0] = 10
    rank = records.margin.argsort().argsort() / len(records)
    against = np.round(7 * (1 - rank)).astype(np.uint8)
    counts[records.index] = 0
    counts[records.index, records.label] = 10 - against
    counts[records.index, (records.label + 1) % 10] = against
    np.savez(run.parent / "votes.npz", counts=counts)
    return run.parent / "votes.npz"


@pytest.fixture(scope="module")
def labels(run: Path) -> Path:
    """Of 900 training images again, at random."""
    own = np.arange(900) % 10
    draws = np.random.default_rng(0)
    other = np.where(draws.random(900) < 0.3, (own + 1) % 10, own)
    np.savez(run.parent / "labels.npz", clean_label=own, worse_label=other)
    return run.parent / "labels.npz"


def one(agreements: list[Agreement], target: str, score: str) -> Agreement:
    (only,) = (each for each in agreements if (each.target, each.score) == (target, score))
    return only


def test_test_images_are_compared_by_their_evaluation(run: Path, votes: Path) -> None:
    agreements = check_difficulty(run, [votes])
    records = Records.load(run / "evaluations" / "test-best-pgd")
    counts = np.load(votes)["counts"][records.index]
    against = 1 - counts[np.arange(500), records.label] / 10
    correlation = one(agreements, "votes against the label", "margin, attacked").correlation
    assert correlation is not None
    assert correlation.rho == pytest.approx(spearmanr(-records.margin, against).statistic)
    assert correlation.rho > 0.95
    assert correlation.num_samples == 500
    other = counts.argmax(axis=1) != records.label
    sure = -records.clean_probabilities[np.arange(500), records.label]
    area = one(agreements, "most people say another class", "confidence in the label, clean").detection
    assert area is not None
    assert area.auroc == pytest.approx(roc_auc_score(other, sure))
    assert area.average_precision == pytest.approx(average_precision_score(other, sure))


def test_an_evaluation_folder_is_a_target_of_its_own(run: Path, votes: Path) -> None:
    of_run, alone = (check_difficulty(place, [votes]) for place in (run, run / "evaluations" / "test-best-pgd"))
    assert [each.correlation for each in alone] == [each.correlation for each in of_run]
    assert {each.source for each in alone} == {"test-best-pgd"}


def test_training_images_with_flipped_labels_are_left_out(run: Path, labels: Path) -> None:
    # The made-up labels of the run are id % 10, flips included: the flipped ones would not be missed.
    agreements = check_difficulty(run, [labels])
    dynamics = read_dynamics(run)
    true = ~dynamics.flipped
    annotations = np.load(labels)
    differs = (annotations["worse_label"] != annotations["clean_label"])[dynamics.ids[true]]
    area = one(agreements, "worse_label differs", "mean confidence, attacked").detection
    assert area is not None
    assert (area.num_flagged, area.num_samples) == (differs.sum(), true.sum())
    sure = data_map(dynamics.student).confidence[true]
    assert area.auroc == pytest.approx(roc_auc_score(differs, -sure))
    names = {each.score for each in agreements}
    assert {"forgetting events", "epoch of learning", "teacher's mean confidence, attacked"} <= names


def test_a_table_of_scores_is_read(run: Path, labels: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    file.write_text("id,label,flipped,a,a_standard_error\n11,1,0,0.5,0.1\n12,2,0,,0.1\n13,4,1,9,0\n14,4,0,2,0\n")
    agreements = check_difficulty(file, [labels])
    assert {each.score for each in agreements} == {"a"}
    area = agreements[0].detection
    assert area is not None
    assert area.num_samples == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns none"),
        ("id,a\n1,2\n", "has the columns id, a: expected id, label and scores"),
        ("id,label\n1,2\n", "expected id, label and scores"),
        ("id,label,a\n1,2,3\n1,2,3\n", "expected every id once"),
        ("id,label,a\n1.5,2,3\n", "expected every id once"),
        ("id,label,a\nx,2,3\n", "damaged or not of the expected format"),
        ("id,label,a\n1\n", "whole numbers from 0 for id and label|damaged"),
        ("id,label,a\n1,7,3\n", "not those of the images"),
    ],
)
def test_invalid_tables_are_refused(labels: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "scores.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        check_difficulty(file, [labels])
    assert "\n" not in str(caught.value)


def test_missing_scores_and_files_are_named(run: Path, votes: Path, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no score of train images"):
        check_difficulty(run / "evaluations" / "test-best-pgd", [labels])
    bare = make_run(tmp_path / "bare", method={"name": "at"}, evaluations=())
    with pytest.raises(DataError, match="has no score of test images"):
        check_difficulty(bare, [votes])
    with pytest.raises(DataError, match="give --uncertainty"):
        check_difficulty(run, [])
    with pytest.raises(DataError, match="not found"):
        check_difficulty(tmp_path / "nowhere.csv", [votes])


def test_the_numbers_are_printed_and_written(
    run: Path, votes: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agreements = check_difficulty(run, [votes, labels])
    difficulty_table(agreements)
    out = capsys.readouterr().out
    assert "votes against the label (votes.npz)" in out
    assert "larger is harder" in out
    rows = list(agreement_rows(agreements))
    assert len(rows) == 1 + len(agreements)
    assert len({len(row) for row in rows}) == 1
    names = [str(name) for name in rows[0]]
    for row, each in zip(rows[1:], agreements, strict=True):
        cells = dict(zip(names, row, strict=True))
        assert cells["spearman"] == (each.correlation.rho if each.correlation else None)
        assert cells["auroc"] == (each.detection.auroc if each.detection else None)
