"""Settings of every test process, and what several rooms share.

One thread and the same random numbers for every test: neither the cores nor the tests before it change a result.
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
from helpers.small_network import Judged, trained_network

# The same examples in every run, however long each of them takes.
settings.register_profile(
    "repeatable", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

# A suite that a shell runs in the background ignores interrupts, and so would the processes that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def begin_alike() -> None:
    # Tests run side by side: which of them came before in this process depends on how long each took.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_day() -> Iterator[None]:
    """Evaluations that are compared are of the same day, also around midnight."""
    day = SimpleNamespace(today=lambda: datetime.date(2026, 11, 23))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("robustill.evaluation.evaluate"), "datetime", SimpleNamespace(date=day))
        yield


def pytest_collectstart() -> None:
    begin_alike()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    begin_alike()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    begin_alike()


@pytest.fixture(scope="session")
def judged() -> Judged:
    """A network in eval mode, and test images it was not trained on."""
    return trained_network()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/akd from three weak teachers, and runs/pgd-at, on digits; not to be changed."""
    root = tmp_path_factory.mktemp("made_once")
    for k in range(3):
        make_run(root / f"runs/teacher-{k}", method={"name": "at"}, eps=0.15, evaluations=())
    teachers = tuple(f"run:runs/teacher-{k}@best" for k in range(3))
    make_run(root / "runs/akd", method={"name": "akd", "alpha": 0.9}, teachers=teachers, strength=0.6, dynamics=300)
    make_run(root / "runs/pgd-at", method={"name": "at"}, dynamics=300)
    return root


@pytest.fixture
def two_runs(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A copy of them; paths are relative to the working folder."""
    shutil.copytree(made_once / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return [Path("runs/akd"), Path("runs/pgd-at")]
