"""The engines of clusters give what local processes give, and reserve for each run what it uses."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from helpers.fake_ray import FakeRay
from helpers.small_runs import weights
from helpers.tiny_studies import ONE, tiny
from robustill.core.errors import ConfigError
from robustill.studies import clusters
from robustill.studies.engines import Workers, started_engine
from robustill.studies.scheduler import make_workers, run_study


def fake_cluster(monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], **losses: int) -> FakeRay:
    ray = FakeRay(resources, losses)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


@pytest.mark.parametrize("name", ["ray", "submitit"])
def test_a_missing_package_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    workers = Workers(count=1, threads=1, gpu=False, engine=name)
    with (
        pytest.raises(ConfigError, match=f"engine {name} needs the extra `cluster`"),
        started_engine(workers, tmp_path),
    ):
        pass


# --- Ray


@pytest.mark.parametrize(
    ("resources", "gpus_per_run", "gpus", "workers"),
    [
        ({"CPU": 16.0, "GPU": 2.0}, 1.0, 1.0, 2),
        ({"CPU": 16.0, "GPU": 2.0}, 0.25, 0.25, 8),
        ({"CPU": 6.0, "GPU": 2.0}, 0.25, 0.25, 3),
        ({"CPU": 16.0}, 1.0, 0.0, 8),
        ({"CPU": 1.0}, 1.0, 0.0, 1),
    ],
)
def test_ray_is_asked_for_its_resources(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resources: dict[str, float],
    gpus_per_run: float,
    gpus: float,
    workers: int,
) -> None:
    # This machine need not have a GPU.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ray = fake_cluster(monkeypatch, resources)
    study = tiny(tmp_path, overrides=("--compute.threads", "2", "--compute.device", "auto"))
    planned = make_workers(study, workers=None, engine="ray", gpus_per_run=gpus_per_run)
    with started_engine(planned, tmp_path) as engine:
        assert engine.workers == workers
        assert ray.options == {"num_cpus": 2, "num_gpus": gpus, "max_retries": 3}
    assert ray.settings is None


def test_runs_on_the_cpu_reserve_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = fake_cluster(monkeypatch, {"CPU": 16.0, "GPU": 2.0})
    study = tiny(tmp_path, overrides=("--compute.device", "cpu"))
    with started_engine(make_workers(study, workers=3, engine="ray"), tmp_path) as engine:
        assert (engine.workers, ray.options["num_gpus"]) == (3, 0.0)


def test_tasks_share_two_gpus_and_survive_a_lost_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "run_job", lambda job: f"ran {job}" if job == "c" else None)
    ray = fake_cluster(monkeypatch, {"CPU": 32.0, "GPU": 2.0}, a=3, b=4)
    workers = Workers(count=None, threads=1, gpu=True, engine="ray", gpus_per_run=0.5)
    with started_engine(workers, tmp_path) as engine:
        jobs: Any = list("abcdefg")
        for job in jobs[: engine.workers]:
            engine.start(job, job)
        ended: dict[str, str | None] = {}
        while len(ended) < 3:
            ended |= engine.wait(1)
        assert ended == {"a": None, "b": "its task ended: The worker died unexpectedly.", "c": "ran c"}
    assert ray.at_a_time == [4, 3, 2]
    assert len(ray.cancelled) == 1


@pytest.mark.slow
def test_a_study_on_a_cluster_with_two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ray = fake_cluster(monkeypatch, {"CPU": 4.0, "GPU": 2.0}, at=1)
    result = run_study(tiny(tmp_path), Workers(count=None, threads=1, gpu=True, engine="ray"), progress=False)
    assert not any(outcome.error for outcome in result.outcomes.values())
    assert "pair-akd.md" in {file.name for file in result.files}
    # The teacher and the baseline, then the two students.
    assert ray.at_a_time == [2, 2, 2, 1]


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_only_a_cluster_that_is_named_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    ray = fake_cluster(monkeypatch, {"CPU": 4.0})
    with started_engine(Workers(count=3, threads=2, gpu=False, engine="ray"), tmp_path):
        settings = ray.settings or {}
    # A cluster has its own number of cores, and Ray reads its address itself.
    expected = ("local", 6) if address is None else (None, None)
    assert (settings.get("address"), settings.get("num_cpus")) == expected


def test_a_cluster_out_of_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> None:
        raise ConnectionError("Failed to connect\nto Ray cluster")

    monkeypatch.setattr(fake_cluster(monkeypatch, {}), "init", fails)
    workers = Workers(count=1, threads=1, gpu=False, engine="ray")
    with (
        pytest.raises(ConfigError, match="ray: Failed to connect to Ray cluster: check RAY_ADDRESS"),
        started_engine(workers, tmp_path),
    ):
        pass


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_an_impossible_share_of_a_gpu_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigError, match=r"expected a share above 0 and at most 1, such as 0\.25"):
        make_workers(tiny(tmp_path), workers=1, gpus_per_run=share)


def test_a_share_of_a_gpu_gives_more_workers_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    study = tiny(tmp_path, seeds=3, overrides=("--compute.device", "cuda"))
    assert make_workers(study, workers=None).count == 1
    assert make_workers(study, workers=None, gpus_per_run=0.25).count == 4


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_ray_gives_the_same_weights_as_local_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    # So that the tasks find the module of the study.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    here, there = tiny(tmp_path / "here"), tiny(tmp_path / "there")
    run_study(here, ONE, progress=False)
    # Two GPUs that are not there, each for two runs.
    monkeypatch.setattr(ray, "init", partial(ray.init, num_gpus=2))
    result = run_study(there, Workers(count=2, threads=1, gpu=True, engine="ray", gpus_per_run=0.5), progress=False)
    assert not any(outcome.error for outcome in result.outcomes.values())
    assert {run: weights(there.folder / run) for run in there.runs} == {
        run: weights(here.folder / run) for run in here.runs
    }


# --- submitit


class FakeSubmitit(ModuleType):
    """A module in the place of submitit, which runs every job in this process as soon as it is asked for."""

    class Job:
        def __init__(self, function: Any, job: Any) -> None:
            self.function, self.job, self.is_cancelled = function, job, False

        def done(self) -> bool:
            return self.is_cancelled or self.job != "endless"

        def cancel(self) -> None:
            self.is_cancelled = True

        def result(self) -> Any:
            if self.job == "lost":
                raise self.function.error("Job 7 (task: 0)\n has not produced any output (state: NODE_FAIL)")
            return self.function(self.job)

    def __init__(self) -> None:
        super().__init__("submitit")
        self.parameters: dict[str, Any] = {}
        self.AutoExecutor = self._executor
        self.jobs: list[FakeSubmitit.Job] = []
        error = type("UncompletedJobError", (RuntimeError,), {})
        self.core = SimpleNamespace(utils=SimpleNamespace(UncompletedJobError=error))
        self.helpers = SimpleNamespace(DelayedSubmission=lambda *words: words)

    def _executor(self, **settings: Any) -> Any:
        self.parameters |= settings
        return SimpleNamespace(update_parameters=self.parameters.update, submit=self._submit)

    def _submit(self, function: Any, job: Any) -> FakeSubmitit.Job:
        function.error = self.core.utils.UncompletedJobError
        self.jobs.append(self.Job(function, job))
        return self.jobs[-1]


def test_submitit_gets_the_resources_and_reports_lost_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = FakeSubmitit()
    monkeypatch.setitem(sys.modules, "submitit", submitit)
    monkeypatch.setattr(clusters, "run_job", lambda job: None if job == "good" else f"{job} failed")
    workers = Workers(count=None, threads=4, gpu=True, engine="submitit")
    with started_engine(workers, tmp_path) as engine:
        jobs: Any = ["good", "bad", "lost", "endless"]
        assert engine.workers >= 10**6
        for job in jobs:
            engine.start(job, job)
        assert engine.wait(5) == {
            "good": None,
            "bad": "bad failed",
            "lost": "its job ended: Job 7 (task: 0) has not produced any output (state: NODE_FAIL)",
        }
        assert engine.wait(0.01) == {}
    asked = {key: submitit.parameters[key] for key in ("cpus_per_task", "gpus_per_node", "timeout_min", "folder")}
    assert asked == {"cpus_per_task": 4, "gpus_per_node": 1, "timeout_min": 1440, "folder": tmp_path / "submitit"}
    assert [job.is_cancelled for job in submitit.jobs] == [False, False, False, True]
    # What SLURM stops is queued again with the same job.
    again, job = submitit.jobs[0].function.checkpoint("good")
    assert (again(job), job) == (None, "good")


def test_slurm_has_no_shares_of_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SLURM gives a job whole GPUs: leave it out, or use --engine ray"):
        make_workers(tiny(tmp_path), workers=1, engine="submitit", gpus_per_run=0.25)


@pytest.mark.cluster
def test_submitit_gives_the_same_weights_as_local_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="the extra `cluster` is not installed")
    # So that the jobs find the module of the study.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    here, there = tiny(tmp_path / "here"), tiny(tmp_path / "there")
    run_study(here, ONE, progress=False)
    result = run_study(there, Workers(count=2, threads=1, gpu=False, engine="submitit"), progress=False)
    assert not any(outcome.error for outcome in result.outcomes.values())
    assert {run: weights(there.folder / run) for run in there.runs} == {
        run: weights(here.folder / run) for run in here.runs
    }
