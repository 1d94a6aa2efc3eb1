"""The other networks that a file is attacked with: that in float32 which it was made from, and those that are named."""

from __future__ import annotations

from pathlib import Path

import torch

from robustill.core.errors import RobustillError, printable
from robustill.core.user_code import only_named
from robustill.data import Dataset, stratified_subset
from robustill.models.loading import LoadedNetwork, Shape, check_names_itself, load_network
from robustill.models.onnx_file import OnnxNetwork

_LOW_AGREEMENT = 0.7
_NUM_COMPARED = 64


def load_surrogates(network: LoadedNetwork, specs: str | None, shape: Shape) -> dict[str, LoadedNetwork]:
    """Return other networks by the names that are printed of them; the gradient of the first one is taken.

    The network in float32 that `robustill export` made a file from comes first if it is there still: the file names
    it, and its weights must be those of that time.

    Args:
        network: the network that is attacked.
        specs: specifications of `load_network` with commas between them, as --surrogate gives them.
        shape: of the images and classes.

    Raises:
        RobustillError: a network that is named cannot be loaded.
    """
    found = []
    source = _source(network, shape)
    if source is not None:
        found.append(source)
    for spec in (specs or "").split(","):
        if spec.strip():
            check_names_itself(spec.strip(), "--surrogate")
            found.append(load_network(spec.strip(), shape=shape))
    unique = {each.sha256: each for each in reversed(found)}
    named: dict[str, LoadedNetwork] = {}
    for each in sorted(unique.values(), key=found.index):
        name = _short_name(each.spec)
        named[name if name not in named else printable(each.spec)] = each
    return named


def _source(network: LoadedNetwork, shape: Shape) -> LoadedNetwork | None:
    """Return the network that a file was made from; None if it does not say so, or if that network is not here."""
    if not isinstance(network.module, OnnxNetwork):
        return None
    facts = network.module.model.facts
    spec, sha256 = facts.get("source"), facts.get("source_sha256")
    # A file may come from anyone: it names a folder to look into, and no code, no download and no path elsewhere.
    if not isinstance(spec, str) or spec.partition(":")[0] not in ("run", "hf"):
        return None
    folder = Path(spec.partition(":")[2].partition("@")[0])
    if folder.is_absolute() or ".." in folder.parts or not folder.is_dir():
        return None
    try:
        with only_named(origin=network.spec):
            found = load_network(spec, shape=shape)
    except RobustillError:
        return None
    return found if found.sha256 == sha256 else None


def _short_name(spec: str) -> str:
    """Return the last part of a path, with the checkpoint if one is named; other specifications unchanged."""
    kind, _, path = spec.partition(":")
    return printable(f"{kind}:{Path(path).name}" if kind in ("run", "hf") else Path(spec).name)


@torch.no_grad()
def agreement_warnings(network: LoadedNetwork, surrogate: LoadedNetwork, dataset: Dataset) -> list[str]:
    """Warn if the network whose gradient is taken often predicts other classes than the file on clean images."""
    ids = stratified_subset(dataset.labels, min(_NUM_COMPARED, len(dataset)), seed=0)
    images = dataset.read(ids).float() / 255
    share = float((network.module(images).argmax(dim=1) == surrogate.module(images).argmax(dim=1)).float().mean())
    if share >= _LOW_AGREEMENT:
        return []
    return [
        f"{printable(surrogate.spec)} predicts as the file does on {share:.3f} of {len(images)} images only, so its "
        "gradient says little of the file: give the network that the file was made from first"
    ]
