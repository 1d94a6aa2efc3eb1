"""Both engines do the same jobs, one apart from the other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest

from helpers.small_runs import weights
from helpers.tiny_studies import ONE, tiny
from robustill.core.errors import ConfigError
from robustill.studies import engines
from robustill.studies import scheduler as running
from robustill.studies.engines import engine
from robustill.studies.job import Job, perform
from robustill.studies.scheduler import Workers, run_study

FOREVER = ("--optim.epochs", "100000")


def job(folder: Path, name: str = "seed-0/at", overrides: tuple[str, ...] = ()) -> Job:
    study = tiny(folder, overrides=overrides)
    config = study.runs[name].model_dump(mode="json")
    run, log = folder / name, folder / f"{name}.log"
    return Job(run=str(run), config=config, asked=None, log=str(log), folder=str(folder))


def test_what_a_job_prints_is_in_its_log_and_the_streams_are_given_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert perform(job(tmp_path)) is None
    os.write(1, b"seen")
    assert capfd.readouterr().out == "seen"
    assert "at (at) 100%" in (tmp_path / "seed-0" / "at.log").read_text()


def test_a_mistake_and_a_bug_are_one_line_and_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = job(tmp_path)
    missing = {**good.config, "data": {**good.config["data"], "root": "nowhere"}}
    found = perform(Job(**{**vars(good), "config": missing}))
    assert found is not None
    assert "nowhere" in found
    assert "\n" not in found
    assert "Traceback" in Path(good.log).read_text()

    def bug(*_: object) -> None:
        raise KeyError("a\nb")

    monkeypatch.setattr("robustill.training.loop.train", bug)
    assert perform(good) == "KeyError: 'a\\nb'"


def test_a_process_that_dies_is_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine("local", 2, 1, False) as made:
        made.start("one", job(tmp_path / "one", overrides=FOREVER))
        made.start("two", job(tmp_path / "two"))
        (dying,) = (process for process in multiprocessing.active_children() if process.name == "one")
        assert dying.pid is not None
        os.kill(dying.pid, signal.SIGKILL)
        ended: dict[str, str | None] = {}
        while len(ended) < 2:
            ended |= made.ended(5)
    assert ended == {
        "one": "its process was killed: most often for want of memory, then give fewer --workers",
        "two": None,
    }


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks at the work of processes in /proc")
def test_a_process_that_stands_still_is_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "_STILL", 1.0)
    monkeypatch.setattr(running, "_LOOK_SECONDS", 0.2)
    start = engines.Local.start

    def stopped(self: engines.Local, name: str, job: Job) -> None:
        start(self, name, job)
        if name == "seed-0/at":
            process = self.running[name][0].pid
            assert process is not None
            os.kill(process, signal.SIGSTOP)

    # Whoever only waits for his share of a busy machine is not ended here.
    work = engines._worked
    monkeypatch.setattr(engines.Local, "start", stopped)
    monkeypatch.setattr(engines, "_worked", lambda process: work(process) if _is_stopped(process) else None)
    study = tiny(tmp_path)
    result = run_study(study, ONE)
    assert {name for name, outcome in result.outcomes.items() if outcome.error} == {"seed-0/at"}
    log = study.folder / "logs" / "seed-0" / "at.log"
    expected = f"seed-0/at: failed: its process did nothing at all for 1 s and was ended: it hung (log: {log})"
    assert expected in capfd.readouterr().err


def _is_stopped(process: int | None) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        # It has just come to its end.
        return False


def test_at_the_end_no_process_is_left(tmp_path: Path) -> None:
    with engine("local", 1, 1, False) as made:
        made.start("one", job(tmp_path, overrides=FOREVER))
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()


def test_gpus_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert engines.visible_gpus() == ["3", "5"]


def test_ray_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match="needs the extra `cluster`"), engine("ray", 1, 1, False):
        pass


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_the_same_study_on_a_local_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    # Where the tasks find the study's own modules.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    here, there = tiny(tmp_path / "here"), tiny(tmp_path / "there")
    run_study(here, ONE, progress=False)
    result = run_study(there, Workers(workers=2, threads=1, gpu=False, engine="ray"), progress=False)
    assert not any(outcome.error for outcome in result.outcomes.values())
    assert {run: weights(there.folder / run) for run in there.runs} == {
        run: weights(here.folder / run) for run in here.runs
    }
