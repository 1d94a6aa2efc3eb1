"""Evaluate the checkpoints of a run, or anybody's network, and keep the records where they belong."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robustill.analysis.summary import summary
from robustill.attacks.suites import find_suite
from robustill.config.overrides import apply_overrides
from robustill.config.schema import Config, make_config
from robustill.config.split import load_split
from robustill.core.device import (
    configure_process,
    explaining_out_of_memory,
    largest_fitting_batch,
    out_of_memory_advice,
)
from robustill.core.distributed import local_device, process_group
from robustill.core.errors import ConfigError, ModelError, RunError, printable
from robustill.core.files import exclusive_lock_in
from robustill.core.links import refuse_link
from robustill.core.user_code import TrustCode, only_named, paths_in
from robustill.data import DATASETS, Dataset
from robustill.evaluation.evaluate import evaluate
from robustill.models.loading import LoadedNetwork, Shape, load_network
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records, read_summary
from robustill.threat import Threat

# Of weights and programs; one that is not there is no run directory that is missing.
_FILES = (".pt", ".pth", ".pt2", ".safetensors")


def evaluate_run(
    run: Path | str,
    *,
    checkpoints: Sequence[str] | str | None = None,
    overrides: Sequence[str] = (),
    threats: Sequence[str] = (),
    progress: bool = True,
    trust_code: TrustCode = False,
    **settings: Any,
) -> dict[Path, Records]:
    """Evaluate checkpoints of a run on the test images it was configured for, under the threat it was trained against.

    What is done is kept on the way: killed and called again, it goes on, with the same records in the end; what is
    finished is read. Checkpoints of the same weights, such as a last epoch that is the best one, are attacked once.

    Args:
        run: the run directory.
        checkpoints: one or several, such as "best", "last", "epoch-20"; None is best and last, and their averages if
            there are any.
        overrides: of the run's configuration, e.g. ["--data.root", "data"] or ["--threat", "linf:4/255"].
        threats: such as ["linf:8/255", "l2:0.5"], one evaluation each; none is that of the configuration.
        progress: show bars.
        trust_code: import paths that the run may name although the overrides do not, such as ["my_mod:net"]; True is
            all of them.
        settings: as `evaluate` takes them: suite, num_images, seed, batch_size, precision, eps_curve, masking; split;
            and surrogate, a specification of `load_network`.

    Returns:
        The records of each checkpoint, by the folder under run/evaluations where they lie.

    Raises:
        UntrustedCodeError: the run's network is an import path that only the run names.
        RobustillError: a checkpoint, the data or a setting that cannot be, or a half-done evaluation of other weights.
    """
    with only_named(*_named_paths(overrides, settings), trust=trust_code):
        return _evaluate_run(run, checkpoints, overrides, threats, progress, settings)


def _evaluate_run(
    run: Path | str,
    checkpoints: Sequence[str] | str | None,
    overrides: Sequence[str],
    threats: Sequence[str],
    progress: bool,
    settings: dict[str, Any],
) -> dict[Path, Records]:
    if isinstance(checkpoints, str):
        checkpoints = [checkpoints]
    directory = RunDirectory.existing(run)
    refuse_link(directory.path / "evaluations")
    _refuse_without_effect(overrides, directory.config(), ("data", "threat", "compute"))
    config = _judged(_with_folder(apply_overrides(directory.config(), overrides)))
    if checkpoints is None:
        # A run that stopped early may have no mean over epochs yet.
        averages = [kind for kind in ("ema", "swa") if directory.pointed(f"best-{kind}") is not None]
        checkpoints = ["best", "last", *(f"{name}-{kind}" for kind in averages for name in ("best", "last"))]
    for what in checkpoints:
        directory.resolve(what)
    found: dict[Path, Records] = {}
    attacked: dict[str, list[Records]] = {}
    for what in checkpoints:
        network = load_network(f"run:{directory.path}@{what}")
        assert network.config is not None
        judge = _Judge(network, config, what, directory.path / "evaluations", settings)
        judge.trained = _judged(network.config)
        judge.facts |= {"epoch": network.epoch, "run": printable(directory.path.name)}
        label = f"{directory.path.name}@{what}" if progress else None
        same = attacked.get(network.sha256)
        records = judge.all(threats, label) if same is None else judge.again(threats, same)
        attacked[network.sha256] = list(records.values())
        found |= records
    return found


def evaluate_file(
    weights: Path | str | None,
    *,
    out: Path | str,
    overrides: Sequence[str],
    threats: Sequence[str] = (),
    progress: bool = True,
    trust_code: TrustCode = False,
    **settings: Any,
) -> dict[Path, Records]:
    """Evaluate anybody's network; the overrides say which architecture, data set and threat.

    Args:
        weights: a file, .safetensors, .pt or .pth, which needs a --model; a .pt2 program or another specification of
            `load_network`, such as "robustbench:ID=FILE"; None where --model my_pkg.my_mod:build brings its weights.
            No file is unpickled.
        out: the folder for the records.
        overrides: such as ["--model", "resnet18", "--data", "cifar10", "--threat", "linf:8/255"].
        threats: as for `evaluate_run`.
        progress: show a bar.
        trust_code: as for `evaluate_run`, where `weights` or the surrogate is a run.
        settings: as for `evaluate_run`.

    Raises:
        RobustillError: the network, the data or a setting that cannot be.
    """
    with only_named(*_named_paths([*overrides, str(weights or "")], settings), trust=trust_code):
        return _evaluate_file(weights, out, overrides, threats, progress, settings)


def _evaluate_file(
    weights: Path | str | None,
    out: Path | str,
    overrides: Sequence[str],
    threats: Sequence[str],
    progress: bool,
    settings: dict[str, Any],
) -> dict[Path, Records]:
    if settings.get("split") in ("validation", "pool"):
        raise ConfigError(
            "only a run has held out a part of its training images and has a pool: expected split train or test"
        )
    values = _with_folder(apply_overrides({}, overrides))
    explaining_out_of_memory = (
        str(values.get("model", {}).get("name", "")) if isinstance(values.get("model", {}), dict) else ""
    )
    if weights is None:
        if ":" not in explaining_out_of_memory:
            raise ConfigError(
                "nothing to evaluate: give a run directory, a file of --weights with its --model, "
                "or --model my_pkg.my_mod:build"
            )
        weights, values = explaining_out_of_memory, {key: value for key, value in values.items() if key != "model"}
    file = Path(weights)
    alone = file.is_file() and file.suffix != ".pt2"
    for key in ("model", "data", "threat") if alone else ("data", "threat"):
        if key not in values and not (key == "threat" and threats):
            lacks = "holds weights alone" if alone else "is a network alone"
            raise ConfigError(f"{weights} {lacks}: give --{key} too, see `robustill evaluate --help`")
    _refuse_without_effect(overrides, {}, ("model", "data", "threat", "compute"))
    config = make_config(values)
    dataset = load_split(config, settings.get("split", "test"))
    shape = Shape.of(dataset)
    name = config.model.name if "model" in values else None
    options = {**config.model.options, "mean": config.model.mean, "std": config.model.std}
    network = load_network(str(weights), shape=shape, name=name, options=options if name else None)
    # A file may have any name; the folder of its records is printed, and goes to other systems.
    stem = (
        "".join(each if each.isprintable() else "-" for each in file.stem) if file.is_file() else _plain(str(weights))
    )
    judge = _Judge(network, config, stem, Path(out), settings)
    judge.facts["checkpoint"] = printable(file.name if file.is_file() else str(weights))
    if name is not None:
        judge.facts["model"] = name
    return judge.all(threats, stem if progress else None)


class _Judge:
    """One network under one or several threats.

    Args:
        network: it.
        config: of data, threat and compute.
        what: it in the name of its folder.
        home: of the folders.
        settings: of `evaluate`, and split.
    """

    def __init__(
        self, network: LoadedNetwork, config: Config, what: str, home: Path, settings: Mapping[str, Any]
    ) -> None:
        self.network, self.config, self.what, self.home = network, config, what, home
        self.settings: dict[str, Any] = {"suite": "pgd", "num_images": None, "precision": "exact", **settings}
        self.split = self.settings.pop("split", "test")
        self.trained: Config | None = None
        self.facts: dict[str, Any] = {
            "checkpoint": what,
            "checkpoint_sha256": network.sha256,
            "architecture": network.architecture,
            "split": self.split,
        }

    def all(self, threats: Sequence[str], label: str | None) -> dict[Path, Records]:
        """The records of each threat, by their folder."""
        device = local_device(configure_process(self.config.compute))
        wanted = self._wanted(threats)
        dataset = load_split(self.config, self.split)
        spec = self.settings.pop("surrogate", None)
        if spec is not None:
            shape = Shape.of(dataset)
            surrogate = load_network(str(spec), shape=shape)
            self.settings["surrogate"] = surrogate.module
            self.facts["surrogate"] = {"spec": printable(surrogate.spec), "sha256": surrogate.sha256}
        group, found = process_group(), {}
        for threat in wanted:
            folder = self._folder(threat, len(dataset), dataset.fingerprint)
            title = label and (label if len(wanted) == 1 else f"{label} {threat}")
            # The others of a group work for the first.
            with _alone_in(folder) if group.is_main else nullcontext():
                before = group.broadcast(_kept(folder) if group.is_main else None)
                try:
                    with explaining_out_of_memory(lambda: self._what_fits(dataset)):
                        records = evaluate(
                            self.network.module,
                            dataset,
                            threat=threat,
                            device=device,
                            progress=title,
                            conditions=self.facts,
                            state=folder / ".state",
                            before=before,
                            **self.settings,
                        )
                except ModelError as error:
                    raise ModelError(f"{self.network.spec}: {error}") from error
                if records is not before and group.is_main:
                    _keep(records, folder)
            if records is before and title is not None:
                line = f"evaluated on {records.conditions['date']} already, nothing is attacked"
                print(printable(f"{title}: {line}; delete {folder} to attack again"), file=sys.stderr)
            group.barrier()
            found[folder] = records
        return found

    def again(self, threats: Sequence[str], same: Sequence[Records]) -> dict[Path, Records]:
        """The records of the same weights, attacked under another name, as those of this one; by their folder."""
        group, found = process_group(), {}
        for threat, records in zip(self._wanted(threats), same, strict=True):
            folder = self._folder(threat, records.conditions["of_images"], records.conditions["data_fingerprint"])
            found[folder] = replace(records, conditions={**records.conditions, "checkpoint": self.what})
            if group.is_main:
                with _alone_in(folder):
                    _keep(found[folder], folder)
            group.barrier()
        return found

    def _wanted(self, threats: Sequence[str]) -> list[Threat]:
        return [Threat.parse(text) for text in threats] or [self.config.threat.build()]

    def _what_fits(self, dataset: Dataset) -> str:
        """What to do where the memory did not hold a batch; the records are the same for any size of it."""
        model, size = self.network.module, min(int(self.settings.get("batch_size", 256)), len(dataset))
        device = next((each.device for each in model.parameters()), torch.device("cpu"))

        def attempt(images: int) -> None:
            x = dataset.read(torch.arange(images)).to(device).float() / 255
            torch.autograd.grad(model(x.requires_grad_(True)).sum(), x)

        fit = largest_fitting_batch(attempt, size)
        way = f"the same command with --batch-size {fit} goes on, to the same records"
        return f"{size} images at a time are too many for {device}: {out_of_memory_advice(fit, way)}"

    def _folder(self, threat: Threat, of_images: int, fingerprint: str) -> Path:
        """Where the records go: never over those of other images, or of another file."""
        folder = self.home / self._name(threat, of_images)
        try:
            there = read_summary(folder)["conditions"]
        except RunError:
            return folder
        marks = [] if there.get("data_fingerprint") == fingerprint else [_plain(fingerprint)]
        # A run's checkpoint is whatever it is now; a file may be another one of the same name.
        if self.trained is None and there.get("checkpoint_sha256") != self.network.sha256:
            marks.append(self.network.sha256[:12])
        return folder.with_name("-".join([folder.name, *marks]))

    def _name(self, threat: Threat, of_images: int) -> str:
        suite, number = self.settings["suite"], self.settings["num_images"]
        if number is None:
            number = find_suite(suite).num_images
        parts = [self.split, self.what, re.sub(r"[^\w-]+", "+", suite)]
        if self.trained is not None and self.config.data.name != self.trained.data.name:
            parts.append(f"on-{_plain(self.config.data.name)}")
        if self.settings["precision"] != "exact":
            parts.append(self.settings["precision"])
        if number is not None and number < of_images:
            # A part never takes the place of the whole.
            parts.append(f"{number}-images")
        if self.settings.get("seed", 0) != 0:
            parts.append(f"seed-{self.settings['seed']}")
        if self.trained is None or threat != self.trained.threat.build():
            parts.append(str(threat).replace("/", "_").replace(":", "-"))
        return "-".join(parts)


def _plain(words: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", words)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    # The folder of a run may come from somebody else.
    refuse_link(folder)
    refuse_link(folder / ".state")
    refusal = f"{folder} is being written by another process: wait for it, or take another suite or --out"
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock_in(folder / ".state", refusal))
        except OSError as error:
            raise RunError(f"{folder} cannot be written ({error.strerror}): give it room, or another --out") from None
        yield


def _kept(folder: Path) -> Records | None:
    """The records of an earlier evaluation, where they are whole."""
    try:
        return Records.load(folder)
    except RunError:
        return None


def _keep(records: Records, folder: Path) -> None:
    records.save(folder, summary(records))
    # Only now is nothing lost without it.
    shutil.rmtree(folder / ".state", ignore_errors=True)


def names_a_network(target: str) -> bool:
    """Whether it names a network by itself, as `evaluate_file` takes it, and not a run directory.

    Example:
        >>> names_a_network("robustbench:Wong2020Fast"), names_a_network("missing.pt"), names_a_network("runs/student")
        (True, True, False)
    """
    path = Path(target)
    return not path.is_dir() and (path.is_file() or ":" in target or path.suffix in _FILES)


def _named_paths(words: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Return the import paths that the caller named, also as the surrogate."""
    return paths_in([*words, str(settings.get("surrogate") or "")])


def _judged(values: Mapping[str, Any]) -> Config:
    """Return the settings of a run that an evaluation needs: its method, which may be code, is not built."""
    return make_config({key: values[key] for key in ("data", "threat", "compute") if key in values})


def _with_folder(values: dict[str, Any]) -> dict[str, Any]:
    """`--data DIR` in place of the name of a data set: a folder of images, or of .npz files."""
    data = values.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    if not isinstance(data, dict) or name is None or name in DATASETS or not Path(str(name)).exists():
        return values
    place = Path(str(name))
    arrays = place.is_file() or any(each.suffix == ".npz" and not each.name.startswith(".") for each in place.iterdir())
    return {**values, "data": {**data, "name": "npz" if arrays else "folder", "root": str(place)}}


def _refuse_without_effect(overrides: Sequence[str], values: dict[str, Any], used: Sequence[str]) -> None:
    for key, value in apply_overrides(values, overrides).items():
        if key not in used and value != values.get(key):
            raise ConfigError(f"--{key} has no effect on an evaluation: expected settings of {', '.join(used)} only")
