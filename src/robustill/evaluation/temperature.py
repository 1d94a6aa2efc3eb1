"""The temperature of a trained network, fitted on its validation images, for an export with calibrated confidences."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from robustill.analysis.calibration import Array, apply_temperature, ece, fit_temperature
from robustill.config.schema import make_config
from robustill.config.split import load_split
from robustill.core.contexts import evaluating, full_float32
from robustill.core.device import configure_process
from robustill.core.errors import ConfigError, ModelError, RunError
from robustill.core.memory_format import place
from robustill.core.progress import Progress
from robustill.core.user_code import TrustCode
from robustill.data.images import MissingDataError
from robustill.losses import probabilities
from robustill.models.card import Calibration
from robustill.models.loading import LoadedNetwork, load_network
from robustill.runs.directory import RunDirectory, split_checkpoint
from robustill.runs.records import Records, read_summary

_BATCH_SIZE = 256
# `fit_temperature` looks between 0.01 and 100; there it found no minimum.
_LOWEST, _HIGHEST = 0.0101, 99.0


@full_float32()
def fit_calibration(spec: str, *, progress: bool = False, trust_code: TrustCode = False) -> Calibration:
    """Fit the temperature of a run's network on its clean validation images.

    Their probabilities are those of a recorded evaluation, `robustill evaluate RUN --split validation` with any suite,
    or are computed. Nothing is written.

    Args:
        spec: "run:DIR@best" or another checkpoint, as `load_network` takes it.
        progress: show a progress bar if the validation images take more than two seconds.
        trust_code: as for `load_network`.

    Raises:
        ConfigError: the network is not of a run, which alone has validation images.
        ModelError: no temperature fits, because every prediction is right or the confidence says nothing.
        RobustillError: as for `load_network`; the data of the run is missing.

    Reference: Guo et al. 2017, section 4.2.
    """
    if not spec.startswith("run:"):
        raise ConfigError(f"{spec} is not a run, which alone has validation images: leave --calibrated out")
    network = load_network(spec, trust_code=trust_code)
    recorded = dict(_evaluations(network))
    shares, labels = _of_validation(recorded.values(), network) or _probabilities(network, progress)
    temperature = fit_temperature(shares, labels)
    if not _LOWEST < temperature < _HIGHEST:
        accuracy = float((shares.argmax(axis=1) == labels).mean())
        reason = "every prediction is right" if accuracy == 1 else "their confidence says nothing about their labels"
        raise ModelError(
            f"{spec} cannot be calibrated on its {len(labels)} validation images, because {reason}: "
            "hold out more with --data.validation, or leave --calibrated out"
        )

    def ece_after(before: Array, labels: Array) -> float:
        return ece(apply_temperature(before, temperature), labels)

    before, after = ece(shares, labels), ece_after(shares, labels)
    if after > before:
        warnings.warn(
            f"the temperature {temperature:.3g} lowers the loss of the {len(labels)} validation images, but raises "
            f"their ECE from {before:.3f} to {after:.3f}: hold out more with --data.validation, or leave --calibrated "
            "out",
            stacklevel=2,
        )
    return Calibration(
        temperature=temperature,
        images=f"{len(labels)} clean validation images",
        ece=(before, after),
        evaluations={
            name: {
                f"ece_{kind}": ece_after(before, records.label)
                for kind in ("clean", "adversarial", "pgd")
                if (before := getattr(records, f"{kind}_probabilities")) is not None
            }
            for name, records in recorded.items()
        },
    )


def _of_validation(recorded: Iterable[Records], network: LoadedNetwork) -> tuple[Array, Array] | None:
    """Return the probabilities and labels of the largest evaluation of the validation images; None if there is none."""
    assert network.config is not None
    name = network.config["data"]["name"]
    wanted = [
        each for each in recorded if (each.conditions.get("split"), each.conditions.get("data")) == ("validation", name)
    ]
    if not wanted:
        return None
    largest = max(wanted, key=len)
    return largest.clean_probabilities, largest.label


def _evaluations(network: LoadedNetwork) -> Iterator[tuple[str, Records]]:
    """Yield the evaluations of these weights in the run directory, by the names of their folders."""
    run = Path(split_checkpoint(network.spec.removeprefix("run:"))[0])
    for folder in sorted((run / "evaluations").glob("*")):
        # One that is unfinished or damaged is left out; `robustill doctor` reports it.
        with contextlib.suppress(RunError):
            if read_summary(folder)["conditions"].get("checkpoint_sha256") == network.sha256:
                yield folder.name, Records.load(folder)


def _probabilities(network: LoadedNetwork, progress: bool) -> tuple[Array, Array]:
    """Compute the probabilities [N,K] of the validation images; return them with the labels [N]."""
    assert network.config is not None
    config = make_config({key: network.config[key] for key in ("data", "compute") if key in network.config})
    run = RunDirectory(Path(split_checkpoint(network.spec.removeprefix("run:"))[0]))
    device = configure_process(config.compute)
    try:
        dataset = load_split(config, "validation", run=run)
    except MissingDataError as error:
        raise MissingDataError(
            f"{error}, or first evaluate the validation images where they are: robustill evaluate {run.path} "
            "--split validation --data.root DIR"
        ) from None
    module = place(network.module, device, dataset.read(torch.arange(1)).to(device).float() / 255)
    found = []
    with (
        Progress("calibrating", total=len(dataset), unit="images", shown=progress, delay=2) as bar,
        evaluating(module),
        torch.inference_mode(),
    ):
        for ids in torch.split(torch.arange(len(dataset)), _BATCH_SIZE):
            x = dataset.read(ids).to(device).float() / 255
            found.append(probabilities(module(x).float()).cpu().numpy())
            bar.advance(len(ids))
    return np.concatenate(found), dataset.labels.numpy()
