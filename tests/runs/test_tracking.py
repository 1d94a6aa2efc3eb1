"""A tracker receives every epoch of a run once, in order, whatever interrupts the training."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.small_runs import small_config
from robustill.core.errors import ConfigError, RunError
from robustill.runs.directory import RunDirectory
from robustill.runs.tracking import TRACKERS, tracked
from robustill.training.loop import train

THREE = small_config(optim={"epochs": 3})


class FakeWandB(ModuleType):
    """The part of `wandb` that is called, which keeps what it receives."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.finished = 0

    def init(self, **settings: Any) -> FakeWandB:
        self.started.append(settings)
        return self

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    def Html(self, text: str, inject: bool) -> str:  # noqa: N802
        return text


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandB:
    module = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return module


def test_tensorboard_shows_the_numbers_of_the_metrics(tmp_path: Path) -> None:
    result = train(THREE, tmp_path / "run", progress=False, track=["tensorboard"])
    with tracked(tmp_path / "run") as run:
        assert run is not None
        run.add_evaluation("test-best-pgd", result.best, {"robust_accuracy": 0.25, "stages": ["pgd"]})
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("train_loss", "validation_robust_accuracy"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(line["epoch"], pytest.approx(line[name])) for line in result.metrics]
    assert [event.value for event in events.Scalars("test-best-pgd/robust_accuracy")] == [0.25]
    assert "optim.epochs: 3" in events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()


def test_a_resumed_run_continues_in_its_tracker(wandb: FakeWandB, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(line: Any) -> None:
        if line["epoch"] == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(THREE, tmp_path / "run", progress=False, on_epoch=stop, track=["wandb"])
    assert [step for step, _ in wandb.logged] == [1, 2]
    # The tracker is not named again.
    result = train(THREE, tmp_path / "run", progress=False)
    assert [step for step, _ in wandb.logged] == [1, 2, 3]
    assert [values["train_loss"] for _, values in wandb.logged] == [line["train_loss"] for line in result.metrics]
    assert len({settings["id"] for settings in wandb.started}) == 1
    assert wandb.finished == len(wandb.started) == 2
    assert wandb.started[0]["config"]["optim"]["epochs"] == 3


def test_a_finished_run_can_be_followed_later(wandb: FakeWandB, tmp_path: Path) -> None:
    seen: list[Any] = []
    result = train(THREE, tmp_path / "run", progress=False, on_epoch=seen.append)
    assert seen == result.metrics
    train(THREE, tmp_path / "run", progress=False, track=["wandb"])
    assert [step for step, _ in wandb.logged] == [1, 2, 3]
    train(THREE, tmp_path / "run", progress=False)
    assert [step for step, _ in wandb.logged] == [1, 2, 3]


def test_nothing_leaves_the_machine_by_default(
    wandb: FakeWandB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(small_config(optim={"epochs": 1}), tmp_path / "run", progress=False, track=["wandb"])
    assert os.environ["WANDB_MODE"] == "offline"
    assert wandb.started[0]["dir"] == str(tmp_path / "run")
    monkeypatch.delenv("WANDB_MODE")


def test_mlflow_sends_nothing_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            seen.extend([os.environ.get("MLFLOW_DISABLE_TELEMETRY"), tracking_uri])
            raise RuntimeError("far enough")

    mlflow = ModuleType("mlflow")
    mlflow.__spec__ = ModuleSpec("mlflow", None)
    mlflow.MlflowClient = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="far enough"):
        train(small_config(optim={"epochs": 1}), tmp_path / "run", progress=False, track=["mlflow"])
    assert seen == ["true", f"sqlite:///{(tmp_path / 'run' / 'mlflow.db').resolve()}"]
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")


class FakeTrackio(ModuleType):
    """The part of `trackio` that is called, which prints as it does."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.__spec__ = ModuleSpec("trackio", None)
        self.steps: list[int | None] = []
        self.finished = 0

    def init(self, **settings: Any) -> FakeTrackio:
        print("* Created new run")
        return self

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.steps.append(step)

    def finish(self) -> None:
        print("* Run finished")
        self.finished += 1


def test_what_trackio_prints_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trackio = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    train(THREE, tmp_path / "run", progress=False, track=["trackio"])
    printed = capsys.readouterr()
    assert (printed.out, trackio.steps, trackio.finished) == ("", [1, 2, 3], 1)
    assert "* Created new run\n* Run finished" in printed.err


def test_a_tracker_that_is_unknown_or_missing_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="tracker 'tensorbord' is unknown: did you mean tensorboard"):
        train(THREE, tmp_path / "run", track=["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for name in TRACKERS:
        with pytest.raises(ConfigError, match=f"tracker {name} is not installed: pip install {name}"):
            train(THREE, tmp_path / "run", track=[name])
    with pytest.raises(ConfigError, match="track is 'wandb', expected a list"):
        train(THREE, tmp_path / "run", track="wandb")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_gone_does_not_stop_the_run(
    wandb: FakeWandB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(THREE, tmp_path / "run", progress=False, track=["wandb"])
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.warns(UserWarning, match="wandb no longer follows"):
        train(THREE, tmp_path / "run", progress=False)
    assert RunDirectory.existing(tmp_path / "run").read_json("tracking.json")["trackers"]["wandb"]["epochs"] == 3


def test_a_tracker_that_fails_does_not_end_the_run(
    wandb: FakeWandB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("the network is down\nfor good")

    monkeypatch.setattr(wandb, "log", fails)
    with pytest.warns(UserWarning, match=r"wandb no longer follows .*: the network is down$"):
        result = train(THREE, tmp_path / "run", progress=False, track=["wandb"])
    assert len(result.metrics) == 3
    # What it has not received comes later.
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(THREE, tmp_path / "run", progress=False)
    assert [step for step, _ in wandb.logged] == [1, 2, 3]


def test_a_tracker_that_cannot_begin_is_refused(
    wandb: FakeWandB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: Any) -> None:
        raise RuntimeError("no account")

    with monkeypatch.context() as patched:
        patched.setattr(wandb, "init", fails)
        with pytest.raises(ConfigError, match="tracker wandb fails: no account; leave it out to train"):
            train(THREE, tmp_path / "run", progress=False, track=["wandb"])
    # Left out, it does not follow the run.
    train(THREE, tmp_path / "run", progress=False)
    assert wandb.started == []


@pytest.mark.parametrize("place", ["tensorboard", "wandb", "mlflow.db"])
def test_trackers_write_through_no_link(wandb: FakeWandB, tmp_path: Path, place: str) -> None:
    train(THREE, tmp_path / "run", progress=False, track=["wandb"])
    (tmp_path / "victim").mkdir()
    (tmp_path / "run" / place).symlink_to(tmp_path / "victim")
    with pytest.warns(UserWarning, match=rf"wandb no longer follows .*{place} is a link"), tracked(tmp_path / "run"):
        pass
    assert len(wandb.started) == 1


@pytest.mark.parametrize(
    "trackers",
    [3, {"wandb": 3}, {"wandb": {"id": "a/../../b", "epochs": 0}}, {"wandb": {"id": "0123456789ab", "epochs": -1}}],
)
def test_a_damaged_file_of_trackers_is_one_line(wandb: FakeWandB, tmp_path: Path, trackers: Any) -> None:
    train(small_config(optim={"epochs": 1}), tmp_path / "run", progress=False)
    RunDirectory.existing(tmp_path / "run").write_json("tracking.json", {"format": 1, "trackers": trackers})
    with pytest.raises(RunError, match=r"tracking\.json is damaged: remove it"), tracked(tmp_path / "run"):
        pass
    assert not wandb.started
