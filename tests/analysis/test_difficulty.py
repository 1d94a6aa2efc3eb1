"""How hard single images are, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import entropy

from made_up_runs import make_records
from robustill.analysis.difficulty import RADIUS_BINS, breaking_radius, evaluation_hardness, radius_bins
from robustill.records import Records


@pytest.fixture(scope="module")
def records() -> Records:
    return make_records(strength=0, seed=0, eps=0.25, classes=tuple("0123"))


def test_an_image_breaks_at_the_first_radius_it_does_not_withstand(records: Records) -> None:
    found = breaking_radius(records)
    for row in range(len(records)):
        lost = [eps for eps, held in zip(records.eps_grid, records.robust_at_eps[row], strict=True) if not held]
        expected = 0.0 if not records.clean_correct[row] else lost[0] if lost else np.inf
        assert found[row] == pytest.approx(expected)


def test_bins_of_radius_tell_what_the_evaluation_tells(records: Records) -> None:
    found = np.array(RADIUS_BINS)[radius_bins(records)]
    assert np.array_equal(found == "wrong without attack", ~records.clean_correct)
    held = np.isin(found, ["broken at a larger radius", "never broken"])
    # The radius of the threat is the fifth of the grid's nine, half of it the third.
    assert np.array_equal(held, records.robust_at_eps[:, 4])
    assert np.array_equal(found == "broken at half the radius", records.clean_correct & ~records.robust_at_eps[:, 2])
    assert np.array_equal(found == "never broken", records.robust_at_eps[:, -1])


def test_without_a_curve_there_is_one_radius(records: Records) -> None:
    bare = replace(records, eps_grid=records.eps_grid[:0], robust_at_eps=records.robust_at_eps[:, :0])
    found = breaking_radius(bare)
    assert np.array_equal(np.isinf(found), records.robust)
    assert set(found[~records.robust]) == {0.0, 0.25}
    assert {RADIUS_BINS[code] for code in radius_bins(bare)} == {
        "wrong without attack",
        "broken at the radius",
        "never broken",
    }


def test_hardness_is_larger_for_what_is_harder(records: Records) -> None:
    found = evaluation_hardness(records)
    rows = np.arange(len(records))
    np.testing.assert_allclose(
        found["confidence in the label, attacked"], -records.adversarial_probabilities[rows, records.label]
    )
    np.testing.assert_allclose(
        found["entropy of the prediction, clean"], entropy(records.clean_probabilities, axis=1), atol=1e-6
    )
    robust = records.robust
    for name in ("confidence in the label, attacked", "margin, attacked", "radius that breaks it"):
        assert found[name][robust].mean() < found[name][~robust].mean()
