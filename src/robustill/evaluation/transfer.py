"""Transfer of adversarial images: those made against each of several networks, classified by all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustill.attacks.suites import find_suite
from robustill.config.overrides import apply_overrides
from robustill.config.schema import make_config, setting_hint
from robustill.config.split import load_split
from robustill.core.contexts import evaluating, frozen, full_float32
from robustill.core.contract import check_contract, check_weights_exist
from robustill.core.device import configure_process
from robustill.core.errors import ConfigError, ModelError, printable
from robustill.core.memory_format import giving_back_networks, place
from robustill.core.progress import Progress, announce
from robustill.core.user_code import TrustCode, only_named, paths_in
from robustill.core.validation import check_integer, check_module, check_seed, check_type
from robustill.data import Dataset, check_dataset, pixel_warnings, stratified_subset
from robustill.evaluation.evaluate import evaluation_conditions
from robustill.evaluation.worst_case import WorstCase
from robustill.losses import probabilities
from robustill.models.loading import LoadedNetwork, Shape, check_names_itself, load_network
from robustill.models.normalisation import accuracy_warnings
from robustill.runs.directory import RunDirectory, split_checkpoint
from robustill.runs.transfer_records import TransferRecords
from robustill.threat import Threat

# Images on which each network is checked before the attacks start.
_NUM_PROBE_IMAGES = 16


@full_float32()
@giving_back_networks
def transfer(
    networks: Mapping[str, nn.Module],
    dataset: Dataset,
    *,
    threat: Threat | str,
    suite: str = "pgd",
    num_images: int | None = 500,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    conditions: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> TransferRecords:
    """Make the strongest adversarial images that a suite finds against each network, and classify them with all.

    The images are those that `evaluate` finds under the same settings, so the diagonal is its robust accuracy.

    Args:
        networks: by name, images [B,C,H,W] in [0,1] to logits [B,K]; they are restored as they were.
        dataset: the images to attack, with their labels.
        threat: the images that the adversary may choose, or text such as "linf:8/255".
        suite: as in `evaluate`.
        num_images: size of the class-balanced subset; the whole data set if it is smaller, or if None.
        seed: seed of the random starts and of the subset.
        batch_size: images at a time.
        device: where to compute.
        conditions: further facts to store with the numbers.
        progress: show a progress bar.

    Raises:
        ConfigError: fewer than two networks, an unknown suite, or a number of images below 1.
        ModelError: a network does not fit the images.
    """
    check_type("networks", networks, Mapping, "a dictionary of networks by name")
    if len(networks) < 2:
        raise ConfigError("a transfer needs at least two networks: name another one")
    for name, network in networks.items():
        check_module(f"network {name}", network)
    check_dataset(dataset)
    selected, threat = find_suite(suite), Threat.parse(threat)
    if selected.deployed:
        raise ConfigError(f"suite {suite} is for one file: take another suite for a transfer among networks")
    check_integer("batch_size", batch_size, at_least=1)
    check_seed(seed)
    if num_images is not None:
        check_integer("num_images", num_images, at_least=1)
    ids = torch.arange(len(dataset))
    if num_images is not None and num_images < len(dataset):
        ids = stratified_subset(dataset.labels, num_images, seed=seed)
    warnings = pixel_warnings(dataset)
    device = torch.device(device)
    for name, network in networks.items():
        check_weights_exist(network, name)
    probe_images = dataset.read(ids[:_NUM_PROBE_IMAGES]).to(device).float() / 255
    placed = {name: place(network, device, probe_images) for name, network in networks.items()}
    warnings += _check_networks(placed, dataset, ids[:_NUM_PROBE_IMAGES], device)
    attacks = [WorstCase(each, threat, selected, [], seed, batch_size) for each in placed.values()]
    with evaluating(*placed.values()), frozen(*placed.values()):
        clean, adversarial = _attack_all(placed, attacks, dataset, ids, device, progress)
    return TransferRecords(
        names=tuple(networks),
        index=ids.numpy(),
        label=dataset.labels[ids].numpy(),
        clean=clean,
        adversarial=adversarial,
        conditions={
            **evaluation_conditions(dataset, len(ids), threat, suite, seed),
            "warnings": warnings,
            **(conditions or {}),
        },
    )


def _check_networks(
    networks: Mapping[str, nn.Module], dataset: Dataset, ids: torch.Tensor, device: torch.device
) -> list[str]:
    """Check every network on a few images; return the warnings."""
    x, y = dataset.read(ids).to(device).float() / 255, dataset.labels[ids].to(device)
    warnings = []
    for name, network in networks.items():
        warnings += check_contract(network, x, y, dataset.num_classes, name)
        warnings += accuracy_warnings(network, dataset, name, device)
    return warnings


def _attack_all(
    networks: Mapping[str, nn.Module],
    attacks: Sequence[WorstCase],
    dataset: Dataset,
    ids: torch.Tensor,
    device: torch.device,
    progress: bool,
) -> tuple[Any, Any]:
    """Return every network's probabilities: of the clean images, [M,N,K], and of those made against each, [M,M,N,K]."""
    clean: list[list[Any]] = []
    adversarial: list[list[Any]] = []
    left = len(ids) * len(attacks)
    if progress:
        timed = ids[: attacks[0].batch_size]
        x = (dataset.read(timed).to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        y = dataset.labels[timed].to(device)
        seconds = sum(each.expected_passes(dataset.num_classes) * each.seconds_per_pass(x, y) for each in attacks)
        announce("transfer", len(ids) * seconds, "if half of the images are robust")
    # At first the most that an image may cost.
    passes_per_image = attacks[0].suite.passes_per_image(attacks[0].threat, dataset.num_classes)
    with Progress("transfer", total=left * passes_per_image, unit="passes", shown=progress) as bar:
        for chunk in torch.split(ids, attacks[0].batch_size):
            x = (dataset.read(chunk).to(device).float() / 255).contiguous(memory_format=torch.channels_last)
            y = dataset.labels[chunk].to(device)
            clean.append(_probabilities(networks, x))
            rows = []
            for name, attack in zip(networks, attacks, strict=True):
                left -= len(chunk)
                report = partial(_report, bar, name, bar.done - attack.passes, left * passes_per_image)
                _, x_adv = attack.attack(x, y, chunk, report=report)
                rows.append(_probabilities(networks, x_adv))
            adversarial.append(rows)
    return np.concatenate(clean, axis=1), np.concatenate(adversarial, axis=2)


def _report(bar: Progress, name: str, before: int, after: int, done: int, expected: int, stage: str) -> None:
    """Update the bar with the passes against one network, among those against others before and after it."""
    bar.total = before + expected + after
    bar.advance(before + done - bar.done, f"{stage} against {name}".strip())


@torch.no_grad()
def _probabilities(networks: Mapping[str, nn.Module], x: torch.Tensor) -> list[Any]:
    """Return the probabilities [B,K] of each network."""
    rows = []
    for name, network in networks.items():
        logits = network(x).float()
        if not bool(logits.isfinite().all()):
            raise ModelError(f"{name} gives NaN or infinite logits on adversarial or clean images")
        rows.append(probabilities(logits).cpu().numpy())
    return rows


def transfer_specs(
    specs: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    split: str = "test",
    progress: bool = True,
    trust_code: TrustCode = False,
    **settings: Any,
) -> TransferRecords:
    """Measure transfer among networks by specification, on the data and under the threat of the first run among them.

    Args:
        specs: run directories, whose best epoch is used, or specifications of `load_network` that need no options.
        overrides: changes of data, threat and compute.
        split: "test" or "train".
        progress: show a progress bar.
        trust_code: as for `load_network`.
        settings: arguments of `transfer`: suite, num_images, seed and batch_size.

    Raises:
        RobustillError: an invalid network, data set or setting.
    """
    if len(set(specs)) < len(specs):
        raise ConfigError("a network is named twice: name each once")
    full_specs = _full_specs(specs)
    for spec in specs:
        check_names_itself(spec, "network")
    runs = [spec for spec in full_specs.values() if spec.startswith("run:")]
    if not runs:
        raise ConfigError("none of the networks is a run, whose data and threat would be used: name one")
    run_config = RunDirectory.existing(split_checkpoint(runs[0].removeprefix("run:"))[0]).config()
    used = ("data", "threat", "compute")
    values = apply_overrides({key: run_config[key] for key in used if key in run_config}, overrides)
    for key in values:
        if key not in used:
            raise ConfigError(f"--{key} has no effect on a transfer: {setting_hint(key, used)}")
    config = make_config(values)
    device = configure_process(config.compute)
    dataset = load_split(config, split)
    shape = Shape.of(dataset)
    with only_named(*paths_in([*specs, *overrides]), trust=trust_code):
        loaded = {name: load_network(spec, shape=shape) for name, spec in full_specs.items()}
    return transfer(
        {name: each.module for name, each in loaded.items()},
        dataset,
        threat=config.threat.build(),
        device=device,
        conditions={"networks": {name: _describe(each) for name, each in loaded.items()}},
        progress=progress,
        **settings,
    )


def _full_specs(specs: Sequence[str]) -> dict[str, str]:
    """Return the full specifications by short name; by the specification where two short names would be the same."""
    full = [f"run:{spec}@best" if (Path(spec) / "config.yaml").is_file() else spec for spec in specs]
    names = [short_name(spec) for spec in specs]
    if len(set(names)) < len(names):
        names = list(specs)
    return dict(zip(map(printable, names), full, strict=True))


def short_name(spec: str) -> str:
    """Return the last part of a run's path, with the checkpoint if one is named; other specifications unchanged."""
    if spec.startswith("run:") or Path(spec).is_dir():
        return Path(spec.removeprefix("run:")).name
    return spec


def _describe(network: LoadedNetwork) -> dict[str, Any]:
    """Return what the conditions record of a network."""
    return {
        "spec": printable(network.spec),
        "sha256": network.sha256,
        "architecture": network.architecture,
        "trained": network.trained,
    }
