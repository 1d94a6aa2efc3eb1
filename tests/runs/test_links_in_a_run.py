"""A run directory with links in it, of a stranger: nothing outside it changes."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.small_runs import small_config, tree
from robustill.core.errors import CheckpointError, RobustillError, RunError
from robustill.evaluation.state import EvaluationState
from robustill.evaluation.targets import evaluate_run
from robustill.models.loading import load_network
from robustill.runs.directory import RunDirectory
from robustill.runs.dynamics import read_dynamics
from robustill.runs.records import Records
from robustill.studies.scheduler import check_folder
from robustill.studies.study import make_study
from robustill.training.loop import train

QUICK: dict[str, Any] = {"suite": "pgd-20", "num_images": 10, "eps_curve": False, "pictures": False, "progress": False}
NAME = "test-best-pgd-20-10-images"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train(small_config(optim={"epochs": 1}), run, progress=False)
    return run


@pytest.fixture
def run(tmp_path: Path, trained: Path) -> Path:
    """A copy, beside a folder with files whose names are those of a run's."""
    shutil.copytree(trained, tmp_path / "run")
    victim = tmp_path / "victim"
    victim.mkdir()
    for name in ("part-00000.npz", "notes.json", "header.json.bak", ".x.tmp", "summary.json", "epoch-0001.npz", "best"):
        (victim / name).write_text("years of work")
    return tmp_path / "run"


def replaced_by_link(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))


LINKS = [
    ("lock", "victim/notes.json"),
    ("metrics.jsonl", "victim/notes.json"),
    ("checkpoints", "victim"),
    ("dynamics", "victim"),
    ("evaluations", "victim"),
    ("checkpoints/unfinished", "victim"),
    ("checkpoints/epoch-0002", "victim"),
    ("checkpoints/best", "victim/best"),
]


@pytest.mark.parametrize(("place", "target"), LINKS)
def test_training_follows_no_link(run: Path, place: str, target: str) -> None:
    replaced_by_link(run / place, run.parent / target)
    before = tree(run.parent / "victim")
    with pytest.raises(RunError, match=r"is a link, (and nothing is written|which is not followed)") as caught:
        train(small_config(optim={"epochs": 1}), run, progress=False)
    assert "\n" not in str(caught.value)
    assert tree(run.parent / "victim") == before


@pytest.mark.parametrize("place", ["evaluations", f"evaluations/{NAME}", f"evaluations/{NAME}/.state"])
def test_an_evaluation_follows_no_link(run: Path, place: str) -> None:
    replaced_by_link(run / place, run.parent / "victim")
    before = tree(run.parent / "victim")
    with pytest.raises(RunError, match="is a link, and nothing is written through links"):
        evaluate_run(run, checkpoints="best", **QUICK)
    assert tree(run.parent / "victim") == before


def test_an_evaluation_without_links_is_as_before(run: Path) -> None:
    (folder,) = evaluate_run(run, checkpoints="best", **QUICK)
    assert folder.name == NAME


def test_a_linked_state_is_refused_from_python(run: Path) -> None:
    (run / "state").symlink_to("../victim")
    before = tree(run.parent / "victim")
    with pytest.raises(RunError, match="is a link"):
        EvaluationState(run / "state", {}, 1)
    assert tree(run.parent / "victim") == before


def test_weights_are_not_read_through_a_link_or_from_a_pipe(run: Path) -> None:
    file = run / "checkpoints" / "epoch-0001" / "model.safetensors"
    file.rename(run.parent / "elsewhere")
    file.symlink_to("../../../elsewhere")
    with pytest.raises(CheckpointError, match="a link, which is not followed"):
        load_network(f"run:{run}")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(RunError, match="no regular file but a pipe"):
        load_network(f"run:{run}")


def test_a_study_follows_no_link_to_its_logs(tmp_path: Path) -> None:
    study = make_study("teacher-eps", folder=tmp_path / "runs", seeds=1)
    (tmp_path / "victim").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "study.lock").write_text("")
    (tmp_path / "runs" / "logs").symlink_to("../victim")
    with pytest.raises(RunError, match="logs is a link"):
        check_folder(study)


READ = ["config.yaml", "model.json", "metrics.jsonl", "checkpoints/best", "checkpoints/epoch-0001/checksums.json"]


@pytest.mark.parametrize("place", READ)
def test_no_file_of_a_run_is_read_through_a_link(run: Path, place: str) -> None:
    (run / place).rename(run.parent / "elsewhere")
    (run / place).symlink_to(run.parent / "elsewhere")
    is_metrics = place == "metrics.jsonl"
    read = RunDirectory.existing(run).metrics if is_metrics else functools.partial(load_network, f"run:{run}")
    with pytest.raises(RobustillError, match="a link, which is not followed") as caught:
        read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["records.npz", "summary.json"])
def test_no_records_are_read_through_a_link(run: Path, name: str) -> None:
    (folder,) = evaluate_run(run, checkpoints="best", **QUICK)
    (folder / name).rename(run.parent / "elsewhere")
    (folder / name).symlink_to(run.parent / "elsewhere")
    with pytest.raises(RunError, match="a link, which is not followed"):
        Records.load(folder)


@pytest.mark.parametrize("name", ["header.json", "masking.json"])
def test_no_state_is_read_through_a_link(run: Path, name: str) -> None:
    state = EvaluationState(run / "state", {"seed": 0}, 1)
    state.save_note("masking", {"result": {}})
    (run / "state" / name).rename(run.parent / "elsewhere")
    (run / "state" / name).symlink_to(run.parent / "elsewhere")
    if name == "masking.json":
        assert state.load_note("masking") is None
    else:
        with pytest.raises(RunError, match=r"a link, which is not followed\): delete the folder .* to start again"):
            EvaluationState(run / "state", {"seed": 0}, 1)


def test_no_dynamics_are_read_through_a_link(run: Path) -> None:
    file = run / "dynamics" / "epoch-0001.npz"
    file.rename(run.parent / "elsewhere")
    file.symlink_to(run.parent / "elsewhere")
    with pytest.raises(RunError, match="a link, which is not followed"):
        read_dynamics(run)
