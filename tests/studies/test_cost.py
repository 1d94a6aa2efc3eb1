"""The estimated cost of a study: each pass takes the time of the network that it goes through."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from helpers.tiny_studies import ONE, SUITE, recipe
from robustill.core.errors import CheckpointError
from robustill.data.images import MissingDataError
from robustill.models import build
from robustill.models.loading import Shape
from robustill.studies import Design, Row, Study, StudyRuns, make_study
from robustill.studies import cost as module
from robustill.studies.cost import STARTUP_SECONDS, Speed, estimated_seconds, run_costs, training_compute
from robustill.studies.grid import Grid
from robustill.studies.scheduler import run_study
from robustill.training.cost import model_gflops, passes_per_image


def test_a_step_of_a_larger_batch_than_is_timed_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMED_SECONDS", 0.0)
    words = ("--optim.batch_size", "100", "--model.width", "2", "--compute.device", "cpu")
    study = make_study("entry", folder=Path("runs/x"), seeds=1, overrides=words, suite="pgd-20", num_images=30)
    assert min(estimated_seconds(study, run_costs(study)).values()) > STARTUP_SECONDS


def test_the_passes_of_a_teacher_take_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def speed(config: module.Config) -> Speed:
        width = float(config.model.options["width"])
        return Speed(training=10 * width, forward=width, attack=width)

    monkeypatch.setattr(module, "_measure_speed", speed)
    words = ("--data.train_size", "100", "--data.validation", "20", "--model.width", "2", "--teacher.model.width", "7")
    words += ("--optim.epochs", "3", "--attack.steps", "4", "--validation.steps", "4", "--validation.every", "1")
    study = make_study("guidelines", folder=Path("runs/x"), seeds=1, overrides=words, suite="pgd-20", num_images=30)
    found = run_costs(study)
    seconds = estimated_seconds(study, found)
    # 4 steps forward and back, and the update's; 20 held-out images, 4 steps and 1 look, forward and back.
    own, looks, evaluation = 100 * 10, 20 * 10, found["seed-0/at"].evaluation
    expected = {
        "at": 3 * 20 * (own + looks) + 2 * evaluation,
        "akd": 3 * (20 * (own + looks) + 7 * 100) + 2 * evaluation,
        "akd-seeds-3": 3 * (20 * (own + looks) + 7 * 300) + 2 * evaluation,
        "teacher-0": 3 * 70 * (own + looks),
    }
    assert {run: seconds[f"seed-0/{run}"] - STARTUP_SECONDS for run in expected} == pytest.approx(expected)
    # PGD-20 on all of 30 images is 41 passes each, and at seven radii on half of them, PGD-10 on all, for calibration,
    # is 21; of two checkpoints.
    assert evaluation == 2 * 30 * (41 + 0.5 * 7 * 41 + 21)


def test_each_role_of_a_method_passes_its_own_teachers() -> None:
    runs = make_study("methods", folder=Path("runs/x"), seeds=1, overrides=("--attack.steps", "3"), suite="pgd-20").runs
    # MTARD asks its robust and its natural teacher once each; AKD its only one; ReBAT the student's average.
    passed = {name: passes_per_image(runs[f"seed-0/{name}"])[1] for name in ("at", "akd", "mtard", "rebat")}
    assert passed == {"at": 0, "akd": 1, "mtard": 2, "rebat": 1}
    ensemble = make_study("guidelines", folder=Path("runs/x"), seeds=1, suite="pgd-20").runs["seed-0/akd-seeds-3"]
    assert passes_per_image(ensemble)[1] == 3


OUTSIDE_MODEL = {"name": "resnet8", "width": 6}


def outside(runs: StudyRuns, *, weights: str) -> Design:
    """The same student without a teacher, and with one that no run has trained."""
    name = runs.student("outside", [{"spec": weights, "model": OUTSIDE_MODEL}])
    return Design(rows=(Row(label="at", run=runs.baseline()), Row(label="akd", run=name)))


def outside_study(folder: Path) -> Study:
    words = ("--study.weights", str(folder / "weights.safetensors"))
    file = recipe(folder / "data")
    return make_study(f"{__name__}:outside", folder=folder / "runs", seeds=1, recipe=file, overrides=words, suite=SUITE)


def test_a_teacher_from_elsewhere_costs_its_passes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, shape = outside_study(tmp_path), Shape(in_channels=1, num_classes=4, image_size=(8, 8))
    network = build("resnet8", num_classes=4, in_channels=1, image_size=(8, 8), width=6)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    baseline, student = (training_compute(study)[f"seed-0/{name}"] for name in ("at", "akd-outside"))
    epochs, teacher = study.runs["seed-0/at"].optim.epochs, model_gflops("resnet8", {"width": 6}, shape)
    assert student.own - baseline.own == pytest.approx(epochs * 32 * teacher)
    assert student.teachers == 0
    monkeypatch.setattr(module, "_measure_speed", lambda _: Speed(training=3.0, forward=1.0, attack=0.0))
    seconds = estimated_seconds(study, run_costs(study))
    config = study.runs["seed-0/at"]
    ratio = teacher / model_gflops(config.model.name, config.model.options, shape)
    assert seconds["seed-0/akd-outside"] - seconds["seed-0/at"] == pytest.approx(epochs * 32 * ratio)


def test_a_missing_teacher_from_elsewhere_is_noticed_before_training(tmp_path: Path) -> None:
    study = outside_study(tmp_path)
    with pytest.raises(CheckpointError, match=r"weights.safetensors not found"):
        run_study(study, ONE, progress=False)
    assert not study.folder.exists()


def test_runs_that_are_not_evaluated_need_no_test_images(tmp_path: Path) -> None:
    study = outside_study(tmp_path)
    (tmp_path / "data" / "test.npz").unlink()
    trained = Grid(name="trained", folder=study.folder, runs={"seed-0/at": study.runs["seed-0/at"]})
    assert run_costs(trained)["seed-0/at"].evaluation == 0
    with pytest.raises(MissingDataError):
        run_costs(study)
