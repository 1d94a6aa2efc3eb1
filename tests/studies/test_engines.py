"""Jobs in processes of their own, each in isolation; for the engines of clusters see `test_clusters`."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from helpers.tiny_studies import ONE, TWO, tiny
from robustill.studies import engines, scheduler
from robustill.studies.engines import started_engine
from robustill.studies.job import Job, run_job
from robustill.studies.scheduler import run_study

FOREVER = ("--optim.epochs", "100000")


def make_job(folder: Path, name: str = "seed-0/at", overrides: tuple[str, ...] = ()) -> Job:
    study = tiny(folder, overrides=overrides)
    config = study.runs[name].model_dump(mode="json")
    run, log = folder / name, folder / f"{name}.log"
    return Job(run=str(run), config=config, evaluation=None, log=str(log), folder=str(folder))


def test_the_output_of_a_job_goes_to_its_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_job(make_job(tmp_path)) is None
    os.write(1, b"shown")
    assert capfd.readouterr().out == "shown"
    assert "at (at) 100%" in (tmp_path / "seed-0" / "at.log").read_text()


def test_an_error_is_one_line_and_its_traceback_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = make_job(tmp_path)
    missing = {**good.config, "data": {**good.config["data"], "root": "nowhere"}}
    found = run_job(Job(**{**vars(good), "config": missing}))
    assert found is not None
    assert "nowhere" in found
    assert "\n" not in found
    assert "Traceback" in Path(good.log).read_text()

    def bug(*_: object) -> None:
        raise KeyError("a\nb")

    monkeypatch.setattr("robustill.training.loop.train", bug)
    assert run_job(good) == "KeyError: 'a\\nb'"


def test_a_killed_process_is_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started_engine(TWO, tmp_path / "logs") as engine:
        engine.start("one", make_job(tmp_path / "one", overrides=FOREVER))
        engine.start("two", make_job(tmp_path / "two"))
        (dying,) = (process for process in multiprocessing.active_children() if process.name == "one")
        assert dying.pid is not None
        os.kill(dying.pid, signal.SIGKILL)
        ended: dict[str, str | None] = {}
        while len(ended) < 2:
            ended |= engine.wait(5)
    assert ended == {
        "one": "its process was killed, most often because memory ran out: then give fewer --workers",
        "two": None,
    }


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads the CPU time of processes in /proc")
def test_a_hanging_process_is_killed_and_its_run_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "_HANG_SECONDS", 1.0)
    monkeypatch.setattr(scheduler, "_POLL_SECONDS", 0.2)
    start = engines.LocalEngine.start

    def stopped(self: engines.LocalEngine, name: str, job: Job) -> None:
        start(self, name, job)
        if name == "seed-0/at":
            process = self.running[name][0].pid
            assert process is not None
            os.kill(process, signal.SIGSTOP)

    # A process that waits for its share of a busy machine must not be killed here.
    work = engines._cpu_time
    monkeypatch.setattr(engines.LocalEngine, "start", stopped)
    monkeypatch.setattr(engines, "_cpu_time", lambda process: work(process) if _is_stopped(process) else None)
    study = tiny(tmp_path)
    result = run_study(study, ONE)
    assert {name for name, outcome in result.outcomes.items() if outcome.error} == {"seed-0/at"}
    log = study.folder / "logs" / "seed-0" / "at.log"
    expected = f"seed-0/at: failed: its process hung: it used no CPU time for 1 s and was killed (log: {log})"
    assert expected in capfd.readouterr().err


def _is_stopped(process: int | None) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        # The process has just ended.
        return False


def test_no_process_outlives_the_engine(tmp_path: Path) -> None:
    with started_engine(ONE, tmp_path / "logs") as engine:
        engine.start("one", make_job(tmp_path, overrides=FOREVER))
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()


def test_preloaded_modules_exist() -> None:
    # The fork server ignores a module that it cannot import.
    assert all(importlib.util.find_spec(name) for name in engines._PRELOADED)


def test_visible_gpus_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert engines.visible_gpus() == ["3", "5"]
