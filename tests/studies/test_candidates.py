"""Candidates are measured on held-out images as by hand, a stopped ranking resumes, and mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import robustill as rb
from helpers.small_runs import small_config, tree
from robustill.analysis.gain_model import FILE
from robustill.analysis.teacher_measures import features
from robustill.analysis.teacher_ranking import TeacherRanking
from robustill.config.split import load_split
from robustill.core.errors import CheckpointError, ConfigError, ModelError, RobustillError, RunError
from robustill.data import stratified_subset
from robustill.models.loading import Shape, load_network
from robustill.studies import candidate_measures
from robustill.studies.candidates import measure_candidates, rank_teachers, student_config
from robustill.teachers.check import check_teacher
from robustill.training.loop import train

DATA = {"validation": 150}
QUICK: dict[str, Any] = {"num_baselines": 2, "baseline_epochs": 1, "num_images": 140, "progress": False}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("teachers")
    for seed in (1, 2):
        train(small_config(seed=seed, data=DATA), folder / f"teacher-{seed}", progress=False)
    return [str(folder / "teacher-1"), f"run:{folder / 'teacher-2'}@last"]


def student(**changes: Any) -> rb.Config:
    return small_config(data=DATA, **changes)


@pytest.mark.slow
def test_a_ranking_has_the_numbers_of_teachers_check(teachers: list[str], tmp_path: Path) -> None:
    one, two = teachers
    both = f"{one},{two}"
    found = measure_candidates([one, two, both], student(), out=tmp_path / "out", **QUICK)
    dataset = load_split(student(), "validation")
    ids = stratified_subset(dataset.labels, 140, seed=0)
    assert (found.conditions["num_images"], found.conditions["of_images"]) == (140, 150)
    loaded = load_network(two, shape=Shape.of(dataset))
    report = check_teacher(loaded, dataset, threat=student().threat.build(), num_images=140)
    measures = found.measures[two]
    assert measures.clean_accuracy == report.clean_accuracy
    assert measures.robust_accuracy == pytest.approx(report.robust_accuracy)
    assert measures.ece_clean == pytest.approx(report.ece_clean, abs=1e-5)
    assert measures.ece_adversarial == pytest.approx(report.ece_adversarial, abs=1e-5)
    # The bin, from the baselines as they lie on disk.
    robust = []
    for number in range(2):
        (folder,) = (tmp_path / "out" / "baselines").glob(f"*-{number}")
        baseline = load_network(f"run:{folder}@last", shape=Shape.of(dataset))
        assert baseline.config is not None
        assert (baseline.config["seed"], baseline.config["optim"]["epochs"]) == (1000 + number, 1)
        robust.append(check_teacher(baseline, dataset, threat=student().threat.build(), num_images=140))
    assert found.baselines.robust_accuracy == pytest.approx(np.mean([each.robust_accuracy for each in robust]))
    assert found.baselines.unlearnable.shape == ids.shape
    assert found.baselines.unlearnable.mean() <= 1 - max(each.robust_accuracy for each in robust)
    # Members that are the only other candidates differ as these do.
    assert found.measures[both].members_disagree == pytest.approx(found.disagreement[0, 1])
    assert measures.members_disagree is None


@pytest.mark.slow
def test_the_second_call_reads_what_the_first_measured(
    teachers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    attacks: list[int] = []
    original = candidate_measures.attacked_images

    def counted(*arguments: Any) -> Any:
        attacks.append(1)
        if len(attacks) == stop_at:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(candidate_measures, "attacked_images", counted)
    # 2 batches of 2 baselines and 2 candidates: stopped in the second batch.
    stop_at = 7
    with pytest.raises(KeyboardInterrupt):
        rank_teachers(teachers, student(), out=out, **QUICK)
    assert not (out / "ranking.json").exists()
    stop_at, trained = -1, tree(out / "baselines")
    attacks.clear()
    first = rank_teachers(teachers, student(), out=out, **QUICK)
    # Of the first batch nothing is attacked again; in the second the baselines are, whose images are not kept.
    assert len(attacks) == 4
    assert tree(out / "baselines") == trained
    attacks.clear()
    again = rank_teachers(teachers, student(), out=out, **QUICK)
    assert attacks == []
    assert again.teachers == first.teachers == TeacherRanking.load(out).teachers
    # A damaged part is measured again.
    part = next((out / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:100])
    assert rank_teachers(teachers, student(), out=out, **QUICK).teachers == first.teachers
    assert 1 <= len(attacks) <= 3


def test_the_predictions_are_those_of_the_packaged_model(teachers: list[str], tmp_path: Path) -> None:
    found = rank_teachers(teachers, student(), out=tmp_path / "out", **QUICK)
    measured = measure_candidates(teachers, student(), out=tmp_path / "out", **QUICK)
    page = json.loads(FILE.read_text(encoding="utf-8"))
    for each in found.teachers:
        name = teachers[0] if each.name == "teacher-1" else teachers[1]
        x = features(measured.measures[name], measured.baselines)
        z = (x - np.array(page["mean"])) / np.array(page["scale"])
        gains = np.array(page["intercept"]) + z @ np.array(page["coefficients"])
        assert [each.predictions[alpha].gain for alpha in page["alphas"]] == pytest.approx(gains)
    gains = [each.prediction.gain for each in found.teachers]
    assert gains == sorted(gains, reverse=True)


@pytest.mark.slow
def test_a_candidate_of_another_split_is_measured_with_a_warning(teachers: list[str], tmp_path: Path) -> None:
    other = small_config(data={**DATA, "split_seed": 5})
    found = measure_candidates(teachers, other, out=tmp_path / "out", **QUICK)
    warned = [line for line in found.warnings if "may have been trained on the held-out images" in line]
    assert len(warned) == 2
    own = measure_candidates(teachers, student(), out=tmp_path / "own", **QUICK)
    assert not [line for line in own.warnings if "held-out" in line]


@pytest.mark.slow
def test_the_time_is_told_first_and_then_what_is_left(
    teachers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rank_teachers(teachers, student(), out=tmp_path / "out", **{**QUICK, "progress": True})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("ranking 2 candidates on 140 held-out images of digits: about ")
    assert lines[0].endswith("with 2 baselines of 1 epochs; the same command resumes")
    assert lines[-1].startswith("teachers rank ")


def refused(tmp_path: Path, names: list[str], config: rb.Config | str, error: type[RobustillError], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        rank_teachers(names, config, out=tmp_path / "out", **QUICK)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line_and_nothing_is_written(teachers: list[str], tmp_path: Path) -> None:
    refused(tmp_path, teachers[:1], student(), ConfigError, "1 candidate: a ranking needs at least two")
    refused(tmp_path, [teachers[0]] * 2, student(), ConfigError, "named twice")
    refused(tmp_path, [*teachers, f"{teachers[0]},"], student(), ConfigError, "separated by single commas")
    refused(tmp_path, teachers, "digits_akd", ConfigError, "has teachers of its own .*digits_at for digits_akd")
    refused(tmp_path, teachers, "digits_art", ConfigError, "recipe 'digits_art' is unknown")
    refused(tmp_path, [*teachers, "nowhere"], student(), CheckpointError, "nowhere not found")
    few = small_config(data={"validation": 60})
    refused(tmp_path, teachers, few, RobustillError, "60 held-out images of digits: expected at least 100")


def test_a_candidate_of_other_classes_is_refused(teachers: list[str], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (200, 8, 8), generator=generator, dtype=torch.uint8).numpy()
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.arange(200) % 3)
    three = {"name": "npz", "root": str(tmp_path), "train_size": 40, "validation": 100}
    refused(tmp_path, teachers, small_config(data=three), ModelError, "10 classes; here are .* 3 classes")


def test_a_folder_of_something_else_is_left_alone(teachers: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="holds something else than a ranking"):
        rank_teachers(teachers, student(), out=tmp_path / "out", **QUICK)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_student_is_given_by_recipe_or_configuration() -> None:
    assert student_config("digits_at", ["--optim.epochs", "3"]).optim.epochs == 3
    assert student_config(student()) == student()
