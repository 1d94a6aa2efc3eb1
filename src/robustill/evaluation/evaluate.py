"""A suite of attacks over a data set: one row an image, from which every number and figure is computed."""

from __future__ import annotations

import datetime
import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustill.attacks.autoattack import Precision
from robustill.attacks.suites import Suite, find_suite
from robustill.core.contexts import evaluating, frozen, full_float32
from robustill.core.device import environment, place
from robustill.core.distributed import ProcessGroup, process_group
from robustill.core.errors import ConfigError, DataError, did_you_mean, printable
from robustill.core.progress import Progress
from robustill.data import Dataset, stratified_subset
from robustill.evaluation.masking import masking_ladder, masking_warnings
from robustill.evaluation.state import Arrays, EvaluationState, answers
from robustill.evaluation.worst_case import WorstCase
from robustill.models.checks import check_contract
from robustill.models.weights import tensors_sha256
from robustill.runs.records import Records
from robustill.threat import Threat

# Of the radius of the threat: where the curve of robust accuracy against eps is measured.
EPS_GRID = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
# Pictures that are kept, and how many bytes of them: the page chooses among them by who is right, which is known only
# when several evaluations meet. Large images are as few as a page showed before it had a choice.
_EXAMPLES = 1000
_EXAMPLE_BYTES = 24_000_000
_FEWEST_EXAMPLES = 12
# Images on which the model is tried before hours are spent.
_TRIED = 16
# Of a probability, on another device or in a batch of another size.
_ROUNDING = 1e-3
# Images that AutoAttack works on together; the next ones begin when all of them are decided.
_PART = 512
# Images on which a masked gradient is looked for.
_LOOKED_AT = 64
_PRECISIONS = {"exact": "fp32", "fast": "bf16 gradients, fp32 decisions"}


@full_float32()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    threat: Threat | str,
    suite: str = "pgd",
    num_images: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    precision: Precision = "exact",
    eps_curve: bool = True,
    pictures: bool = True,
    device: torch.device | str = "cpu",
    conditions: dict[str, Any] | None = None,
    progress: str | None = None,
    state: Path | None = None,
    masking: bool | None = None,
    surrogate: nn.Module | None = None,
    before: Records | None = None,
) -> Records:
    """Attack every image with every attack of a suite; every success is decided in float32, inside the threat.

    A suite is AutoAttack, PGD, or AutoAttack and then PGD. The first PGD stage runs on all images to its end, so that
    calibration under attack is measured at a high loss: AutoAttack stops barely beyond the boundary. It is a stage of
    its own, so the accuracy after AutoAttack's last stage is AutoAttack's number, and an image that it breaks although
    AutoAttack did not counts as broken too. What an image draws depends on (seed, attack, radius, its id) alone, not
    on the batch, on the other images, on the number of processes or on where an earlier call was stopped.

    Args:
        model: images [B,C,H,W] in [0,1] to logits [B,K]; its mode and flags are restored.
        dataset: whose images are attacked.
        threat: the images allowed, or text such as "linf:8/255".
        suite: a key of SUITES, or a list of AutoAttack's attacks such as "apgd-ce,square".
        num_images: a class-balanced part of the data set; None is all of it, or what the suite says.
        seed: of the random starts and of the part.
        batch_size: images at a time, at least 1.
        precision: "fast" computes AutoAttack's gradients in bfloat16; decisions stay in float32.
        eps_curve: also measure robust accuracy at EPS_GRID times the radius, with one PGD run each.
        pictures: keep some of the images, clean and adversarial, to be looked at.
        device: where to compute.
        conditions: what else belongs beside the numbers, e.g. the checkpoint's sha256.
        progress: label of a progress bar; None is silent.
        state: a folder for what is done so far, where a killed call goes on; the caller removes it when the records
            are safe. Processes of one group share the images, and the folder.
        masking: look for a masked gradient on at most 64 of the images first, see `masking_ladder`; None does so with
            AutoAttack, beside whose cost that is little.
        surrogate: another network of the same classes, such as a teacher, for that look.
        before: records of an earlier call. Where they are of the same images, settings and versions, and of the weights
            that `conditions` names by checkpoint_sha256, they are the answer and nothing is attacked.

    Returns:
        Records, one row an image, the same on every process of a group.

    Raises:
        ConfigError: an unknown suite or precision, a batch size below 1, no threat, or one that holds all images.
        DataError: more images wanted than there are, or labels that are none.
        ModelError: the model does not fit the images or breaks the contract, see `check_contract`.
        RunError: `state` belongs to other weights, images or settings.
    """
    chosen, ids = _asked(dataset, suite, num_images, seed, batch_size, precision)
    threat = Threat.parse(threat)
    threat.check_fits(dataset.image_shape, dataset.name)
    device = torch.device(device)
    # The same images for every model on this data set, whatever breaks them.
    shown = ids[:0]
    if pictures:
        shown = ids[stratified_subset(dataset.labels[ids], _kept(dataset, len(ids)), seed=0)]
    tried = ids[stratified_subset(dataset.labels[ids], min(_TRIED, len(ids)), seed=seed)]
    model = place(model, device)
    few = dataset.read(tried).to(device).float() / 255
    warnings = check_contract(model, few, dataset.labels[tried].to(device), dataset.num_classes, "the model")
    group = process_group()
    if not group.is_main:
        progress = None
    progress = progress and printable(progress)
    for line in warnings if progress is not None else ():
        print(f"{progress}: {line}", file=sys.stderr)
    grid = [threat.eps * factor for factor in EPS_GRID] if eps_curve else []
    grid = [eps for eps in grid if threat.norm != "linf" or eps <= 1]
    known = {
        **asked_for(dataset, len(ids), threat, suite, seed),
        "precision": _PRECISIONS[precision],
        "parameters": sum(p.numel() for p in model.parameters()),
        **(conditions or {}),
    }
    looks = masking or (masking is None and chosen.autoattack is not None and not chosen.quick)
    same = before is not None and answers(before, known, ids, shown, grid, looks=looks)
    if before is not None and same and _classified_as(before, model, few, tried):
        return before
    part_size = batch_size if chosen.autoattack is None else _part_size(len(ids), group)
    kept = EvaluationState(state, _same(known, model, ids, shown, grid), part_size)
    if looks:
        looked = _Looked(model, dataset, ids, threat, seed, device)
        known["masking"] = looked.page(kept, group, surrogate, progress)
        warnings += masking_warnings(known["masking"])
    with evaluating(model), frozen(model):
        attack = WorstCase(model, threat, chosen, grid, seed, batch_size, precision)
        units = chosen.units(threat, dataset.num_classes)
        parts = _Parts(dataset, ids, shown, attack, kept, group, units, device)
        rows = parts.run(progress)
    if chosen.quick:
        known["quick"] = True
        warnings.append(f"A quick look with few attacks ({chosen}): robust accuracy under the whole suite is lower.")
    known["warnings"] = [*warnings, *known.get("warnings", [])]
    return Records(
        index=ids.numpy(),
        label=dataset.labels[ids].numpy(),
        eps_grid=np.asarray(grid, dtype=np.float32),
        stages=tuple(str(stage["name"]) for stage in known["suite"]["stages"]),
        classes=dataset.classes,
        conditions=known,
        example_index=shown.numpy(),
        **rows,
    )


def asked_for(dataset: Dataset, number: int, threat: Threat, suite: str, seed: int) -> dict[str, Any]:
    """What was asked of which images, by which versions and when: conditions of everything that attacks a data set."""
    return {
        "data": dataset.name,
        "split": dataset.split,
        "data_fingerprint": dataset.fingerprint,
        "num_images": number,
        "of_images": len(dataset),
        "threat": {"norm": threat.norm, "eps": threat.eps, "text": str(threat)},
        "suite": {"name": suite, "stages": find_suite(suite).described(threat, dataset.num_classes)},
        "seed": seed,
        "versions": environment()["versions"],
        "date": datetime.date.today().isoformat(),
    }


def _asked(
    dataset: Dataset, suite: str, num_images: int | None, seed: int, batch_size: int, precision: str
) -> tuple[Suite, Tensor]:
    """The suite and the ids of the images, after a look at what cannot be."""
    chosen = find_suite(suite)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}: expected at least 1")
    if precision not in _PRECISIONS:
        raise ConfigError(f"precision {precision!r} is unknown: {did_you_mean(precision, _PRECISIONS)}")
    lowest, highest = int(dataset.labels.min()), int(dataset.labels.max())
    if lowest < 0 or highest >= dataset.num_classes:
        raise DataError(
            f"{dataset.name} ({dataset.split}) has labels from {lowest} to {highest}, "
            f"expected 0 to {dataset.num_classes - 1}: count classes from 0"
        )
    if num_images is None:
        num_images = chosen.num_images and min(chosen.num_images, len(dataset))
    if num_images is None:
        return chosen, torch.arange(len(dataset))
    if num_images > len(dataset) or num_images < 1:
        raise DataError(
            f"{num_images} images wanted of {dataset.name} ({dataset.split}): expected from 1 to {len(dataset)}"
        )
    return chosen, stratified_subset(dataset.labels, num_images, seed=seed)


def _kept(dataset: Dataset, number: int) -> int:
    """Of how many images the pictures are kept, clean and adversarial in float32."""
    room = _EXAMPLE_BYTES // (8 * math.prod(dataset.image_shape))
    return min(number, _EXAMPLES, max(_FEWEST_EXAMPLES, room))


def _part_size(number: int, group: ProcessGroup) -> int:
    # Small enough that processes end at about the same time, large enough that searches side by side fill a batch.
    return max(32, min(_PART, -(-number // (4 * group.world_size))))


def _same(known: dict[str, Any], model: nn.Module, ids: Tensor, shown: Tensor, grid: Sequence[float]) -> dict[str, Any]:
    """What must not change between a call that was stopped and the one that goes on."""
    return {
        "weights": tensors_sha256(model),
        "images": [known["data_fingerprint"], hashlib.sha256(ids.numpy().tobytes()).hexdigest()],
        "threat": str(known["threat"]),
        "suite": known["suite"],
        "seed": known["seed"],
        "precision": known["precision"],
        "radii": list(grid),
        "pictures": len(shown),
    }


def _classified_as(before: Records, model: nn.Module, few: Tensor, tried: Tensor) -> bool:
    """Whether the network says of a few images what it said: code of one's own changes without its weights."""
    rows = np.searchsorted(before.index, tried.numpy())
    with evaluating(model), torch.no_grad():
        now = model(few).float().softmax(dim=1).cpu().numpy()
    return bool(np.abs(before.clean_probabilities[rows] - now).max() < _ROUNDING)


@dataclass
class _Looked:
    """The look for a masked gradient: the first process takes it, all have it."""

    model: nn.Module
    dataset: Dataset
    ids: Tensor
    threat: Threat
    seed: int
    device: torch.device

    def page(
        self, state: EvaluationState, group: ProcessGroup, surrogate: nn.Module | None, label: str | None
    ) -> dict[str, Any]:
        """What `masking_ladder` gives."""
        name = "masking" if surrogate is None else f"masking-{tensors_sha256(surrogate)}"
        mine = state.note(name) if group.is_main else {}
        if mine is None:
            labels = self.dataset.labels[self.ids]
            few = self.ids[stratified_subset(labels, min(_LOOKED_AT, len(labels)), seed=self.seed)]
            x, y = self.dataset.read(few).to(self.device).float() / 255, self.dataset.labels[few].to(self.device)
            if surrogate is not None:
                surrogate = place(surrogate, self.device)
            mine = masking_ladder(self.model, x, y, self.threat, seed=self.seed, surrogate=surrogate)
            state.save_note(name, mine)
        if label is not None:
            for line in masking_warnings(mine) or [f"gradient masking: {mine['verdict']} on {mine['images']} images"]:
                print(f"{label}: {line}", file=sys.stderr)
        return group.gather({0: mine} if group.is_main else {})[0]  # type: ignore[no-any-return]


class _Parts:
    """The images in parts: those of other processes are left to them, those that are done are read."""

    def __init__(
        self,
        dataset: Dataset,
        ids: Tensor,
        shown: Tensor,
        attack: WorstCase,
        state: EvaluationState,
        group: ProcessGroup,
        units: int,
        device: torch.device,
    ) -> None:
        self.dataset, self.parts, self.shown = dataset, torch.split(ids, state.part_size), shown
        self.attack, self.state, self.group, self.device = attack, state, group, device
        self.units = units
        self.mine = range(group.rank, len(self.parts), group.world_size)
        self.images = self.robust = 0
        self.bar: Progress | None = None

    def run(self, label: str | None) -> Arrays:
        """The columns of all images."""
        found = {number: part for number in self.mine if (part := self.state.part(number)) is not None}
        for number, part in found.items():
            self._count(number, part)
        self.attack.passes = sum(int(part["passes"]) for part in found.values())
        done = self.attack.passes
        with Progress(label or "", total=0, unit="passes", done=done, shown=label is not None) as bar:
            self.bar = bar
            self._report(done, done, "")
            for number in self.mine:
                if number not in found:
                    found[number] = self._done(number)
        every = self.group.gather(found)
        ordered = [every[number] for number in range(len(self.parts))]
        return {key: np.concatenate([part[key] for part in ordered]) for key in ordered[0] if key != "passes"}

    def _done(self, number: int) -> Arrays:
        ids, before = self.parts[number], self.attack.passes
        x = (self.dataset.read(ids).to(self.device).float() / 255).contiguous(memory_format=torch.channels_last)
        row, x_adv = self.attack.part(
            x,
            self.dataset.labels[ids].to(self.device),
            ids,
            state=self.state.progress(number),
            save=lambda progress: self.state.save_progress(number, progress),
            report=lambda done, expected, name: self._report(done, expected, name, len(ids)),
        )
        kept = torch.isin(ids, self.shown).to(self.device)
        arrays = {key: value.cpu().numpy() for key, value in row.items()}
        arrays["example_clean"], arrays["example_adversarial"] = (
            images[kept].contiguous().cpu().numpy() for images in (x, x_adv)
        )
        arrays["passes"] = np.array(self.attack.passes - before)
        self.state.save_part(number, arrays)
        self._count(number, arrays)
        self._report(self.attack.passes, self.attack.passes, "")
        return arrays

    def _count(self, number: int, part: Arrays) -> None:
        self.images += len(self.parts[number])
        self.robust += int(part["robust"].sum())

    def _report(self, done: int, expected: int, attack: str, running: int = 0) -> None:
        """The passes done, and those expected once the images that are running are decided."""
        assert self.bar is not None
        number = sum(len(self.parts[each]) for each in self.mine)
        begun = self.images + running
        # An image that withstands everything is the dearest; later ones cost what the ones so far do.
        each = expected / begun if begun else self.units
        self.bar.total = round(expected + (number - begun) * each)
        robust = f"robust so far {self.robust / self.images:.3f} of {self.images}" if self.images else ""
        self.bar.advance(done - self.bar.done, " · ".join(part for part in (attack, robust) if part))
