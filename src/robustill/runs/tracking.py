"""Follow a run in TensorBoard, Weights & Biases, MLflow or Trackio, which all store it on this machine by default.

A tracker receives what the run directory holds: its configuration, a number of `metrics.jsonl` for each epoch, the
results of its evaluations, and its page. `tracking.json` of the run holds the identity of the run in each tracker and
the epochs that it has received, so that a resumed or killed run continues there without gaps.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import re
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from robustill.core.errors import ConfigError, RunError, did_you_mean, first_line
from robustill.core.links import refuse_link
from robustill.core.validation import describe
from robustill.runs.directory import RunDirectory

_FILE = "tracking.json"
_PLACES = ("tensorboard", "wandb", "mlflow", "mlflow.db")
"""What trackers write in a run directory, which may come from somebody else."""


class Tracker(Protocol):
    """A run in the storage of a tracker."""

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Store the numbers of an epoch."""

    def add_results(self, results: Mapping[str, float], epoch: int) -> None:
        """Store the results of an evaluation of an epoch, which need not be the last one."""

    def add_page(self, page: Path) -> None:
        """Store the page of `robustill report`, or where it is."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in RUN/tensorboard: tensorboard --logdir RUN."""

    def __init__(self, run: Path, identity: str, config: Mapping[str, Any], epochs: int) -> None:
        module = importlib.import_module("torch.utils.tensorboard")
        # Numbers of epochs that this run has not finished, left by a process that was killed, are replaced.
        purge_step = epochs + 1 if epochs else None
        self.writer = module.SummaryWriter(str(run / "tensorboard"), purge_step=purge_step)
        if not epochs:
            lines = (f"    {key}: {value}" for key, value in _flat(config).items())
            self.writer.add_text("configuration", "\n".join(lines))

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Store the numbers of an epoch as scalars."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, epoch)

    def add_results(self, results: Mapping[str, float], epoch: int) -> None:
        """Store the results as scalars of the epoch."""
        self.log(results, epoch)

    def add_page(self, page: Path) -> None:
        """Store where the page is: TensorBoard shows no HTML."""
        self.writer.add_text("page", str(page))

    def close(self) -> None:
        """Flush the event file."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases, offline unless WANDB_MODE says otherwise: `wandb sync RUN/wandb/...` uploads it."""

    def __init__(self, run: Path, identity: str, config: Mapping[str, Any], epochs: int) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self.module = importlib.import_module("wandb")
        self.run = self.module.init(
            project=os.environ.get("WANDB_PROJECT", "robustill"),
            id=identity,
            name=run.resolve().name,
            config=dict(config),
            dir=str(run),
            resume="allow",
        )

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Store the numbers of an epoch as a step."""
        self.run.log(dict(metrics), step=epoch)

    def add_results(self, results: Mapping[str, float], epoch: int) -> None:
        """Store the results in the summary of the run, since the history takes no earlier step."""
        self.run.summary.update(dict(results))

    def add_page(self, page: Path) -> None:
        """Store the page as a panel."""
        self.run.log({"page": self.module.Html(page.read_text(encoding="utf-8"), inject=False)})

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class MLflow:
    """A run of MLflow, in RUN/mlflow.db unless MLFLOW_TRACKING_URI names another place."""

    def __init__(self, run: Path, identity: str, config: Mapping[str, Any], epochs: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        module = importlib.import_module("mlflow")
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.resolve() / 'mlflow.db'}"
        self.client = module.MlflowClient(tracking_uri=place)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "robustill")
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            folder = None if os.environ.get("MLFLOW_TRACKING_URI") else (run.resolve() / "mlflow").as_uri()
            number = self.client.create_experiment(name, artifact_location=folder)
        else:
            number = experiment.experiment_id
        known = self.client.search_runs([number], f"tags.robustill = '{identity}'")
        if known:
            self.id = known[0].info.run_id
        else:
            new = self.client.create_run(number, run_name=run.resolve().name, tags={"robustill": identity})
            self.id = new.info.run_id
            for key, value in _flat(config).items():
                self.client.log_param(self.id, key, value)

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Store the numbers of an epoch as a step."""
        for name, value in metrics.items():
            self.client.log_metric(self.id, name, value, step=epoch)

    def add_results(self, results: Mapping[str, float], epoch: int) -> None:
        """Store the results as metrics of the epoch."""
        self.log(results, epoch)

    def add_page(self, page: Path) -> None:
        """Store the page as an artefact."""
        self.client.log_artifact(self.id, str(page))

    def close(self) -> None:
        """Mark the run as finished."""
        self.client.set_terminated(self.id)


class Trackio:
    """A run of Trackio, which stores it on this machine: `trackio show` draws it."""

    def __init__(self, run: Path, identity: str, config: Mapping[str, Any], epochs: int) -> None:
        self.module = importlib.import_module("trackio")
        project = os.environ.get("TRACKIO_PROJECT", "robustill")
        name = f"{run.resolve().name}-{identity[:6]}"
        # It prints where the run is, which is no result of the command.
        with redirect_stdout(sys.stderr):
            self.run = self.module.init(project=project, name=name, config=dict(config), resume="allow")

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Store the numbers of an epoch as a step."""
        self.run.log(dict(metrics), step=epoch)

    def add_results(self, results: Mapping[str, float], epoch: int) -> None:
        """Store the results as numbers of the epoch."""
        self.log(results, epoch)

    def add_page(self, page: Path) -> None:
        """Store where the page is."""
        self.run.log({"page": str(page)})

    def close(self) -> None:
        """Finish the run, also for the package, which would finish it again when the process ends."""
        with redirect_stdout(sys.stderr):
            self.module.finish()


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}
"""Each tracker by its name; called with the run, its identity, its configuration and the epochs already stored."""


class TrackedRun:
    """A run directory and the trackers that follow it.

    A tracker that fails is left out with a warning: neither a training nor an evaluation is lost with it.

    Args:
        run: the directory of an existing run.
        names: trackers of `TRACKERS` that follow it from now on, beside those that do so already.

    Raises:
        ConfigError: one of `names` is unknown, not installed, or fails to begin.
        RunError: `tracking.json` is damaged.
    """

    def __init__(self, run: Path, names: tuple[str, ...] = ()) -> None:
        check_trackers(names)
        self.directory = RunDirectory(run)
        self.entries = _read_entries(self.directory)
        self.trackers: dict[str, Tracker] = {}
        for name in names:
            try:
                self._open(name)
            except Exception as error:  # A tracker may raise anything.
                raise ConfigError(f"tracker {name} fails: {first_line(error)}; leave it out to train") from error
        for name in self.entries.keys() - self.trackers.keys():
            self._trying(name, partial(self._open, name))

    def _open(self, name: str) -> None:
        check_trackers([name])
        for place in _PLACES:
            refuse_link(self.directory.path / place)
        is_new = name not in self.entries
        if is_new:
            # Before the tracker begins: a process that is killed meanwhile continues in it.
            self.entries[name] = {"id": uuid.uuid4().hex[:12], "epochs": 0}
            self._save()
        entry = self.entries[name]
        try:
            config = self.directory.config()
            self.trackers[name] = TRACKERS[name](self.directory.path, entry["id"], config, entry["epochs"])
        except Exception:
            # One that fails to begin does not follow the run.
            if is_new:
                del self.entries[name]
                self._save()
            raise

    def _save(self) -> None:
        self.directory.write_json(_FILE, {"format": 1, "trackers": self.entries})

    def _trying(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # A tracker may raise anything, such as errors of its network.
            self.trackers.pop(name, None)
            warnings.warn(f"{name} no longer follows {self.directory.path}: {first_line(error)}", stacklevel=4)

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            self._trying(name, partial(action, tracker))

    def update(self, new_epoch: int | None = None) -> None:
        """Store the epochs of `metrics.jsonl` that a tracker has not received.

        Args:
            new_epoch: an epoch that has just ended; after a rollback, a tracker may have received another one of its
                number.
        """
        lines = self.directory.metrics()
        for name, tracker in list(self.trackers.items()):
            entry = self.entries[name]
            done = entry["epochs"] if new_epoch is None else min(entry["epochs"], new_epoch - 1)
            if done < len(lines):
                self._trying(name, partial(_log, tracker, lines[done:]))
                if name in self.trackers:
                    entry["epochs"] = len(lines)
                    self._trying(name, self._save)

    def add_evaluation(self, name: str, epoch: int, results: Mapping[str, Any]) -> None:
        """Store the results of an evaluation, e.g. as `test-best-standard/robust_accuracy`."""
        numbers = {f"{name}/{key}": value for key, value in _scalars(results).items()}
        self._each(lambda tracker: tracker.add_results(numbers, epoch))

    def add_page(self, page: Path) -> None:
        """Store the page."""
        self._each(lambda tracker: tracker.add_page(page))

    def close(self) -> None:
        """Close every tracker."""
        self._each(lambda tracker: tracker.close())


def _read_entries(directory: RunDirectory) -> dict[str, dict[str, Any]]:
    """Return the identity of a run in each tracker, and the epochs stored there, as `tracking.json` has them."""
    content = directory.read_json(_FILE) or {"trackers": {}}
    entries = content.get("trackers")
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
        raise RunError(f"{directory.path / _FILE} is damaged: remove it, and name the trackers again")
    return entries


def _is_entry(value: Any) -> bool:
    if not isinstance(value, dict) or type(value.get("epochs")) is not int or value["epochs"] < 0:
        return False
    return isinstance(value.get("id"), str) and re.fullmatch(r"[0-9a-f]{12}", value["id"]) is not None


def _log(tracker: Tracker, lines: Sequence[Mapping[str, Any]]) -> None:
    for line in lines:
        tracker.log(_scalars(line), line["epoch"])


@contextmanager
def tracked(run: Path, names: tuple[str, ...] = ()) -> Iterator[TrackedRun | None]:
    """Let trackers follow a run, those of `names` and those that do so already; None if there are none."""
    if not names and not (run / _FILE).is_file():
        yield None
        return
    following = TrackedRun(run, names)
    try:
        following.update()
        yield following
    finally:
        following.close()


def check_trackers(names: Sequence[str]) -> None:
    """Check the names of trackers, and that they are installed, before a run begins.

    Raises:
        ConfigError: a tracker is unknown, or not installed.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"track is {describe(names)}, expected a list of {', '.join(TRACKERS)}")
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"tracker {name!r} is unknown: {did_you_mean(str(name), TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"tracker {name} is not installed: pip install {name}")


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a line of metrics or of results, but for the epoch."""
    numbers = {key: value for key, value in values.items() if type(value) in (int, float) and key != "epoch"}
    return {key: float(value) for key, value in numbers.items() if math.isfinite(value)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the settings of a configuration by their dotted names, as text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat
