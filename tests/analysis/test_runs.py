import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from helpers.made_up_runs import make_run
from helpers.records_by_hand import save_records
from robustill.analysis.runs import find_teacher, read_run, teacher_paths, with_common_evaluations
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records


def test_a_run_is_read_with_its_best_evaluation_first(two_runs):
    run = read_run(two_runs[0], "akd")
    assert [each.name for each in run.evaluations] == ["test-best-pgd", "test-last-pgd"]
    assert (run.main.split, run.main.checkpoint, run.main.attack) == ("test", "best", "pgd")
    assert (run.best, run.last, run.eps, run.method) == (28, 40, 0.2, "akd")
    assert run.seconds == pytest.approx(40 * 2.3)
    assert run.series("validation_robust_accuracy")[0] == list(range(2, 41, 2))


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


def test_missing_parts_of_a_run_are_named(two_runs):
    shutil.rmtree(two_runs[0] / "evaluations")
    (two_runs[0] / "metrics.jsonl").unlink()
    (two_runs[0] / "environment.json").unlink()
    run = read_run(two_runs[0], "akd")
    assert run.environment is None
    assert run.seconds is None
    assert (run.metrics, run.evaluations, run.main, run.at_last) == ([], (), None, None)


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


def test_teachers_are_found_where_their_student_names_them_or_beside_it(two_runs):
    teacher = find_teacher("run:runs/teacher-1@best")
    assert (teacher.eps, teacher.config["method"]) == (0.15, {"name": "at"})
    assert teacher.seconds == pytest.approx(40 * 2.3)
    assert find_teacher("run:runs/gone@best") is None
    assert find_teacher("robustbench:Wang2023Better_WRN-28-10") is None
    assert find_teacher("run:/moved/from/teacher-1@best") is None
    assert find_teacher("run:/moved/from/teacher-1@best", beside=two_runs[0]).eps == 0.15


def test_teachers_among_runs_are_known(two_runs):
    teacher = two_runs[0].parent / "teacher-1"
    runs = [read_run(path, path.name) for path in (*two_runs, teacher)]
    assert teacher_paths(runs) == {teacher}


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


def averaged(folder, *, evaluations, **changes):
    """Write a run that averages its weights, with the metrics and the best epoch of the average."""
    run = make_run(folder, method={"name": "at"}, evaluations=evaluations, config={"optim": {"ema": 0.99}}, **changes)
    RunDirectory(run).checkpoints.point("best-ema", 32)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "validation_robust_accuracy" in line:
            line["ema_validation_robust_accuracy"] = line["validation_robust_accuracy"] + 0.05
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_run(run, "run")


def test_averaged_weights_represent_a_run_that_averages(tmp_path):
    names = ("test-best-pgd", "test-last-pgd", "test-best-ema-pgd", "test-last-ema-pgd")
    run = averaged(tmp_path / "both", evaluations=names)
    assert (run.main.checkpoint, run.at_last.checkpoint, run.average) == ("best-ema", "last-ema", "ema")
    assert (run.best, run.best_epoch, run.method_name) == (28, 32, "PGD-AT + EMA")
    lines = [line for line in run.metrics if "validation_robust_accuracy" in line]
    assert run.series("validation_robust_accuracy")[1] == [line["ema_validation_robust_accuracy"] for line in lines]
    plain = averaged(tmp_path / "plain", evaluations=names[:2])
    assert (plain.main.checkpoint, plain.best_epoch, plain.method_name) == ("best", 28, "PGD-AT")
    assert averaged(tmp_path / "none", evaluations=()).method_name == "PGD-AT + EMA"


def test_runs_show_the_evaluation_that_most_of_them_have(tmp_path):
    """A teacher with another threat has no vote, and an evaluation under the common threat comes first."""
    other = {"name": "standard", "stages": [{"name": "apgd-ce", "steps": 100, "restarts": 1}]}
    paths = [make_run(tmp_path / name, method={"name": "at"}, seed=seed) for seed, name in enumerate("ab")]
    paths.append(make_run(tmp_path / "c", method={"name": "at"}, seed=2, suite=other))
    for name in ("t0", "t1", "t2"):
        paths.append(make_run(tmp_path / name, method={"name": "at"}, eps=0.1))
    student = {"teachers": [{"spec": f"run:{tmp_path / name}@best"} for name in ("t0", "t1", "t2")]}
    paths[0] = make_run(tmp_path / "student", method={"name": "akd"}, config=student)
    threat = {"norm": "linf", "eps": 0.2, "text": "linf:0.2"}
    weaker = Records.load(paths[3] / "evaluations" / "test-best-pgd")
    as_student = replace(weaker, conditions={**weaker.conditions, "threat": threat})
    save_records(as_student, paths[3] / "evaluations" / "test-best-pgd-linf-0.2")
    runs = with_common_evaluations([read_run(path, path.name) for path in paths])
    kinds = [(run.main.threat, run.main.attack) for run in runs]
    ours, own = ("linf, eps 0.2", "pgd"), ("linf, eps 0.1", "pgd")
    assert kinds == [ours, ours, ("linf, eps 0.2", "standard"), ours, own, own]
    assert runs[0].main.kind == runs[1].main.kind == runs[3].main.kind != runs[2].main.kind
