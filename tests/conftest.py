"""One thread and the same random numbers for every test: neither the cores nor the tests before it change a result."""

import datetime
import importlib
import random
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

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
        patch.setattr(importlib.import_module("robustill.evaluation"), "datetime", SimpleNamespace(date=day))
        yield


def pytest_collectstart() -> None:
    begin_alike()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    begin_alike()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    begin_alike()
