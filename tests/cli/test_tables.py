"""The printed tables: the numbers of the records with their conditions."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.small_runs import small_config
from robustill.analysis.summary import summary
from robustill.cli.tables import comparison_table, conditions_line, forecast_table, results_table
from robustill.core.device import busy_lines
from robustill.evaluation.targets import evaluate_run
from robustill.runs.records import Records
from robustill.training.cost import Forecast, Passes
from robustill.training.loop import train


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Records]:
    run = tmp_path_factory.mktemp("room") / "run"
    train(small_config(), run, progress=False)
    return evaluate_run(run, num_images=20, suite="pgd-20", eps_curve=False, progress=False)


def test_a_row_holds_the_numbers_of_its_records(
    evaluated: dict[Path, Records], capsys: pytest.CaptureFixture[str]
) -> None:
    results_table(evaluated)
    out = capsys.readouterr().out
    for folder, records in evaluated.items():
        numbers = summary(records)
        # The row of this checkpoint, not the line that says where its records lie.
        named = [line for line in out.splitlines() if records.conditions["checkpoint"] in line.split()]
        assert len(named) == 1
        row = named[0]
        for key in ("clean_accuracy", "robust_accuracy", "ece_pgd", "nll_pgd"):
            assert f"{numbers[key]:.3f}" in row
        assert f"records: {folder}" in out


def test_names_with_brackets_and_colons_are_printed_as_they_are(
    evaluated: dict[Path, Records], capsys: pytest.CaptureFixture[str]
) -> None:
    name, records = "runs/[old]/a[/b]:cat:", next(iter(evaluated.values()))
    comparison_table({name: evaluated, "two": evaluated})
    results_table({Path(name): records})
    out = capsys.readouterr().out
    assert f"records: {name}" in out
    assert out.count(name) == 3


def test_a_comparison_has_rows_of_every_run(evaluated: dict[Path, Records], capsys: pytest.CaptureFixture[str]) -> None:
    comparison_table({"one": evaluated, "two": evaluated})
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("one", "two"))] == [
        *["one"] * len(evaluated),
        *["two"] * len(evaluated),
    ]
    # The same conditions are said once.
    assert out.count("a subset of") == 1


def under_two_threats(evaluated: dict[Path, Records]) -> dict[Path, Records]:
    texts = ("linf:8/255", "l2:0.5")
    return {
        folder / text: replace(records, conditions={**records.conditions, "threat": {"text": text}})
        for folder, records in evaluated.items()
        for text in texts
    }


def numbers_of(records: Records, kind: str = "pgd") -> list[str]:
    keys = ("clean_accuracy", "robust_accuracy", "ece_clean", f"ece_{kind}", f"nll_{kind}", f"brier_{kind}")
    return [f"{summary(records)[key]:.3f}" for key in keys]


def test_several_threats_fit_eighty_columns(
    evaluated: dict[Path, Records], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = under_two_threats(evaluated)
    comparison_table({"a-student-with-a-long-name": found})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a-student-with-a-long-name"
    table = lines[1 : 4 + len(found)]
    assert all(len(line) <= 80 for line in table)
    for line, records in zip(table[3:], found.values(), strict=True):
        words = line.split()
        assert words[:2] == [records.conditions["checkpoint"], records.conditions["threat"]["text"]]
        assert words[2:4] + words[5:] == numbers_of(records)


@pytest.mark.parametrize(("columns", "runs"), [(80, ["one-student", "another-student"]), (70, ["run"]), (40, ["run"])])
def test_in_a_narrow_terminal_every_number_has_its_name(
    evaluated: dict[Path, Records],
    columns: int,
    runs: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    found = under_two_threats(evaluated)
    comparison_table(dict.fromkeys(runs, found))
    shown = capsys.readouterr().out.partition("digits test:")[0]
    assert all(len(line) <= columns for line in shown.splitlines())
    told = " ".join(shown.split())
    for run in runs:
        for records in found.values():
            name = f"{records.conditions['checkpoint']} {records.conditions['threat']['text']}"
            clean, robust, ece, ece_pgd, nll, brier = numbers_of(records)
            low, high = summary(records)["robust_accuracy_interval"]
            assert (
                f"{run} {name} clean {clean}, robust {robust}, 95 % {low:.2f}–{high:.2f}, ECE {ece}, "
                f"ECE PGD10 {ece_pgd}, NLL PGD10 {nll}, Brier PGD10 {brier}"
            ).removeprefix("run " if len(runs) == 1 else "") in told


def test_beside_records_without_the_fixed_attack_all_rows_show_the_kept_images(
    evaluated: dict[Path, Records], capsys: pytest.CaptureFixture[str]
) -> None:
    old = {folder / "old": replace(records, pgd_probabilities=None) for folder, records in evaluated.items()}
    comparison_table({"new": evaluated, "old": old})
    out = capsys.readouterr().out
    assert "PGD10" not in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("new", "old"))]
    assert len(rows) == 2 * len(evaluated)
    for row, records in zip(rows, [*evaluated.values(), *old.values()], strict=True):
        assert row[2:4] + row[5:] == numbers_of(records, "adversarial")
    comparison_table({"new": evaluated})
    assert capsys.readouterr().out.count("PGD10") == 3


def test_a_subset_is_called_a_subset(evaluated: dict[Path, Records]) -> None:
    records = next(iter(evaluated.values()))
    line = conditions_line(records)
    assert "digits test: 20 images, a subset of 500; linf:0.1; suite pgd-20 (pgd-ce 1×20 steps); seed 0" in line


def test_a_forecast_made_on_a_busy_machine_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passes = Passes(student_forward=4, student_backward=4, teacher_forward=0, teacher_backward=0)
    times = {"images_per_second": 50.0, "epoch_seconds": 2.0, "evaluation_seconds": 60.0}
    sizes = {"images": 100, "validation_images": 10, "epochs": 3, "memory": 2**20, "checkpoint": 2**20}
    speeds = {"student_gflops": 0.1, "teacher_gflops": 0.0, "step_gflops": 0.8}
    cost = Forecast(step=passes, stand_ins=(), device="cpu", **times, **sizes, **speeds)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for load, is_said in ((0.5, False), (9.2, True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, load, load))
        forecast_table("mine.yaml", cost)
        assert ("measured while 2 cores had work for 9" in capsys.readouterr().out) == is_said


def test_a_busy_cpu_is_said_where_threads_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (8.0, 8.0, 8.0))
    cpu = torch.device("cpu")
    assert busy_lines(cpu) == ["2 cores have work for 8: --compute.threads 1 is then faster than 2 threads"]
    assert busy_lines(torch.device("meta")) == []
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 2.0, 2.0))
    assert busy_lines(cpu) == []
