"""Adversarial images made against each of several networks, shown to all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustill.attacks.suites import find_suite
from robustill.config.overrides import apply_overrides
from robustill.config.schema import make_config
from robustill.config.split import load_split
from robustill.core.contexts import evaluating, frozen, full_float32
from robustill.core.device import configure_process, place
from robustill.core.errors import ConfigError, printable
from robustill.core.progress import Progress
from robustill.core.user_code import TrustCode, only_named, paths_in
from robustill.data import Dataset, stratified_subset
from robustill.evaluation.evaluate import asked_for
from robustill.evaluation.worst_case import WorstCase
from robustill.models.checks import check_contract
from robustill.models.loading import LoadedNetwork, Shape, load_network
from robustill.runs.directory import RunDirectory
from robustill.runs.transfer_records import TransferRecords
from robustill.threat import Threat

_TRIED = 16


@full_float32()
def transfer(
    networks: Mapping[str, nn.Module],
    dataset: Dataset,
    *,
    threat: Threat,
    suite: str = "pgd",
    num_images: int | None = 500,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    conditions: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> TransferRecords:
    """Make the strongest image that a suite finds against each network, and ask every network about it.

    The images are those that `evaluate` finds under the same settings, so the diagonal is its robust accuracy.

    Args:
        networks: by name, images [B,C,H,W] in [0,1] to logits [B,K].
        dataset: whose images.
        threat: the images allowed.
        suite: as `evaluate` takes it.
        num_images: at most so many, a class-balanced part of the data set; None is all of it.
        seed: of the random starts and of the part.
        batch_size: images at a time.
        device: where to compute.
        conditions: what else belongs beside the numbers.
        progress: show a bar.

    Raises:
        ConfigError: fewer than two networks, a suite that there is not, or no image at all.
        ModelError: a network does not fit the images.
    """
    if len(networks) < 2:
        raise ConfigError("a transfer needs at least two networks: name another one")
    chosen = find_suite(suite)
    if batch_size < 1 or (num_images is not None and num_images < 1):
        raise ConfigError(f"num_images is {num_images} and batch_size {batch_size}: expected at least 1")
    ids = torch.arange(len(dataset))
    if num_images is not None and num_images < len(dataset):
        ids = stratified_subset(dataset.labels, num_images, seed=seed)
    device = torch.device(device)
    placed = {name: place(network, device) for name, network in networks.items()}
    few, few_labels = dataset.read(ids[:_TRIED]).to(device).float() / 255, dataset.labels[ids[:_TRIED]].to(device)
    warnings = [
        line
        for name, network in placed.items()
        for line in check_contract(network, few, few_labels, dataset.num_classes, name)
    ]
    attacks = [WorstCase(each, threat, chosen, [], seed, batch_size) for each in placed.values()]
    with evaluating(*placed.values()), frozen(*placed.values()):
        clean, adversarial = _answers(placed, attacks, dataset, ids, device, progress)
    return TransferRecords(
        names=tuple(networks),
        index=ids.numpy(),
        label=dataset.labels[ids].numpy(),
        clean=clean,
        adversarial=adversarial,
        conditions={
            **asked_for(dataset, len(ids), threat, suite, seed),
            "warnings": warnings,
            **(conditions or {}),
        },
    )


def _answers(
    networks: Mapping[str, nn.Module],
    attacks: Sequence[WorstCase],
    dataset: Dataset,
    ids: torch.Tensor,
    device: torch.device,
    progress: bool,
) -> tuple[Any, Any]:
    """Probabilities of every network: [M,N,K] of the clean images, [M,M,N,K] of those made against each."""
    clean: list[list[Any]] = []
    adversarial: list[list[Any]] = []
    total = len(ids) * len(attacks)
    with Progress("transfer", total=total, unit="images", shown=progress) as bar:
        for chunk in torch.split(ids, attacks[0].batch_size):
            x = (dataset.read(chunk).to(device).float() / 255).contiguous(memory_format=torch.channels_last)
            y = dataset.labels[chunk].to(device)
            clean.append(_asked(networks, x))
            rows = []
            for name, attack in zip(networks, attacks, strict=True):
                _, x_adv = attack.part(x, y, chunk)
                rows.append(_asked(networks, x_adv))
                bar.advance(len(chunk), f"against {name}")
            adversarial.append(rows)
    return np.concatenate(clean, axis=1), np.concatenate(adversarial, axis=2)


@torch.no_grad()
def _asked(networks: Mapping[str, nn.Module], x: torch.Tensor) -> list[Any]:
    return [network(x).float().softmax(dim=1).cpu().numpy() for network in networks.values()]


def transfer_specs(
    specs: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    split: str = "test",
    progress: bool = True,
    trust_code: TrustCode = False,
    **settings: Any,
) -> TransferRecords:
    """Transfer among networks by specification, on the data and under the threat of the first run among them.

    Args:
        specs: run directories, whose best epoch is taken, or what `load_network` takes without more words.
        overrides: of data, threat and compute.
        split: "test" or "train".
        progress: show a bar.
        trust_code: as for `load_network`.
        settings: suite, num_images, seed and batch_size of `transfer`.

    Raises:
        RobustillError: a network, the data or a setting that cannot be.
    """
    if len(set(specs)) < len(specs):
        raise ConfigError("a network is named twice: name each once")
    full = {
        printable(_name(spec)): f"run:{spec}@best" if (Path(spec) / "config.yaml").is_file() else spec for spec in specs
    }
    if len(full) < len(specs):
        full = {printable(spec): full[printable(_name(spec))] for spec in specs}
    runs = [spec for spec in full.values() if spec.startswith("run:")]
    if not runs:
        raise ConfigError("none of the networks is a run, whose data and threat would be taken: name one")
    own = RunDirectory.existing(runs[0].removeprefix("run:").partition("@")[0]).config()
    values = apply_overrides({key: own[key] for key in ("data", "threat", "compute") if key in own}, overrides)
    for key in values:
        if key not in ("data", "threat", "compute"):
            raise ConfigError(f"--{key} has no effect on a transfer: expected settings of data, threat, compute only")
    config = make_config(values)
    device = configure_process(config.compute)
    dataset = load_split(config, split)
    shape = Shape.of(dataset)
    with only_named(*paths_in([*specs, *overrides]), trust=trust_code):
        loaded = {name: load_network(spec, shape=shape) for name, spec in full.items()}
    return transfer(
        {name: each.module for name, each in loaded.items()},
        dataset,
        threat=config.threat.build(),
        device=device,
        conditions={"networks": {name: _card(each) for name, each in loaded.items()}},
        progress=progress,
        **settings,
    )


def _card(network: LoadedNetwork) -> dict[str, Any]:
    return {
        "spec": printable(network.spec),
        "sha256": network.sha256,
        "architecture": network.architecture,
        "trained": network.trained,
    }


def _name(spec: str) -> str:
    """The last part of a path, with the checkpoint where one is named."""
    return Path(spec.removeprefix("run:")).name if spec.startswith("run:") or Path(spec).is_dir() else spec
