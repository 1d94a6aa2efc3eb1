import dataclasses
import hashlib
import json
import pickle
import re

import numpy as np
import pytest

from helpers.records_by_hand import by_hand, save_records, with_examples
from robustill.analysis.summary import summary
from robustill.core.errors import DataError, RobustillError, RunError
from robustill.runs.records import Records, attacked_kind, read_summary


def test_clean_predictions_of_four_images():
    records = by_hand()
    assert records.clean_correct.tolist() == [True, True, True, False]
    assert records.clean_confidence.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])


def test_summary_by_hand():
    results = summary(by_hand())
    assert results["num_images"] == 4
    assert results["clean_accuracy"] == 0.75
    assert results["robust_accuracy"] == 0.25
    assert results["accuracy_after"] == {"apgd-ce": 0.5, "square": 0.25}
    assert [row["robust_accuracy"] for row in results["robust_at_eps"]] == [0.75, 0.25]
    # z² / (n + z²) and so on, with n = 4: Wilson's interval of 1 in 4
    assert results["robust_accuracy_interval"] == pytest.approx([0.0456, 0.6994], abs=1e-4)
    assert results["nll_clean"] == pytest.approx(-np.log([0.9, 0.8, 0.7, 0.4]).mean(), rel=1e-6)
    assert results["brier_adversarial"] == pytest.approx(2 * np.square([0.2, 0.7, 0.6, 0.9]).mean(), rel=1e-6)
    assert results["mean_confidence_clean"] == pytest.approx(0.75)


PGD = np.array([[0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.5, 0.5]], np.float32)


def with_fixed_attack():
    return by_hand(pgd_probabilities=PGD)


def test_the_fixed_attack_has_numbers_of_its_own_where_it_was_run():
    results, without = summary(with_fixed_attack()), summary(by_hand())
    assert results["nll_pgd"] == pytest.approx(-np.log([0.8, 0.3, 0.4, 0.5]).mean(), rel=1e-6)
    assert results["brier_pgd"] == pytest.approx(2 * np.square([0.2, 0.7, 0.6, 0.5]).mean(), rel=1e-6)
    assert results["mean_confidence_pgd"] == pytest.approx(0.65)
    # Each image is in a bin of its own: right at 0.8, wrong at 0.7 and 0.6; of equal shares the first class counts.
    assert results["ece_pgd"] == pytest.approx((0.2 + 0.7 + 0.6 + 0.5) / 4)
    assert {key: value for key, value in results.items() if not key.endswith("_pgd")} == without
    assert attacked_kind([results, results]) == "pgd"
    assert attacked_kind([results, without]) == "adversarial"


def test_records_are_equal_if_their_rows_names_and_conditions_are():
    assert with_fixed_attack().equals(with_fixed_attack())
    assert not with_fixed_attack().equals(by_hand())
    assert not by_hand().equals(by_hand(conditions={**by_hand().conditions, "checkpoint": "other"}))
    assert not by_hand().equals(by_hand(margin=by_hand().margin * np.float32(2)))


def test_a_part_of_records_has_its_rows_of_every_array():
    rows = np.array([True, False, True, False])
    assert np.array_equal(with_fixed_attack().part(rows).pgd_probabilities, PGD[rows])
    assert by_hand().part(rows).pgd_probabilities is None


@pytest.mark.parametrize("make", [by_hand, with_examples, with_fixed_attack])
def test_saved_records_load_equal(make, tmp_path):
    records = make()
    save_records(records, tmp_path / "evaluations" / "test-best")
    loaded = Records.load(tmp_path / "evaluations" / "test-best")
    for field in dataclasses.fields(Records):
        before, after = getattr(records, field.name), getattr(loaded, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
        else:
            assert before == after
    assert summary(loaded) == read_summary(tmp_path / "evaluations" / "test-best")["results"]


def test_saving_twice_writes_the_same_bytes(tmp_path):
    save_records(with_examples(), tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_records(with_examples(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert sorted(first) == ["records.npz", "summary.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.array([0, 1, 0, 2])}, "label is outside"),
        ({"label": np.array([0.0, 1.0, 0.0, 1.0])}, "label is float64"),
        ({"index": np.array([7, 7, 5, 9])}, "twice"),
        ({"margin": np.array([1, 2, 3], np.float32)}, "N = 3"),
        ({"margin": np.array([1, 2, 3, np.nan], np.float32)}, "margin"),
        ({"clean_probabilities": np.full((4, 2), np.nan, np.float32)}, "clean_probabilities"),
        ({"clean_probabilities": np.ones((4, 2), np.float32)}, "sum to 1"),
        ({"pgd_probabilities": PGD[:3]}, "pgd_probabilities has N = 3"),
        ({"pgd_probabilities": 2 * PGD}, "pgd_probabilities must be in"),
        ({"classes": ("cat", "dog", "cow")}, "K = 2"),
        ({"broken_by": np.array([-1, 0, 2, -2], np.int8)}, "broken_by"),
        ({"robust": np.array([True, True, False, False])}, "robust"),
        ({"broken_by": np.array([-1, -2, 1, -2], np.int8)}, "clean prediction"),
        ({"broken_by": np.array([-1, 0, 1, 0], np.int8)}, "clean prediction"),
        ({"stages": ("apgd-ce", "apgd-ce")}, "stage"),
        ({"example_index": np.array([3])}, "together"),
    ],
)
def test_impossible_records_are_refused_in_one_line(changes, message):
    with pytest.raises(DataError, match=message) as caught:
        by_hand(**changes)
    assert "\n" not in str(caught.value)


def test_equal_probabilities_of_different_logits_are_accepted():
    even = np.array([[0.9, 0.1], [0.5, 0.5], [0.7, 0.3], [0.6, 0.4]], np.float32)
    assert by_hand(clean_probabilities=even).clean_correct[1]


def test_conditions_that_are_not_json_are_refused(tmp_path):
    with pytest.raises(DataError, match="JSON"):
        save_records(by_hand(conditions={"eps": float("nan")}), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def _rewrite(folder, **changes):
    page = json.loads((folder / "summary.json").read_text())
    # As it was written before there were checksums.
    del page["sha256"]
    (folder / "summary.json").write_text(json.dumps({**page, **changes}))


def _change_a_number(folder):
    text = (folder / "summary.json").read_text()
    changed = re.sub(r'("robust_accuracy": 0\.)(\d)', lambda found: found[1] + str(9 - int(found[2])), text, count=1)
    assert changed != text
    (folder / "summary.json").write_text(changed)


def _flip_a_byte(folder):
    content = bytearray((folder / "records.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "records.npz").write_bytes(content)


def _replace_records(folder, content: bytes):
    (folder / "records.npz").write_bytes(content)
    _rewrite(folder, records_sha256=hashlib.sha256(content).hexdigest())


def _pickled(folder):
    np.savez(folder / "evil.npz", index=np.array([{"a": 1}], dtype=object))
    content = (folder / "evil.npz").read_bytes()
    _replace_records(folder, content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "summary.json").unlink(), "summary.json"),
        (lambda folder: (folder / "records.npz").unlink(), "records.npz"),
        (lambda folder: (folder / "summary.json").write_text("{"), "summary.json is damaged"),
        (lambda folder: (folder / "summary.json").write_text("[]"), "summary.json is damaged"),
        (_change_a_number, "its checksum is wrong"),
        (lambda folder: _rewrite(folder, format=99), "format 99"),
        (lambda folder: _rewrite(folder, records_sha256=None), "records_sha256"),
        (_flip_a_byte, "checksum"),
        (lambda folder: _replace_records(folder, b"PK\x03\x04 not a zip"), "not the records"),
        (lambda folder: _replace_records(folder, pickle.dumps([1])), "not the records"),
        (lambda folder: _replace_records(folder, b""), "not the records"),
        (_pickled, "not the records"),
    ],
)
def test_damaged_files_are_refused_in_one_line(damage, message, tmp_path):
    save_records(with_examples(), tmp_path)
    damage(tmp_path)
    with pytest.raises(RunError, match=message) as caught:
        Records.load(tmp_path)
    assert isinstance(caught.value, RobustillError)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
