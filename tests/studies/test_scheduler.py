"""A study ends with the same results whatever interrupts it, and reports the runs that failed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.small_runs import lines, tree, weights
from helpers.tiny_studies import ONE, SUITE, TWO, recipe, tiny
from robustill.cli.study_tables import print_plan
from robustill.core.errors import ConfigError, RobustillError, RunError
from robustill.runs.directory import RunDirectory
from robustill.runs.records import read_summary
from robustill.studies import Design, Row, Study, StudyRuns, make_study
from robustill.studies.scheduler import locked, make_workers, run_study

RUNS = ("seed-0/at", "seed-0/teacher-0", "seed-0/akd-alpha-0.5", "seed-0/akd-alpha-1")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that nothing disturbed, by two processes at once.

    Its paths are relative, so that a copy of the folder is the same study.
    """
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.chdir(folder):
        run_study(tiny(Path()), TWO, progress=False)
    return folder


@pytest.fixture
def whole(made_once: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The finished study, in its own folder."""
    monkeypatch.chdir(made_once)
    return tiny(Path())


@pytest.fixture
def copied(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A copy of the finished study, in a folder of its own."""
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tiny(Path())


def same_result(folder: Path, other: Path) -> bool:
    return all(
        lines(folder / run) == lines(other / run) and weights(folder / run) == weights(other / run) for run in RUNS
    ) and table(folder) == table(other)


def table(folder: Path) -> list[str]:
    """Return the table of a study without its conditions."""
    return [text for text in (folder / "pair-akd.md").read_text().splitlines() if text.startswith("|")]


def test_each_run_is_an_ordinary_run_evaluated_at_best_and_last(whole: Study) -> None:
    assert set(whole.runs) == set(RUNS)
    for name in RUNS:
        run = RunDirectory.existing(whole.folder / name)
        assert len(run.metrics()) == 2
        folders = sorted(each.name for each in (run.path / "evaluations").glob("*"))
        assert folders == ([] if "teacher" in name else [f"test-best-{SUITE}", f"test-last-{SUITE}"])
        # Work of more than 15 s has more than one line.
        log = (whole.folder / "logs" / f"{name}.log").read_text()
        done = {label for label, ended, _ in (line.partition("100%") for line in log.splitlines()) if ended}
        assert len(done) == (1 if "teacher" in name else 3)


def test_the_table_has_the_numbers_of_the_evaluations(whole: Study) -> None:
    rows = [[cell.strip() for cell in text.split("|")[1:-1]] for text in table(whole.folder)[2:]]
    assert len(rows) == 6
    for row in rows:
        run = {"at": "at", "alpha 0.5": "akd-alpha-0.5", "alpha 1": "akd-alpha-1"}[row[0]]
        found = read_summary(whole.folder / "seed-0" / run / "evaluations" / f"test-{row[1]}-{SUITE}")["results"]
        columns = ("clean_accuracy", "robust_accuracy", "ece_clean", "ece_pgd")
        assert row[3:7] == [f"{found[column]:.3f}" for column in columns]
    page = (whole.folder / "pair-akd.md").read_text()
    assert "20 images, all 20; linf:0.1; suite pgd-20" in page
    assert sorted(each.name for each in whole.folder.iterdir()) == [
        "logs",
        *(f"pair-akd{end}" for end in ("-clean.svg", "-ece-attacked.svg", "-robust.svg", "-runs.csv")),
        *(f"pair-akd{end}" for end in (".csv", ".md", ".tex")),
        "seed-0",
        "study.lock",
    ]


def test_a_second_call_only_writes_the_table(whole: Study) -> None:
    before = {name: tree(whole.folder / name) for name in ("seed-0", "logs")}
    result = run_study(whole, ONE, progress=False)
    assert {name: tree(whole.folder / name) for name in ("seed-0", "logs")} == before
    assert not any(outcome.error for outcome in result.outcomes.values())


def test_another_seed_and_suite_add_to_existing_runs(copied: Study) -> None:
    study = copied
    before = {run: weights(study.folder / run) for run in RUNS}
    again = make_study("helpers.tiny_studies:pair", folder=study.folder, seeds=2, recipe="data/tiny.yaml", suite="pgd")
    assert len(again.runs) == 8
    run_study(again, TWO, progress=False)
    assert {run: weights(study.folder / run) for run in RUNS} == before
    folders = [each.name for each in (study.folder / "seed-0" / "at" / "evaluations").iterdir()]
    assert sorted(folders) == [f"test-{what}-{suite}" for what in ("best", "last") for suite in ("pgd", SUITE)]
    assert "| at | best | 2 |" in (study.folder / "pair-akd.md").read_text()


def breaking(runs: StudyRuns) -> Design:
    """The student of one teacher cannot be trained, nor can what depends on it; the rest can."""
    runs.recipe = {**runs.recipe, "optim": {**runs.recipe["optim"]}}
    base = Row(label="at", run=runs.baseline())
    fine = Row(label="fine", run=runs.student("fine"), against="at")
    broken = runs.teacher(1)
    config = runs.configs[broken]
    optim = config.optim.model_copy(update={"learning_rate": 1e30})
    runs.configs[broken] = config.model_copy(update={"optim": optim})
    lost = Row(label="lost", run=runs.student("lost", [f"{broken}@best"]), against="at")
    return Design(rows=(base, fine, lost))


def test_a_failed_run_is_reported_and_others_continue(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study = make_study(
        f"{__name__}:breaking", folder=tmp_path / "runs", seeds=1, recipe=recipe(tmp_path / "data"), suite=SUITE
    )
    result = run_study(study, TWO)
    shown = capfd.readouterr().err
    failed = {name: outcome for name, outcome in result.outcomes.items() if outcome.error}
    assert failed.keys() == {"seed-0/teacher-1", "seed-0/akd-lost"}
    teacher, student = failed["seed-0/teacher-1"], failed["seed-0/akd-lost"]
    assert "try a smaller optim.learning_rate" in str(teacher.error)
    assert teacher.log is not None
    assert "try a smaller optim.learning_rate" in teacher.log.read_text()
    assert student.error == "not run: it needs seed-0/teacher-1, which failed"
    assert student.log is None
    assert f"seed-0/teacher-1: failed: {teacher.error} (log: {teacher.log})" in shown
    assert "seed-0/akd: done in" in shown
    page = (study.folder / "breaking-akd.md").read_text()
    assert "| fine | best | 1 |" in page
    assert "| lost |" not in page
    assert "- seed-0/akd-lost: not run: it needs" in page
    # Asked again, it is tried again.
    assert len(run_study(study, ONE, progress=False).outcomes) == len(study.runs)
    assert teacher.log.read_text().count("---") == 2


# --- what is refused, before anything is written


def test_a_folder_in_use_is_refused(whole: Study) -> None:
    with locked(whole.folder), pytest.raises(RunError, match="in use by another study"):
        run_study(whole, ONE, progress=False)


def test_a_folder_with_other_content_is_refused(tmp_path: Path) -> None:
    study = tiny(tmp_path)
    study.folder.mkdir()
    (study.folder / "thesis.tex").write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(RunError, match=r"holds no study \(it holds thesis\.tex\)"):
        run_study(study, ONE, progress=False)
    (tmp_path / "file").write_text("")
    file = make_study("helpers.tiny_studies:pair", folder=tmp_path / "file", recipe=recipe(tmp_path / "data"))
    with pytest.raises(RunError, match="is a file"):
        run_study(file, ONE, progress=False)
    (tmp_path / "file").unlink()
    assert tree(tmp_path) == before


def test_runs_of_another_configuration_are_refused(whole: Study) -> None:
    before = tree(whole.folder)
    other = tiny(Path(), overrides=("--optim.epochs", "3"))
    with pytest.raises(RunError, match=r"optim\.epochs is 2 there and 3 here"):
        run_study(other, ONE, progress=False)
    with pytest.raises(RunError, match=r"optim\.epochs is 2 there and 3 here"):
        print_plan(other, ONE)
    assert tree(whole.folder) == before


def test_fewer_test_images_are_another_evaluation(copied: Study) -> None:
    study, file = copied, "data/tiny.yaml"
    few = make_study("helpers.tiny_studies:pair", folder=study.folder, seeds=1, recipe=file, suite=SUITE, num_images=8)
    before = weights(study.folder / "seed-0" / "at")
    run_study(few, ONE, progress=False)
    assert weights(study.folder / "seed-0" / "at") == before
    page = (study.folder / "pair-akd.md").read_text()
    assert "8 images, a subset of 20; linf:0.1; suite pgd-20" in page
    assert "--suite pgd-20 --num-images 8 --runs" in page
    with pytest.raises(ConfigError, match="--num-images is 0: expected at least 1"):
        make_study("helpers.tiny_studies:pair", folder=study.folder, recipe=file, num_images=0)


def test_missing_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    study = tiny(tmp_path)
    (tmp_path / "data" / "test.npz").unlink()
    with pytest.raises(RobustillError, match="npz"):
        run_study(study, ONE, progress=False)
    assert not study.folder.exists()


def test_workers_and_threads_fit_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    study = tiny(tmp_path)
    assert (make_workers(study, workers=None).count, make_workers(study, workers=None).threads) == (4, 1)
    assert make_workers(study, workers=2).threads == 1
    with pytest.raises(ConfigError, match=r"5 workers × 1 threads are more than the 4 cores: give --workers 4"):
        make_workers(study, workers=5)
    assert make_workers(study, workers=5, threads_given=True).count == 5
    with pytest.raises(ConfigError, match="at least 1"):
        make_workers(study, workers=0)
    # Where the recipe leaves it open, the workers share the cores.
    free = tiny(tmp_path, overrides=("--compute.threads", "null"))
    assert make_workers(free, workers=2).threads == 2
    assert make_workers(free, workers=3).threads == 1
    with pytest.raises(ConfigError, match=r"--compute.device cuda:1: .* choose the GPUs by CUDA_VISIBLE_DEVICES=1$"):
        make_workers(tiny(tmp_path, overrides=("--compute.device", "cuda:1")), workers=1)
    assert make_workers(tiny(tmp_path, overrides=("--compute.device", "cuda:0")), workers=1).gpu
    three = tiny(tmp_path, overrides=("--compute.threads", "3"))
    assert (make_workers(three, workers=None).count, make_workers(three, workers=None).threads) == (1, 3)


# --- real kills


# The program, which looks at its jobs all the time, and gets a signal once its runs have made so many files.
KILLED = """
import os, sys
from robustill.studies.engines import LocalEngine

files, kind = int(sys.argv.pop(1)), int(sys.argv.pop(1))
wait = LocalEngine.wait

def watched(self, seconds):
    found = wait(self, 0.01)
    if sum(len(folders) + len(names) for _, folders, names in os.walk("runs/seed-0")) >= files:
        os.kill(os.getpid(), kind)
    return found

LocalEngine.wait = watched
from robustill.cli import main
main()
"""


def begin(folder: Path, *more: str, files: int, kind: int) -> subprocess.Popen[str]:
    words = ["study", "helpers.tiny_studies:pair", "--seeds", "1", "--workers", "1", "--suite", SUITE, "--runs", "runs"]
    command = [sys.executable, "-c", KILLED, str(files), str(kind), *words, "--recipe", recipe(folder / "data"), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def at_work(folder: Path) -> list[int]:
    """The processes that work in a folder, by their open files."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                opened = [str(each.readlink()) for each in (process / "fd").iterdir()]
            except OSError:
                continue
            if any(str(folder) in each for each in opened):
                found.append(int(process.name))
    return found


def gone(folder: Path) -> bool:
    """Whether nobody works in a folder any more, within ten minutes."""
    until = time.monotonic() + 600
    while at_work(folder) and time.monotonic() < until:
        time.sleep(0.05)
    return not at_work(folder)


KINDS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


LINUX = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks for processes in /proc")


@LINUX
def test_the_processes_of_a_killed_study_end_with_it(tmp_path: Path) -> None:
    # Left alone, they would train for an hour.
    process = begin(tmp_path, "--optim.epochs", "100000", files=40, kind=signal.SIGKILL)
    try:
        process.communicate(timeout=600)
        assert process.returncode == -signal.SIGKILL
        assert (tmp_path / "runs" / "seed-0" / "teacher-0" / "metrics.jsonl").is_file()
        assert gone(tmp_path / "runs")
    finally:
        for each in at_work(tmp_path / "runs"):
            os.kill(each, signal.SIGKILL)


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("kinds", [KINDS[:1], KINDS[1:2], KINDS * 3])
def test_a_study_killed_repeatedly_ends_with_the_same_result(
    kinds: tuple[signal.Signals, ...], made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = sum(1 for _ in made_once.glob("runs/seed-0/**/*"))
    for done, kind in enumerate(kinds):
        process = begin(tmp_path, files=every * (done + 1) // (len(kinds) + 1), kind=kind)
        printed, _ = process.communicate(timeout=600)
        # The first comes before its last run begins; a later one may find nothing left to do.
        if process.returncode == 0 and done > 0:
            break
        assert process.returncode == (-kind if kind == signal.SIGKILL else 128 + kind), printed
        if kind != signal.SIGKILL:
            assert "the same command goes on" in printed
        assert gone(tmp_path / "runs")
        for page in (tmp_path / "runs").glob("seed-0/**/*.json"):
            # A folder that a kill cut off keeps its temporary name, and counts as nothing.
            if not page.parent.name.endswith(".tmp"):
                json.loads(page.read_text())
    monkeypatch.chdir(tmp_path)
    study = make_study(
        "helpers.tiny_studies:pair", folder=Path("runs"), seeds=1, recipe=recipe(tmp_path / "data"), suite=SUITE
    )
    run_study(study, TWO, progress=False)
    assert same_result(study.folder, made_once / "runs")
    assert not list((tmp_path / "runs").rglob(".*.tmp"))
