"""SIGINT and SIGTERM: no finished work is lost, and a run resumes at its next step bit for bit."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.small_runs import lines, small_config, tree, weights
from robustill.config.files import dump_config
from robustill.core.signals import Interrupted, Stop, interruptible
from robustill.training import loop as module
from robustill.training.loop import train

KINDS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may take long on a busy machine: only tests that set a shorter time run out of it, and once."""
    monkeypatch.setattr("robustill.core.signals.PATIENCE", 600.0)
    monkeypatch.setattr("robustill.core.signals._RETRY", 600.0)


def trained(run: Path, **changes: object) -> Path:
    return train(small_config(**changes), run, progress=False).run


def stopped(run: Path, monkeypatch: pytest.MonkeyPatch, at: int, kind: int, **changes: object) -> str:
    """Train until a signal in a step (counted over all epochs); return the message."""
    rate, steps = module._Loop._set_rate, []

    def watched(self: module._Loop, step: int) -> float:
        # At the end of an epoch it is called once more for the last step.
        if steps[-1:] != [step]:
            steps.append(step)
            if step == at:
                signal.raise_signal(kind)
        return rate(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(module._Loop, "_set_rate", watched)
        with pytest.raises(Interrupted) as caught:
            trained(run, **changes)
    assert caught.value.exit_code == 128 + kind
    return str(caught.value)


def steps_of(run: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> list[int]:
    """Train to the end; return the number of steps."""
    step, taken = module._Loop._set_rate, []

    def watched(self: module._Loop, number: int) -> float:
        taken.append(number)
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(module._Loop, "_set_rate", watched)
        trained(run, **changes)
    return sorted(set(taken))


def teachers(tmp_path: Path) -> list[dict[str, str]]:
    teacher = trained(tmp_path / "teacher", seed=9, optim={"epochs": 1})
    return [{"spec": f"run:{teacher}@last", "role": role} for role in ("robust", "natural")]


def extra(tmp_path: Path) -> str:
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "extra.npz", image=images, label=draws.integers(0, 10, 50))
    return str(tmp_path / "extra.npz")


FIVE_STEPS = {"epochs": 2, "batch_size": 9}


@pytest.mark.parametrize(("at", "kind"), [(0, KINDS[1]), (2, KINDS[0]), (4, KINDS[1]), (6, KINDS[1]), (9, KINDS[1])])
def test_a_stopped_run_resumes_at_its_next_step_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, kind: int
) -> None:
    changes = {"optim": {**FIVE_STEPS, "ema": 0.9}}
    whole, run = trained(tmp_path / "whole", **changes), tmp_path / "run"
    message = stopped(run, monkeypatch, at, kind, **changes)
    in_epoch = f"step {at % 5 + 1} of 5 in epoch {at // 5 + 1}" if at % 5 < 4 else f"epoch {at // 5 + 1}"
    name = signal.Signals(kind).name
    assert message == f"stopped by {name}; {run} is kept up to {in_epoch}: the same command goes on there"
    assert (run / "checkpoints" / "unfinished").is_dir() == (at % 5 < 4)
    # The rate of the last step of each epoch is read again for the metrics.
    assert set(range(at + 1, 10)) <= set(steps_of(run, monkeypatch, **changes)) <= {*range(at + 1, 10), 4, 9}
    assert lines(run) == lines(whole)
    assert [weights(run, name) for name in ("last", "last-ema", "best")] == [
        weights(whole, name) for name in ("last", "last-ema", "best")
    ]
    assert tree(run / "dynamics") == tree(whole / "dynamics")
    assert sorted(tree(run)) == sorted(tree(whole))


CHANGES: dict[str, dict[str, Any]] = {
    "averages": {"optim": {**FIVE_STEPS, "ema": 0.9, "swa": 0.0, "awp": 0.01, "accumulate": 2}},
    "data": {"data": {"extra": "", "extra_share": 0.4, "augmentation": ["shift"], "cutmix": 0.5}, "optim": FIVE_STEPS},
    "adamw": {"optim": {**FIVE_STEPS, "name": "adamw", "learning_rate": 0.001}, "dynamics": {"clean_every": 1}},
    "mtard": {"method": {"name": "mtard", "temperature_rate": 0.1}, "optim": FIVE_STEPS},
    "fair_ard": {"method": {"name": "fair_ard"}, "optim": FIVE_STEPS},
    "peerad": {"method": {"name": "peerad"}, "optim": FIVE_STEPS},
    "lbgat": {"method": {"name": "lbgat"}, "optim": FIVE_STEPS},
    "hat": {"method": {"name": "hat"}, "optim": FIVE_STEPS},
    "absld": {"method": {"name": "absld"}, "optim": FIVE_STEPS},
    "dgad": {"method": {"name": "dgad"}, "optim": FIVE_STEPS},
    "fair-mtard": {"method": {"name": "fair_ard", "base": "mtard"}, "optim": FIVE_STEPS},
    "dkl": {"method": {"name": "dkl"}, "optim": FIVE_STEPS},
    "sgls": {"method": {"name": "sgls"}, "optim": FIVE_STEPS},
    "adr": {"method": {"name": "adr", "base": "trades"}, "optim": {**FIVE_STEPS, "ema": 0.9}},
    "te": {"method": {"name": "te", "begin": 0.0}, "optim": {**FIVE_STEPS, "accumulate": 2}},
    "rebat": {"method": {"name": "rebat", "begin": 0.0}, "optim": {**FIVE_STEPS, "ema": 0.9}},
}


# Each has state of a kind of its own; the others share theirs with one of these.
OWN_STATE = ("averages", "data", "adamw", "mtard", "lbgat", "dkl", "adr", "te")


@pytest.mark.parametrize(
    "what", [name if name in OWN_STATE else pytest.param(name, marks=pytest.mark.slow) for name in CHANGES]
)
def test_all_state_is_saved_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    changes = {**CHANGES[what]}
    if what == "data":
        changes["data"] = {**changes["data"], "extra": extra(tmp_path)}
    roles = {"mtard": slice(2), "fair-mtard": slice(2), "hat": slice(1, 2)}
    if what in (*roles, "fair_ard", "absld", "dgad"):
        changes["teachers"] = teachers(tmp_path)[roles.get(what, slice(1))]
    whole, run = trained(tmp_path / "whole", **changes), tmp_path / "run"
    stopped(run, monkeypatch, 2, signal.SIGTERM, **changes)
    stopped(run, monkeypatch, 7, signal.SIGTERM, **changes)
    trained(run, **changes)
    assert lines(run) == lines(whole)
    kinds = ["last", *(f"last-{kind}" for kind in ("ema", "swa") if kind in changes["optim"])]
    assert [weights(run, kind) for kind in kinds] == [weights(whole, kind) for kind in kinds]
    assert tree(run / "dynamics") == tree(whole / "dynamics")


def test_a_damaged_unfinished_epoch_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run = trained(tmp_path / "whole"), tmp_path / "run"
    stopped(run, monkeypatch, 2, signal.SIGTERM)
    state = run / "checkpoints" / "unfinished" / "state.pt"
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"unfinished/state.pt is damaged.*; its epoch begins again"):
        trained(run)
    assert weights(run) == weights(whole)
    assert sorted(tree(run)) == sorted(tree(whole))


def test_a_signal_during_validation_loses_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run = trained(tmp_path / "whole"), tmp_path / "run"

    def slow(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)

    monkeypatch.setattr("robustill.core.signals.PATIENCE", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr("robustill.training.validation.validation_accuracy", slow)
        with pytest.raises(Interrupted, match="step 2 of 2 in epoch 1"):
            trained(run)
    taken = steps_of(run, monkeypatch)
    assert taken == [1, 2, 3]
    assert lines(run) == lines(whole)
    assert weights(run) == weights(whole)


def test_work_without_a_boundary_is_interrupted() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robustill.core.signals.PATIENCE", 0.05)
        before = signal.getsignal(signal.SIGALRM)

        def work() -> None:
            with Stop():
                signal.raise_signal(signal.SIGTERM)
                time.sleep(600)

        with pytest.raises(Interrupted):
            work()
        assert signal.getsignal(signal.SIGALRM) == before
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_second_signal_interrupts_at_once_but_not_saving() -> None:
    noted = []

    def work() -> None:
        with Stop() as stop:
            with stop.saving():
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGALRM)
            noted.append(stop.signal)
            signal.raise_signal(signal.SIGINT)
            noted.append(0)

    with pytest.raises(Interrupted):
        work()
    assert noted == [signal.SIGTERM]


def test_ignored_signals_and_other_threads_are_unaffected() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    noted: list[object] = []

    def elsewhere() -> None:
        with Stop() as stop:
            noted.append(stop.signal)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert noted == [None]


@pytest.mark.parametrize("hangs", [False, True])
def test_a_signal_during_an_import_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    name = f"imported_{hangs}".lower()
    source = ["import signal, time", "signal.raise_signal(signal.SIGTERM)", "time.sleep(600)" if hangs else "whole = 1"]
    (tmp_path / f"{name}.py").write_text("\n".join(source))
    monkeypatch.syspath_prepend(tmp_path)
    if hangs:
        monkeypatch.setattr("robustill.core.signals.PATIENCE", 0.2)

    def work() -> None:
        importlib.import_module(name)
        time.sleep(600)

    with pytest.raises(Interrupted) as caught, interruptible():
        work()
    assert caught.value.exit_code == 143
    assert (name in sys.modules) == (not hangs)


# --- whole processes


STOPPED = """
import os, signal
from robustill.core import signals
from robustill.{module} import {owner} as owner

signals.PATIENCE = 600.0
original, done = owner.{name}, []

def watched(*arguments, **settings):
    original(*arguments, **settings)
    done.append(None)
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGTERM)

owner.{name} = watched
from robustill.cli import main
main()
"""


def stop_after_two(name: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that sends itself SIGTERM after the second call of a method."""
    module, owner, method = name.rsplit(".", 2)
    command = [sys.executable, "-c", STOPPED.format(module=module, owner=owner, name=method), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.slow
def test_train_stops_after_an_epoch_with_one_line(tmp_path: Path) -> None:
    # Without a signal it would train for hours.
    (tmp_path / "a.yaml").write_text(dump_config(small_config(optim={"epochs": 100000})))
    done = stop_after_two("runs.directory.RunDirectory.append_metrics", tmp_path, "train", "a.yaml", "--run", "run")
    assert done.returncode == 143, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "robustill: stopped by SIGTERM; run is kept up to epoch 2: the same command goes on there"
    )
    assert "Traceback" not in done.stderr


def test_evaluate_stops_with_one_line_and_keeps_finished_batches(tmp_path: Path) -> None:
    train(small_config(optim={"epochs": 1}), tmp_path / "run", progress=False)
    words = ["evaluate", "run", "--checkpoint", "last", "--suite", "standard", "--no-masking", "--batch-size", "16"]
    done = stop_after_two("evaluation.state.EvaluationState.save_attack_state", tmp_path, *words)
    assert done.returncode == 143, done.stderr
    line = "robustill: stopped by SIGTERM; nothing finished is lost; the same command goes on"
    assert done.stderr.splitlines()[-1] == line
    assert "Traceback" not in done.stderr
    state = tmp_path / "run" / "evaluations" / "test-last-standard" / ".state"
    assert list(state.glob("part-*.npz"))
    assert not list(state.parent.glob("summary.json"))
