"""Settings of every test process, and fixtures of several rooms."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch

from helpers.made_up_runs import make_run
from helpers.small_network import TrainedNetwork, trained_network

# One thread a process: the tests run side by side, and their numbers do not depend on the number of cores.
torch.set_num_threads(1)

# A shell lets processes in the background ignore SIGINT, and the processes they start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def trained() -> TrainedNetwork:
    """Return a trained network in eval mode, and test images."""
    return trained_network()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs/akd, from three weak teachers, and runs/pgd-at; tests must not change it."""
    root = tmp_path_factory.mktemp("made_once")
    for k in range(3):
        make_run(root / f"runs/teacher-{k}", method={"name": "at"}, eps=0.15, evaluations=())
    teachers = tuple(f"run:runs/teacher-{k}@best" for k in range(3))
    make_run(root / "runs/akd", method={"name": "akd", "alpha": 0.9}, teachers=teachers, strength=0.6, dynamics=300)
    make_run(root / "runs/pgd-at", method={"name": "at"}, dynamics=300)
    return root


@pytest.fixture
def two_runs(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return copies of both runs; paths are relative to the working folder."""
    shutil.copytree(made_once / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return [Path("runs/akd"), Path("runs/pgd-at")]
