"""The script of what recording every sample costs: it runs to its end where the last batch is smaller."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "speed"


def test_shares_of_a_step_are_positive_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from dynamics_overhead import CASES, measured

    _, batch_size, images, _ = CASES["digits"]
    assert images % batch_size != 0
    row = measured("at", "digits", rounds=1)
    assert row["step_seconds"] > 0
    assert row["record_percent"] > 0
    assert row["clean_pass_percent"] > 0
    expected = row["record_percent"] + row["clean_pass_percent"] / row["clean_every"]
    assert row["share_percent"] == pytest.approx(expected, abs=2e-3)
