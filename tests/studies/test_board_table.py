"""The table of a track: paired differences from the baseline, corrected by Holm over all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustill.analysis.statistics import paired_over_seeds_and_images
from robustill.studies.board import BoardRow, write_row
from robustill.studies.board_table import BEST, HEADER, LAST, board_cells, board_markdown, compared
from robustill.studies.tracks import TRACKS

CLEAN = [0.80, 0.81, 0.79, 0.80]
ROBUST = [0.40, 0.42, 0.41, 0.40]


IMAGES = 1000


def flags(accuracies: list[float]) -> np.ndarray:
    """Return which of the images are right, the same ones first in every row."""
    return np.stack([np.arange(IMAGES) < round(IMAGES * each) for each in accuracies])


def row(method: str, name: str, gain: list[float], **changes: Any) -> BoardRow:
    robust = [a + b for a, b in zip(ROBUST, gain, strict=True)]
    numbers = {
        "clean_accuracy": CLEAN,
        "robust_accuracy": robust,
        "ece_clean": [0.1] * 4,
        "ece_pgd": [0.2] * 4,
    }
    correct = {
        column: [np.packbits(each).tobytes().hex() for each in flags(accuracies)]
        for column, accuracies in (("clean_accuracy", CLEAN), ("robust_accuracy", robust))
    }
    values: dict[str, Any] = {
        "track": "digits",
        "track_fingerprint": TRACKS["digits"].fingerprint,
        "method": method,
        "options": {},
        "name": name,
        "seeds": [0, 1, 2, 3],
        "results": {"best-ema": numbers, "last-ema": numbers},
        "correct": {"best-ema": correct, "last-ema": correct},
        "compute": {
            "training_gflop": 2000.0,
            "teachers_gflop": 0.0 if method == "at" else 500.0,
            "training_seconds": [60.0] * 4,
            "teachers_seconds": [0.0 if method == "at" else 15.0] * 4,
        },
        "conditions": {
            "data": "digits",
            "data_fingerprint": "ab" * 32,
            "num_images": IMAGES,
            "of_images": 2000,
            "threat": {"text": "linf 0.15"},
            "suite": {"name": "standard"},
            "trained": [{"processor": "x86_64 AVX2", "gpu": None}],
        },
        "fingerprints": {},
        "command": f"robustill board run {method} --track digits --seeds 4",
    }
    return BoardRow(**{**values, **changes})


AT = row("at", "PGD-AT + EMA", [0.0] * 4)
GOOD = row("akd", "AKD + EMA", [0.050, 0.051, 0.049, 0.052])
SAME = row("ard", "ARD + EMA", [0.010, -0.012, 0.011, -0.008])


def test_p_values_are_corrected_over_all_comparisons() -> None:
    found = compared([GOOD, AT, SAME])
    robust = [
        paired_over_seeds_and_images(flags(each.results["best-ema"]["robust_accuracy"]), flags(ROBUST)).p_value
        for each in (GOOD, SAME)
    ]
    # Eight comparisons, the last epochs like the best ones, of which four have no difference at all, and so p 1.
    assert found["AKD + EMA", BEST, "robust_accuracy"].p_value == pytest.approx(8 * robust[0])
    assert found["ARD + EMA", LAST, "robust_accuracy"].p_value == pytest.approx(min(1.0, 6 * robust[1]))
    assert [found[name, BEST, "robust_accuracy"].verdict for name in ("AKD + EMA", "ARD + EMA")] == ["better", "noise"]
    assert found["AKD + EMA", LAST, "clean_accuracy"].verdict == "noise"


def test_a_p_value_that_only_the_correction_raises_is_noise() -> None:
    gain = [0.010, 0.030, 0.020, 0.025]
    rows = [AT, *(row("akd", f"AKD {number}", gain) for number in range(5))]
    alone = paired_over_seeds_and_images(flags([a + b for a, b in zip(ROBUST, gain, strict=True)]), flags(ROBUST))
    each = compared(rows)["AKD 0", BEST, "robust_accuracy"]
    assert alone.p_value < 0.05 < each.p_value
    assert (alone.verdict, each.verdict) == ("better", "noise")


def test_two_seeds_decide_nothing() -> None:
    two = [
        row(each.method, each.name, [0.0] * 4, seeds=[0, 1], results={
            checkpoint: {column: values[:2] for column, values in numbers.items()}
            for checkpoint, numbers in each.results.items()
        }, correct={
            checkpoint: {column: values[:2] for column, values in packed.items()}
            for checkpoint, packed in each.correct.items()
        })
        for each in (AT, GOOD)
    ]  # fmt: skip
    assert {each.verdict for each in compared(two).values()} == {"two seeds"}


def test_the_baseline_comes_first_and_then_the_most_robust() -> None:
    cells = board_cells([SAME, GOOD, AT])
    assert [each[0] for each in cells] == ["PGD-AT + EMA", "AKD + EMA", "ARD + EMA"]
    shown = dict(zip(HEADER, cells[1], strict=True))
    assert shown["robust, best / last"] == "45.8 ± 0.9 / 45.8 ± 0.9"
    assert shown["robust, difference, best"].startswith("+5.1 [+3.8, +6.3], p < 0.001: better")
    assert shown["TFLOP (teachers)"] == "2.5 (0.5)"
    assert shown["time (teachers)"] == "1 min 15 s (15 s)"
    assert dict(zip(HEADER, cells[0], strict=True))["robust, difference, last"] == "–"
    assert compared([GOOD, SAME]) == {}


def test_a_track_without_rows_says_how_to_make_one(tmp_path: Path) -> None:
    assert board_markdown(tmp_path, "small") == "No row yet; the first is `robustill board run at --track small`."
    for number, each in enumerate((GOOD, AT)):
        write_row(tmp_path, each, f"digits-{number}")
    assert "| AKD + EMA | 4 |" in board_markdown(tmp_path, "digits")
