import shutil
from dataclasses import replace

import numpy as np
import pytest

from helpers.made_up_runs import make_run
from helpers.records_by_hand import save_records
from robustill.analysis.runs import read_run, read_runs, teacher_eps
from robustill.core.errors import RunError
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records


def test_a_run_is_read_with_its_best_evaluation_first(two_runs):
    run = read_run(two_runs[0], "akd")
    assert [each.name for each in run.evaluations] == ["test-best-pgd", "test-last-pgd"]
    assert (run.main.split, run.main.checkpoint, run.main.attack) == ("test", "best", "pgd")
    assert (run.best, run.last, run.eps, run.method) == (28, 40, 0.2, "akd")
    assert run.seconds == pytest.approx(40 * 2.3)
    assert run.series("validation_robust_accuracy")[0] == list(range(2, 41, 2))
    assert run.missing() == []


def test_evaluations_of_test_images_come_first(tmp_path):
    names = ("test-last-pgd", "train-best-pgd", "test-best-pgd", "test-best-ema-pgd", "test-epoch-20-pgd")
    run = read_run(make_run(tmp_path / "run", method={"name": "at"}, evaluations=names), "run")
    assert [each.name for each in run.evaluations] == [
        "test-best-pgd",
        "test-best-ema-pgd",
        "test-last-pgd",
        "test-epoch-20-pgd",
        "train-best-pgd",
    ]


def test_runs_are_read_once_and_named_uniquely(tmp_path):
    paths = [make_run(tmp_path / side / "akd", method={"name": "at"}, evaluations=()) for side in ("a", "b")]
    runs = read_runs([*paths, paths[0], tmp_path / "a" / ".." / "b" / "akd"])
    assert [run.name for run in runs] == [str(path) for path in paths]


def test_missing_parts_of_a_run_are_named(two_runs):
    shutil.rmtree(two_runs[0] / "evaluations")
    (two_runs[0] / "metrics.jsonl").unlink()
    (two_runs[0] / "environment.json").unlink()
    run = read_run(two_runs[0], "akd")
    assert run.environment is None
    assert run.seconds is None
    assert ["no metrics" in run.missing()[0], "has not been evaluated" in run.missing()[1]] == [True, True]


def test_only_finite_numbers_of_the_metrics_are_kept(two_runs):
    with (two_runs[0] / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 41, "train_loss": NaN, "terms": {"kl": 1.0}, "seconds": 2}\n{"epoch": 42, "tra')
    assert read_run(two_runs[0], "akd").metrics[40:] == [{"epoch": 41, "seconds": 2}]


def test_the_strongest_attack_represents_the_run(two_runs):
    folder = two_runs[0] / "evaluations"
    records = Records.load(folder / "test-best-pgd")
    broken = records.robust & (np.arange(len(records)) % 10 == 0)
    save_records(
        replace(
            records,
            robust=records.robust & ~broken,
            broken_by=np.where(broken, 1, records.broken_by).astype(np.int8),
            conditions={**records.conditions, "suite": {"name": "standard"}},
        ),
        folder / "test-best-standard",
    )
    weaker = {**records.conditions, "threat": {"norm": "linf", "eps": 0.1, "text": "linf:0.1"}}
    save_records(replace(records, conditions=weaker), folder / "test-best-pgd-linf-0.1")
    run = read_run(two_runs[0], "akd")
    assert [each.attack for each in run.evaluations] == ["standard", "pgd", "pgd", "pgd"]
    assert run.evaluations[-1].threat == "linf, eps 0.1"


def test_an_empty_list_of_runs_is_refused():
    with pytest.raises(RunError, match="no run directory"):
        read_runs([])


def test_teacher_eps(two_runs):
    assert teacher_eps("run:runs/teacher-1@best") == 0.15
    assert teacher_eps("run:runs/gone@best") is None
    assert teacher_eps("robustbench:Wang2023Better_WRN-28-10") is None


def test_an_evaluation_of_a_former_best_epoch_is_left_out(two_runs):
    folder = two_runs[0] / "evaluations" / "test-best-pgd"
    records = Records.load(folder)
    save_records(replace(records, conditions={**records.conditions, "checkpoint": "best", "epoch": 28}), folder)
    directory = RunDirectory(two_runs[0])
    for epoch in (20, 28):
        (directory.checkpoints.folder(epoch)).mkdir(parents=True, exist_ok=True)
        (directory.checkpoints.folder(epoch) / "model.safetensors").touch()
    assert read_run(two_runs[0], "akd").outdated == ()
    save_records(replace(records, conditions={**records.conditions, "checkpoint": "best", "epoch": 20}), folder)
    run = read_run(two_runs[0], "akd")
    assert run.outdated == ("test-best-pgd",)
    assert [each.name for each in run.evaluations] == ["test-last-pgd"]
    assert any(
        "test-best-pgd of akd is of an epoch that is no longer that checkpoint" in note for note in run.missing()
    )
