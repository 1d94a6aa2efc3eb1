"""Settings of every test process, and fixtures of several rooms.

Every test begins with one thread and the same random numbers: neither the number of cores nor the tests before it
change a result.
"""

from __future__ import annotations

import datetime
import importlib
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from helpers.made_up_runs import make_run
from helpers.small_network import TrainedNetwork, trained_network

# The same examples in every run, without a limit of time.
settings.register_profile(
    "repeatable", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

# A shell lets processes in the background ignore SIGINT, and the processes they start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def reset_randomness() -> None:
    """Make a test independent of the tests that ran before it in this process, which depend on their durations."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_day() -> Iterator[None]:
    """Fix the date of evaluations, so that those that are compared have the same one around midnight, too."""
    day = SimpleNamespace(today=lambda: datetime.date(2026, 11, 23))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("robustill.evaluation.evaluate"), "datetime", SimpleNamespace(date=day))
        yield


def pytest_collectstart() -> None:
    reset_randomness()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    reset_randomness()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    reset_randomness()


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
