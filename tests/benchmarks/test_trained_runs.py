"""What scripts of benchmarks/ read from a run that they trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers.small_runs import small_config
from robustill.analysis.calibration import ece
from robustill.data import load
from robustill.evaluation.targets import evaluate_run
from robustill.runs.records import Records
from robustill.training.loop import train

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NUM_TEST_IMAGES = len(load("digits", split="test"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(small_config(optim={"ema": 0.9, "epochs": 3, "learning_rate": 0.05}), folder, progress=False)
    return folder


def records_of(run: Path, checkpoint: str, num_images: int) -> Records:
    (found,) = evaluate_run(
        run, checkpoints=checkpoint, suite="pgd-20", num_images=num_images, eps_curve=False, progress=False
    ).values()
    return found


def test_cheap_training_reads_the_weights_themselves_not_their_averages(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "speed"))
    from cheap_training import accuracies

    expected = {}
    for which in ("best", "last"):
        records = records_of(run, which, 60)
        expected[f"clean, {which}"] = np.mean(records.clean_correct)
        expected[f"robust, {which}"] = np.mean(records.robust)
    assert accuracies(run, "pgd-20", 60) == pytest.approx(expected)


def test_the_recipe_search_tests_the_averages_on_all_test_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "studies"))
    from recipe_search import attacked, best

    what = best(small_config(optim={"ema": 0.9}))
    assert what == "best-ema"
    found = attacked(str(run), what, "pgd-20", NUM_TEST_IMAGES)
    for numbers, checkpoint in zip(found, ("best-ema", "last-ema"), strict=True):
        records = records_of(run, checkpoint, NUM_TEST_IMAGES)
        assert numbers["robust"] == pytest.approx(np.mean(records.robust))
        assert numbers["ECE adversarial"] == pytest.approx(ece(records.adversarial_probabilities, records.label))


def test_the_seconds_of_a_run_that_was_stopped_are_those_of_all_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "studies"))
    import digits_methods

    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(digits_methods, "time", SimpleNamespace(process_time=lambda: next(clock)))

    def stopped(*arguments: Any, on_epoch: Callable[[Any], None], **settings: Any) -> None:
        def then_stop(line: Any) -> None:
            on_epoch(line)
            raise KeyboardInterrupt

        train(*arguments, on_epoch=then_stop, **settings)

    config, run = small_config(optim={"epochs": 3}), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(digits_methods, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            digits_methods.trained(config, run)
    # Ten seconds of the first epoch, and twenty of the other two.
    assert digits_methods.trained(config, run) == 10 + 20
    assert digits_methods.trained(config, run) == 30
