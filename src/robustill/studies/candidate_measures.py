"""The measurement of candidate teachers: cheap baselines, their attacks, and what every candidate makes of them."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustill.analysis.teacher_measures import (
    Baselines,
    Measures,
    measure,
    pairwise_disagreement,
    robustly_unlearnable,
)
from robustill.attacks.cost import seconds_per_pass
from robustill.config.schema import Config
from robustill.config.split import holds_out
from robustill.core.archives import read_arrays
from robustill.core.contexts import evaluating, frozen, full_float32
from robustill.core.contract import check_network, check_weights_exist
from robustill.core.device import environment
from robustill.core.errors import RunError, printable
from robustill.core.files import write_bytes
from robustill.core.formatting import clock
from robustill.core.links import read_regular_file
from robustill.core.memory_format import keeping_placement, place
from robustill.core.progress import Progress
from robustill.data import Dataset, pixel_warnings
from robustill.models.loading import LoadedNetwork, Shape, load_network
from robustill.models.normalisation import accuracy_warnings
from robustill.runs.directory import RunDirectory
from robustill.studies.cost import RunCost, estimated_seconds, run_costs
from robustill.studies.grid import Grid
from robustill.teachers.check import STEPS, attacked_images, finite_probabilities
from robustill.teachers.ensemble import Ensemble
from robustill.threat import Threat
from robustill.training.loop import train

Array = NDArray[Any]
_BATCH = 128
_TIMED_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class MeasuredCandidates:
    """What was measured of every candidate, before anything is predicted from it.

    Args:
        networks: the networks of each candidate, several for an ensemble.
        measures: of each candidate.
        disagreement: of each pair of candidates on the attacks of the baselines, float64 [C,C].
        baselines: what the cheap networks hold.
        conditions: JSON values.
        warnings: why the numbers may mean little, one line each.
    """

    networks: Mapping[str, Sequence[LoadedNetwork]]
    measures: Mapping[str, Measures]
    disagreement: Array
    baselines: Baselines
    conditions: Mapping[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Network:
    """A baseline or a candidate on the device, with what identifies the parts that were measured of it."""

    name: str
    module: nn.Module
    members: tuple[nn.Module, ...]
    identity: str


@dataclass
class Measuring:
    """One call of `measure_candidates`, after everything has been checked and loaded."""

    config: Config
    dataset: Dataset
    held_out: Mapping[str, Any]
    ids: Tensor
    loaded: Mapping[str, Sequence[LoadedNetwork]]
    grid: Grid
    out: Path
    seed: int
    device: torch.device

    @property
    def threat(self) -> Threat:
        """The threat of the student."""
        return self.config.threat.build()

    def run(self, progress: bool) -> MeasuredCandidates:
        """Train the baselines, and measure every candidate."""
        warnings = [*pixel_warnings(self.dataset), *self._held_out_warnings()]
        modules = {name: _combined(each) for name, each in self.loaded.items()}
        with keeping_placement(*modules.values()):
            candidates = [
                self._network(name, module, [each.sha256 for each in self.loaded[name]], warnings)
                for name, module in modules.items()
            ]
            of_runs = run_costs(self.grid)
            costs = self._passes(candidates, of_runs)
            if progress:
                costs |= self._announce(candidates, costs, of_runs)
            with Progress("teachers rank", total=round(sum(costs.values())), unit="passes", shown=progress) as bar:
                baselines = self._train_baselines(bar, costs, warnings)
                tables = self._measure(baselines, candidates, bar, costs)
        labels = self.dataset.labels[self.ids].cpu().numpy()
        reference = reference_of(labels, tables[: len(baselines)])
        tables = tables[len(baselines) :]
        if not reference.unlearnable.any():
            warnings.append("a baseline holds every image: entropies on unlearnable images are unknown")
        return MeasuredCandidates(
            networks=self.loaded,
            measures={name: measured(labels, each, reference) for name, each in zip(modules, tables, strict=True)},
            disagreement=pairwise_disagreement(np.stack([each["transferred"].argmax(axis=-1) for each in tables])),
            baselines=reference,
            conditions=self._conditions(),
            warnings=tuple(warnings),
        )

    def _held_out_warnings(self) -> list[str]:
        """Warn of candidates that may have been trained on the images that they are measured on."""
        return [
            f"{printable(name)} may have been trained on the held-out images: its numbers may be too good"
            for name, networks in self.loaded.items()
            if not all(holds_out(each, self.held_out) for each in networks)
        ]

    def _network(self, name: str, module: nn.Module, hashes: Sequence[str], warnings: list[str]) -> _Network:
        """Check a network and place it on the device."""
        probe_images = self.dataset.read(self.ids[:2]).to(self.device).float() / 255
        check_weights_exist(module, name)
        place(module, self.device, probe_images)
        with evaluating(module), frozen(module):
            warnings += check_network(module, probe_images, self.dataset.num_classes, name, differentiable=True)
            warnings += accuracy_warnings(module, self.dataset, name, self.device)
        members = tuple(module.members) if isinstance(module, Ensemble) else ()
        return _Network(name=name, module=module, members=members, identity=json.dumps([*hashes, len(members)]))

    def _passes(self, candidates: Sequence[_Network], of_runs: Mapping[str, RunCost]) -> dict[str, float]:
        """Return the passes of each baseline, its training and its attack, and of each candidate."""
        attack = len(self.ids) * (2 * STEPS + 2 + len(self.grid.runs))
        costs = {name: cost.epoch * cost.epochs + attack for name, cost in of_runs.items()}
        return {**costs, **{each.name: float(attack) for each in candidates}}

    def _announce(
        self, candidates: Sequence[_Network], costs: Mapping[str, float], of_runs: Mapping[str, RunCost]
    ) -> dict[str, float]:
        """Print how long it will take; return the passes of the candidates in units of the time of the student's."""
        seconds_a_pass = sum(estimated_seconds(self.grid, of_runs).values()) / sum(
            each.epoch * each.epochs for each in of_runs.values()
        )
        scaled = {
            each.name: costs[each.name] * self._seconds_per_pass(each.module) / seconds_a_pass for each in candidates
        }
        done = sum(self._epoch_passes(name, costs) * self._epochs_done(name) for name in self.grid.runs)
        seconds = seconds_a_pass * (sum({**costs, **scaled}.values()) - done)
        epochs = next(iter(self.grid.runs.values())).optim.epochs
        print(
            f"ranking {len(self.loaded)} candidates on {len(self.ids)} held-out images of {self.dataset.name}: about "
            f"{clock(seconds)} with {len(self.grid.runs)} baselines of {epochs} epochs; the same command resumes",
            file=sys.stderr,
        )
        return scaled

    def _seconds_per_pass(self, module: nn.Module) -> float:
        """Return the seconds of a pass of one image in the attack on a candidate."""
        ids = self.ids[:_TIMED_IMAGES]
        x, y = self.dataset.read(ids).to(self.device).float() / 255, self.dataset.labels[ids].to(self.device)
        return seconds_per_pass(module, x, y, self.threat)

    def _train_baselines(self, bar: Progress, costs: Mapping[str, float], warnings: list[str]) -> list[_Network]:
        """Train the baselines, or continue with those of an earlier call."""
        networks = []
        for number, (name, config) in enumerate(self.grid.runs.items(), start=1):
            folder = self.grid.folder / name
            share = round(self._epoch_passes(name, costs))
            note = f"baseline {number} of {len(self.grid.runs)}"
            bar.advance(share * self._epochs_done(name), note)
            train(
                config,
                folder,
                progress=False,
                on_epoch=lambda _, share=share, note=note: bar.advance(share, note),  # type: ignore[misc]
            )
            loaded = load_network(f"run:{folder}@last", shape=Shape.of(self.dataset))
            networks.append(self._network(name, loaded.module, [loaded.sha256], warnings))
        return networks

    def _epoch_passes(self, name: str, costs: Mapping[str, float]) -> float:
        """Return the passes of one epoch of a baseline."""
        attack = len(self.ids) * (2 * STEPS + 2 + len(self.grid.runs))
        return (costs[name] - attack) / self.grid.runs[name].optim.epochs

    def _epochs_done(self, name: str) -> int:
        """Return how many epochs of a baseline an earlier call has trained."""
        folder = self.grid.folder / name
        return len(RunDirectory(folder).metrics()) if folder.is_dir() else 0

    def _measure(
        self,
        baselines: Sequence[_Network],
        candidates: Sequence[_Network],
        bar: Progress,
        costs: Mapping[str, float],
    ) -> list[dict[str, Array]]:
        """Return the probabilities of every baseline and candidate, batch by batch, each batch read if it is known."""
        networks = [*baselines, *candidates]
        parts: list[list[dict[str, Array]]] = [[] for _ in networks]
        modules = [each.module for each in networks]
        context = [each.identity for each in baselines]
        with full_float32(), evaluating(*modules), frozen(*modules):
            for batch in torch.split(self.ids, _BATCH):
                files = [self._part_file(each, batch, context) for each in networks]
                known = [_read_part(file, each) for file, each in zip(files, networks, strict=True)]
                images = _Shown(self, baselines, batch)
                for network, file, part, of_network in zip(networks, files, known, parts, strict=True):
                    if part is None or not images.agree(network.module, part["clean"]):
                        part = images.attack_and_classify(network)
                        _write_part(file, part)
                    of_network.append(part)
                    share = costs[network.name] if network in candidates else len(self.ids) * (2 * STEPS + 2)
                    bar.advance(round(share * len(batch) / len(self.ids)), network.name)
        return [{key: np.concatenate([p[key] for p in own], axis=-2) for key in own[0]} for own in parts]

    def _part_file(self, network: _Network, batch: Tensor, baselines: Sequence[str]) -> Path:
        """Return the file for the probabilities of one network on one batch, named after all that they depend on."""
        facts = [
            network.identity,
            list(baselines),
            self.dataset.fingerprint,
            batch.tolist(),
            str(self.threat),
            self.seed,
            STEPS,
        ]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
        return self.out / "parts" / f"{digest}.npz"

    def _conditions(self) -> dict[str, Any]:
        baseline = next(iter(self.grid.runs.values()))
        return {
            "student": {
                "model": self.config.model.model_dump(mode="json"),
                "method": self.config.method.name,
                "epochs": self.config.optim.epochs,
            },
            "data": self.dataset.name,
            "split": "validation",
            "data_fingerprint": self.dataset.fingerprint,
            "num_images": len(self.ids),
            "of_images": len(self.dataset),
            "threat": str(self.threat),
            "attack": f"PGD {STEPS} steps of a quarter of eps",
            "seed": self.seed,
            "baselines": {"number": len(self.grid.runs), "epochs": baseline.optim.epochs, "seed": baseline.seed},
            "versions": environment()["versions"],
            "date": date.today().isoformat(),
        }


class _Shown:
    """One batch of held-out images, and the attacks of the baselines on it, which are made when they are first needed.

    Args:
        measuring: the call that it belongs to.
        baselines: the networks that are attacked.
        batch: the ids of the images.
    """

    def __init__(self, measuring: Measuring, baselines: Sequence[_Network], batch: Tensor) -> None:
        self.measuring, self.baselines, self.batch = measuring, baselines, batch
        self._of_baselines: list[tuple[Tensor, Tensor]] | None = None

    def _attacked(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        own = self.measuring
        return attacked_images(module, own.dataset, self.batch, own.threat, own.seed, own.device)

    def attack_and_classify(self, network: _Network) -> dict[str, Array]:
        """Return the probabilities of clean images, of its own attack, and of those of the baselines."""
        if self._of_baselines is None:
            self._of_baselines = [self._attacked(each.module) for each in self.baselines]
        is_baseline = network in self.baselines
        x, x_adv = self._of_baselines[self.baselines.index(network)] if is_baseline else self._attacked(network.module)
        shown = [each for _, each in self._of_baselines]
        with torch.no_grad():
            part = {
                "clean": finite_probabilities(network.module, x).numpy(),
                "adversarial": finite_probabilities(network.module, x_adv).numpy(),
                "transferred": torch.stack([finite_probabilities(network.module, z) for z in shown]).numpy(),
            }
            if network.members:
                part["members"] = torch.stack(
                    [torch.stack([finite_probabilities(member, z) for z in shown]) for member in network.members]
                ).numpy()
        return part

    def agree(self, module: nn.Module, clean: Array) -> bool:
        """Return whether a network gives the recorded probabilities: its code may change while its weights do not."""
        x = self.measuring.dataset.read(self.batch[:_TIMED_IMAGES]).to(self.measuring.device).float() / 255
        with torch.no_grad():
            now = finite_probabilities(module, x).numpy()
        return clean.shape[0] == len(self.batch) and bool(np.abs(now - clean[: len(now)]).max() < 1e-3)


def reference_of(labels: Array, baselines: Sequence[Mapping[str, Array]]) -> Baselines:
    """Return what the baselines hold, from the probabilities of clean images and of their own attacks.

    Args:
        labels: int [N].
        baselines: of each baseline "clean" and "adversarial", [N,K].
    """
    clean = np.stack([each["clean"].argmax(axis=1) == labels for each in baselines])
    robust = clean & np.stack([each["adversarial"].argmax(axis=1) == labels for each in baselines])
    return Baselines(
        robust_accuracy=float(robust.mean()),
        clean_accuracy=float(clean.mean()),
        unlearnable=robustly_unlearnable(robust),
    )


def measured(labels: Array, probabilities: Mapping[str, Array], reference: Baselines) -> Measures:
    """Return the measures of a candidate from its probabilities: clean, adversarial, transferred, of its members."""
    members_disagree = None
    if "members" in probabilities:
        pairs = pairwise_disagreement(probabilities["members"].argmax(axis=-1))
        members_disagree = float(pairs[np.triu_indices(len(pairs), 1)].mean())
    return measure(
        labels,
        probabilities["clean"],
        probabilities["adversarial"],
        probabilities["transferred"],
        reference.unlearnable,
        members_disagree,
    )


def _combined(networks: Sequence[LoadedNetwork]) -> nn.Module:
    """Return the network of a candidate, an ensemble of equal weights if it has several."""
    modules = [each.module for each in networks]
    return modules[0] if len(modules) == 1 else Ensemble(modules)


def _read_part(file: Path, network: _Network) -> dict[str, Array] | None:
    """Return the arrays of a part; None if it is not there or damaged, and must be measured."""
    try:
        arrays = read_arrays(read_regular_file(file))
    except (OSError, ValueError, RunError):
        return None
    expected = {"clean", "adversarial", "transferred"} | ({"members"} if network.members else set())
    return arrays if arrays.keys() == expected else None


def _write_part(file: Path, arrays: Mapping[str, Array]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict[str, Any](arrays))
    file.parent.mkdir(exist_ok=True)
    write_bytes(file, buffer.getvalue())
