"""Evaluation of the checkpoints of a run, or of a network without a run, with the records saved in its folder."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from robustill.attacks.suites import find_suite
from robustill.config.overrides import apply_overrides
from robustill.config.schema import Config, make_config, setting_hint
from robustill.config.split import load_split
from robustill.core.device import (
    configure_process,
    explaining_out_of_memory,
    largest_fitting_batch,
    out_of_memory_advice,
)
from robustill.core.distributed import local_device, process_group
from robustill.core.errors import ConfigError, ModelError, printable
from robustill.core.links import refuse_link
from robustill.core.user_code import (
    SPECIFICATION_KINDS,
    TrustCode,
    explain_file,
    is_import_path,
    only_named,
    paths_in,
)
from robustill.core.validation import check_path, check_texts, check_type
from robustill.data import Dataset
from robustill.evaluation.evaluate import evaluate
from robustill.evaluation.folders import RecordsFolders, file_name, load_records, lock, save_records
from robustill.evaluation.surrogates import agreement_warnings, load_surrogates
from robustill.models.layers import Normalize
from robustill.models.loading import LoadedNetwork, Shape, check_names_itself, load_network
from robustill.models.onnx_file import OnnxNetwork, is_onnx_file, load_onnx
from robustill.models.weights import refuse_other_format
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records
from robustill.threat import Threat

_OVERRIDES = '["--data.root", "data"]'
# Suffixes of files of weights and programs: a missing one is not mistaken for a missing run directory.
_FILE_SUFFIXES = (".pt", ".pth", ".pt2", ".safetensors", ".onnx")


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

    Intermediate results are saved: an interrupted call, repeated, resumes and ends with the same records, and finished
    evaluations are read from disk. Checkpoints of the same weights, such as a last epoch that is also the best one, are
    attacked once.

    Args:
        run: the run directory.
        checkpoints: one or several, such as "best", "last", "epoch-20"; None is best and last, and their averages if
            there are any.
        overrides: changes of the run's configuration, e.g. ["--data.root", "data"] or ["--threat", "linf:4/255"].
        threats: such as ["linf:8/255", "l2:0.5"], one evaluation each; empty is the threat of the configuration.
        progress: show progress bars.
        trust_code: import paths that the run may name although the overrides do not, such as ["my_mod:net"]; True is
            all of them.
        settings: arguments of `evaluate`: suite, num_images, first, seed, batch_size, precision, eps_curve, masking;
            also split, and surrogate, a specification of `load_network`.

    Returns:
        The records of each checkpoint, by the folder under run/evaluations that contains them.

    Raises:
        UntrustedCodeError: the run's network is an import path that only the run names.
        RobustillError: an invalid checkpoint, data set or setting, an unfinished evaluation of other weights, or one of
            the same weights inside other code, whose records are not overwritten.
    """
    overrides = check_texts("overrides", overrides, _OVERRIDES)
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
    if checkpoints is not None:
        checkpoints = check_texts("checkpoints", checkpoints, '["best", "last"]')
    directory = RunDirectory.existing(check_path("run", run))
    refuse_link(directory.path / "evaluations")
    _check_overrides(overrides, directory.config(), ("data", "threat", "compute"))
    config = _evaluation_config(apply_overrides(directory.config(), overrides))
    if checkpoints is None:
        checkpoints = _default_checkpoints(directory)
    for checkpoint in checkpoints:
        directory.checkpoints.resolve(checkpoint)
    evaluated: dict[Path, Records] = {}
    attacked: dict[str, list[Records]] = {}
    for number, checkpoint in enumerate(checkpoints):
        network = load_network(f"run:{directory.path}@{checkpoint}")
        assert network.config is not None
        trained = _evaluation_config(network.config)
        parent = directory.path / "evaluations"
        evaluator = _Evaluator(network, config, checkpoint, parent, settings, trained, directory)
        name = directory.path.resolve().name
        evaluator.conditions |= {"epoch": network.epoch, "run": printable(name)}
        label = f"{name}@{checkpoint}" if progress else None
        if network.sha256 in attacked:
            records = evaluator.copy_records(threats, attacked[network.sha256])
        else:
            records = evaluator.evaluate(threats, label, number=number, of=len(checkpoints))
        attacked[network.sha256] = list(records.values())
        evaluated |= records
    return evaluated


def _default_checkpoints(directory: RunDirectory) -> list[str]:
    """Return best and last, and those of the averages; a run that stopped early may not have any yet."""
    checkpoints = ["best", "last"]
    for average in ("ema", "swa"):
        if directory.checkpoints.pointed(f"best-{average}") is not None:
            checkpoints += [f"best-{average}", f"last-{average}"]
    return checkpoints


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
    """Evaluate a network that was not trained in a run; the overrides give its architecture, data set and threat.

    Args:
        weights: a file, .safetensors, .pt or .pth, which needs a --model; a .pt2 program; an .onnx file, whose suite is
            "deployed"; or another specification of `load_network`, such as "robustbench:ID=FILE"; None if --model
            my_pkg.my_mod:build loads its own weights. No file is unpickled.
        out: the folder for the records.
        overrides: such as ["--model", "resnet18", "--data", "cifar10", "--threat", "linf:8/255"].
        threats: as for `evaluate_run`.
        progress: show a progress bar.
        trust_code: as for `evaluate_run`, where `weights` or the surrogate is a run.
        settings: as for `evaluate_run`.

    Returns:
        The records of each threat, by the folder under `out` that contains them. Another network of the same weights,
        such as one with another normalisation, gets a folder of its own.

    Raises:
        RobustillError: an invalid network, data set or setting.
    """
    overrides = check_texts("overrides", overrides, _OVERRIDES)
    out = check_path("out", out)
    if weights is not None:
        weights = str(check_path("weights", weights)) if isinstance(weights, Path) else weights
        check_type("weights", weights, str, "a file or a specification of load_network")
    with only_named(*_named_paths([*overrides, str(weights or "")], settings), trust=trust_code):
        return _evaluate_file(weights, out, overrides, threats, progress, settings)


def _evaluate_file(
    weights: str | None,
    out: Path,
    overrides: Sequence[str],
    threats: Sequence[str],
    progress: bool,
    settings: dict[str, Any],
) -> dict[Path, Records]:
    if settings.get("split") in ("validation", "pool"):
        raise ConfigError(
            "only a run has a validation part and a pool of training images: expected split train or test"
        )
    target = _open_file(weights, overrides, threats, settings.get("split", "test"))
    evaluator = _Evaluator(target.network, target.config, target.name, Path(out), settings)
    evaluator.conditions |= target.conditions
    return evaluator.evaluate(threats, target.name if progress else None)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A network, and the configuration under which it is evaluated."""

    network: LoadedNetwork
    config: Config
    """of data, threat and compute"""
    name: str
    """the name of the network in the names of its folders"""
    conditions: dict[str, Any]
    """the facts about the network that its records store"""


def open_target(target: Path | str | None, *, checkpoint: str = "best", overrides: Sequence[str] = ()) -> Target:
    """Return the network of a run or of a file, as `evaluate_run` and `evaluate_file` open it.

    Args:
        target: a run directory, or as for `evaluate_file`.
        checkpoint: the checkpoint of a run.
        overrides: as for `evaluate_run` and `evaluate_file`.

    Raises:
        RobustillError: an invalid network, data set or setting.
    """
    overrides = check_texts("overrides", overrides, _OVERRIDES)
    if target is None or is_network_spec(str(target)):
        return _open_file(None if target is None else str(target), overrides, (), "test")
    directory = RunDirectory.existing(check_path("run", target))
    _check_overrides(overrides, directory.config(), ("data", "threat", "compute"))
    config = _evaluation_config(apply_overrides(directory.config(), overrides))
    network = load_network(f"run:{directory.path}@{checkpoint}")
    name = directory.path.resolve().name
    conditions = {"checkpoint": checkpoint, "epoch": network.epoch, "run": printable(name)}
    return Target(network=network, config=config, name=name, conditions=conditions)


def _open_file(weights: str | None, overrides: Sequence[str], threats: Sequence[str], split: str) -> Target:
    values = apply_overrides({}, overrides)
    if weights is None:
        weights = _model_path(values)
    elif "model" in values and paths_in([weights]) == [weights] and not Path(weights).is_file():
        # As if --model named it, which has the options of --model too.
        values["model"] = {"name": weights, **values["model"]}
    _check_required(weights, values, threats)
    _check_overrides(overrides, {}, ("model", "data", "threat", "compute"))
    config = make_config(values)
    dataset = load_split(config, split)
    architecture = config.model.name if "name" in values.get("model", {}) and config.model.name != weights else None
    options = None
    if "model" in values:
        options = {**config.model.options, "mean": config.model.mean, "std": config.model.std}
    file = Path(weights)
    if is_onnx_file(file):
        network = load_onnx(file, Shape.of(dataset), mean=config.model.mean, std=config.model.std)
    else:
        network = load_network(weights, shape=Shape.of(dataset), name=architecture, options=options)
    # A file may have any name; that of the folder is printed, and copied to other systems.
    stem = "".join(each if each.isprintable() else "-" for each in file.stem)
    conditions: dict[str, Any] = {"checkpoint": printable(file.name if file.is_file() else weights)}
    if isinstance(network.module, OnnxNetwork):
        conditions["parameters"] = network.module.model.num_parameters
    if architecture is not None:
        conditions["model"] = architecture
    if "model" in values and any((used := _normalisation(network, config)).values()):
        conditions["normalisation"] = used
    name = stem if file.is_file() else file_name(weights)
    return Target(network=network, config=config, name=name, conditions=conditions)


def _normalisation(network: LoadedNetwork, config: Config) -> dict[str, Any]:
    """Return the mean and std of a network; warn if they are its file's own and not those that were given."""
    given = {name: getattr(config.model, name) for name in ("mean", "std")}
    layer = getattr(network.module, "normalize", None)
    if not isinstance(layer, Normalize):
        return given
    # Six digits: float32 has no more.
    used = {name: [float(f"{each:.6g}") for each in getattr(layer, name).flatten().tolist()] for name in given}
    for name, values in given.items():
        if values is not None and [float(f"{each:.6g}") for each in values] != used[name]:
            warnings.warn(
                f"--model.{name} {list(values)} has no effect: {network.spec} has its own {used[name]}", stacklevel=3
            )
    return used


def _model_path(values: Mapping[str, Any]) -> str:
    """Return the import path that --model gives.

    Raises:
        ConfigError: there is none, so there is nothing to evaluate.
    """
    model = values.get("model", {})
    name = str(model.get("name", "")) if isinstance(model, dict) else ""
    if ":" not in name:
        raise ConfigError(
            "nothing to evaluate: give a run directory, a file of --weights with its --model, "
            "or --model my_pkg.my_mod:build"
        )
    return name


def _check_required(weights: str, values: Mapping[str, Any], threats: Sequence[str]) -> None:
    """Check that the overrides give a data set and a threat, and an architecture if the file contains only weights."""
    file = Path(weights)
    is_onnx = is_onnx_file(file)
    if file.is_file() and not is_onnx:
        refuse_other_format(file)
    weights_only = file.is_file() and not is_onnx and file.suffix != ".pt2"
    required = ["model", "data", "threat"] if weights_only else ["data", "threat"]
    if threats:
        required.remove("threat")
    others = [key for key in values.get("model", {}) if key not in ("mean", "std")]
    if is_onnx and others:
        raise ConfigError(f"--model.{others[0]} has no effect: {weights} holds its own network; leave it out")
    if not weights_only and not is_onnx and "name" not in values.get("model", {"name": weights}):
        option = next(iter(values["model"]))
        raise ConfigError(
            f"--model.{option} has no effect: {weights} is a network with options of its own; leave it out"
        )
    content = "contains only weights" if weights_only else "is only a network"
    for key in required:
        if key not in values or (key == "model" and "name" not in values[key]):
            raise ConfigError(f"{weights} {content}: give --{key} too, see `robustill evaluate --help`")


class _Evaluator:
    """The evaluation of one network under one or several threats.

    Args:
        network: the network.
        config: configuration of data, threat and compute.
        name: name of the network in its folders.
        parent: folder that contains the folders of records.
        settings: arguments of `evaluate`, and split.
        trained: the configuration of the run that trained the network; None for a network without a run.
        run: that run.
    """

    def __init__(
        self,
        network: LoadedNetwork,
        config: Config,
        name: str,
        parent: Path,
        settings: Mapping[str, Any],
        trained: Config | None = None,
        run: RunDirectory | None = None,
    ) -> None:
        self.network, self.config, self.name, self.run = network, config, name, run
        self.settings: dict[str, Any] = {"suite": "pgd", "num_images": None, "precision": "exact", **settings}
        self.split = self.settings.pop("split", "test")
        self.folders = RecordsFolders(
            parent=parent,
            name=name,
            network=network,
            split=self.split,
            data=config.data.name,
            settings=dict(self.settings),
            trained=trained,
        )
        self.conditions: dict[str, Any] = {
            "checkpoint": name,
            "checkpoint_sha256": network.sha256,
            "architecture": network.architecture,
            "split": self.split,
        }

    def evaluate(
        self, threats: Sequence[str], label: str | None, *, number: int = 0, of: int = 1
    ) -> dict[Path, Records]:
        """Evaluate the network under each threat; return the records by their folder.

        Args:
            threats: as for `evaluate_run`.
            label: the name of the network in what is printed; None is silent.
            number: which of the caller's networks it is, from 0: a time is printed of each evaluation, with its number.
            of: how many networks the caller evaluates.
        """
        device = local_device(configure_process(self.config.compute))
        parsed_threats = self._threats(threats)
        dataset = load_split(self.config, self.split, run=self.run)
        self._load_surrogate(dataset)
        evaluated, total = {}, of * len(parsed_threats)
        for place, threat in enumerate(parsed_threats, start=number * len(parsed_threats) + 1):
            folder = self.folders.folder(threat, len(dataset), dataset.fingerprint)
            folder = process_group().broadcast(self.folders.folder_of_network(folder, dataset, device, label))
            title = label
            if label is not None and len(parsed_threats) > 1:
                title = f"{label} {threat}"
            if label is not None and total > 1:
                title = f"{title} ({place} of {total})"
            evaluated[folder] = self._evaluate_threat(threat, dataset, folder, device, title)
        return evaluated

    def _load_surrogate(self, dataset: Dataset) -> None:
        """Replace the specification of the surrogate by the network; of a file, those of all by the networks."""
        spec = self.settings.pop("surrogate", None)
        if find_suite(self.settings["suite"]).deployed:
            found = load_surrogates(self.network, None if spec is None else str(spec), Shape.of(dataset))
            self.settings["surrogate"] = {name: each.module for name, each in found.items()}
            self.conditions["surrogates"] = {
                name: {"spec": printable(each.spec), "sha256": each.sha256} for name, each in found.items()
            }
            for each in list(found.values())[:1]:
                self.conditions["warnings"] = agreement_warnings(self.network, each, dataset)
        elif spec is not None:
            check_names_itself(str(spec), "--surrogate")
            surrogate = load_network(str(spec), shape=Shape.of(dataset))
            self.settings["surrogate"] = surrogate.module
            self.conditions["surrogate"] = {"spec": printable(surrogate.spec), "sha256": surrogate.sha256}

    def _evaluate_threat(
        self, threat: Threat, dataset: Dataset, folder: Path, device: torch.device, title: str | None
    ) -> Records:
        """Evaluate the network under one threat and save the records, or return those that are there."""
        group = process_group()
        before = load_records(folder) if group.is_main else None
        # The main process locks the folder; the others share its work.
        with lock(folder, before) if group.is_main else nullcontext():
            before = group.broadcast(load_records(folder) if group.is_main else None)
            try:
                with explaining_out_of_memory(lambda: self._out_of_memory_line(dataset, device)):
                    records = evaluate(
                        self.network.module,
                        dataset,
                        threat=threat,
                        device=device,
                        progress=title,
                        conditions=self.conditions,
                        state=folder / ".state",
                        before=before,
                        **self.settings,
                    )
            except ModelError as error:
                raise ModelError(f"{self.network.spec}: {error}") from error
            if records is not before and group.is_main:
                save_records(records, folder)
        if records is before and title is not None:
            date = records.conditions["date"]
            line = f"{title}: evaluated on {date} already, nothing is attacked; delete {folder} to attack again"
            print(printable(line), file=sys.stderr)
        group.barrier()
        return records

    def copy_records(self, threats: Sequence[str], records_of_same_weights: Sequence[Records]) -> dict[Path, Records]:
        """Save the records of the same weights under this name too; return them by their folder."""
        group, copied = process_group(), {}
        for threat, records in zip(self._threats(threats), records_of_same_weights, strict=True):
            of_images, fingerprint = records.conditions["of_images"], records.conditions["data_fingerprint"]
            folder = self.folders.folder(threat, of_images, fingerprint)
            copied[folder] = replace(records, conditions={**records.conditions, "checkpoint": self.name})
            before = load_records(folder) if group.is_main else None
            # What is there already is only read, which a folder that cannot be written to allows.
            if group.is_main and (before is None or not before.equals(copied[folder])):
                with lock(folder):
                    save_records(copied[folder], folder)
            group.barrier()
        return copied

    def _threats(self, threats: Sequence[str]) -> list[Threat]:
        """Return the threats that the texts describe; without any, that of the configuration."""
        if isinstance(threats, str | Threat):
            return [Threat.parse(threats)]
        if threats:
            return [Threat.parse(text) for text in threats]
        return [self.config.threat.build()]

    def _out_of_memory_line(self, dataset: Dataset, device: torch.device) -> str:
        """Return the error line for a batch that did not fit in memory, with a size that does."""
        model = self.network.module
        size = min(int(self.settings.get("batch_size", 256)), len(dataset))
        model.to(device)

        def attempt(num_images: int) -> None:
            x = dataset.read(torch.arange(num_images)).to(device).float() / 255
            torch.autograd.grad(model(x.requires_grad_(True)).sum(), x)

        largest = largest_fitting_batch(attempt, size)
        remedy = f"the same command with --batch-size {largest} resumes and gives the same records"
        return f"{size} images at a time are too many for {device}: {out_of_memory_advice(largest, remedy)}"


def is_network_spec(target: str) -> bool:
    """Return whether the target specifies a network, as `evaluate_file` takes it, and not a run directory.

    Example:
        >>> is_network_spec("robustbench:Wong2020Fast"), is_network_spec("missing.pt"), is_network_spec("runs/student")
        (True, True, False)
    """
    path = Path(target)
    if path.is_dir():
        return False
    is_named = target.partition(":")[0] in SPECIFICATION_KINDS or is_import_path(target)
    return is_named or path.is_file() or path.suffix in _FILE_SUFFIXES or explain_file(target) is not None


def _named_paths(words: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Return the import paths that the caller named, also as the surrogate."""
    return paths_in([*words, str(settings.get("surrogate") or "")])


def _evaluation_config(values: Mapping[str, Any]) -> Config:
    """Return the configuration of data, threat and compute; the method of a run, which may be code, is left out."""
    return make_config({key: values[key] for key in ("data", "threat", "compute") if key in values})


def _check_overrides(overrides: Sequence[str], values: dict[str, Any], used: Sequence[str]) -> None:
    """Refuse overrides of settings that an evaluation does not use."""
    for key, value in apply_overrides(values, overrides).items():
        if key not in used and value != values.get(key):
            raise ConfigError(f"--{key} has no effect on an evaluation: {setting_hint(key, used)}")
