"""Evaluation of one model: attack every image of a data set with a suite and return one row an image."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustill.attacks.autoattack import Precision
from robustill.attacks.suites import Suite, find_suite
from robustill.core.contexts import evaluating, frozen, full_float32
from robustill.core.contract import check_contract, check_network, check_weights_exist
from robustill.core.device import busy_lines, environment, pick_device
from robustill.core.distributed import ProcessGroup, process_group
from robustill.core.errors import ConfigError, DataError, printable
from robustill.core.fingerprint import RANDOM, UNSTABLE, Fingerprint, compute_fingerprint
from robustill.core.memory_format import giving_back_networks, place
from robustill.core.validation import (
    check_choice,
    check_flag,
    check_integer,
    check_module,
    check_path,
    check_seed,
    check_type,
)
from robustill.data import Dataset, check_dataset, pixel_warnings, stratified_subset
from robustill.evaluation.calibration_attack import CalibrationAttack
from robustill.evaluation.deployed import (
    ALONE,
    DeployedWorstCase,
    as_shipped,
    attacked_network,
    surrogates_by_name,
)
from robustill.evaluation.masking import MASKING_PASSES, masking_ladder, masking_warnings
from robustill.evaluation.parts import Parts, images_and_labels
from robustill.evaluation.state import (
    EvaluationState,
    are_same_networks,
    fingerprints_to_json,
    is_reusable,
)
from robustill.evaluation.worst_case import CURVE_ATTACK, WorstCase
from robustill.models.deployment import runtime_name
from robustill.models.normalisation import accuracy_warnings
from robustill.models.onnx_file import OnnxNetwork
from robustill.models.vision import PACKAGES
from robustill.models.weights import tensors_sha256
from robustill.runs.records import WRONG_ON_CLEAN, Records
from robustill.threat import Threat

EPS_GRID = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Radii of the curve of robust accuracy against eps, as multiples of the threat's radius."""

# How many images are stored as pictures, and how many bytes they may take. The report chooses among them by which
# models classify them correctly, which is known only when several evaluations are compared.
_MAX_PICTURES = 1000
_MAX_PICTURE_BYTES = 24_000_000
_MIN_PICTURES = 12
# Images on which the model is checked before the attacks start.
_NUM_PROBE_IMAGES = 16
# Largest change of a probability that another device or batch size may cause.
_PROBABILITY_TOLERANCE = 1e-3
# Images that AutoAttack attacks together; the next part starts when all of them are decided.
_MAX_PART_SIZE = 512
# Images on which gradient masking is checked.
_NUM_MASKING_IMAGES = 64
_PRECISIONS = {"exact": "fp32", "fast": "bf16 gradients, fp32 decisions"}


@full_float32()
@giving_back_networks
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    threat: Threat | str,
    suite: str = "pgd",
    num_images: int | None = None,
    first: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    precision: Precision = "exact",
    eps_curve: bool = True,
    pictures: bool = True,
    device: torch.device | str = "cpu",
    conditions: dict[str, Any] | None = None,
    progress: str | None = None,
    state: Path | str | None = None,
    masking: bool | None = None,
    surrogate: nn.Module | Mapping[str, nn.Module] | None = None,
    before: Records | None = None,
) -> Records:
    """Attack every image with every attack of a suite; every success is verified in float32 and inside the threat.

    A suite is AutoAttack, PGD, or AutoAttack followed by PGD. The first PGD stage attacks all images with all of its
    steps, so that the image that is kept of each has a high loss: AutoAttack stops just beyond the decision
    boundary. PGD is a stage of its own: the accuracy after AutoAttack's last stage is AutoAttack's number, and an image
    that only PGD breaks counts as broken too. The random numbers of an image depend on (seed, attack, radius, its id)
    alone, not on the batch, the other images, the number of processes or where an earlier call was interrupted.

    One more attack, the same for every suite and every seed, changes none of these numbers: ten steps of PGD on the
    cross-entropy of every image. Calibration under attack is compared at its last images, since the images that are
    kept depend on the suite. The suite "deployed" is without it.

    Args:
        model: images [B,C,H,W] in [0,1] to logits [B,K]; its mode, flags, device and memory format are restored.
        dataset: the images to attack, with their labels.
        threat: the images that the adversary may choose, or text such as "linf:8/255".
        suite: a key of SUITES, or a list of AutoAttack's attacks such as "apgd-ce,square".
        num_images: evaluate a class-balanced subset of this size; None is the suite's default, or the whole data set.
        first: in place of such a subset, evaluate the first images of the data set in their order, as papers often do.
        seed: seed of the random starts and of the subset.
        batch_size: images at a time, at least 1.
        precision: "fast" computes AutoAttack's gradients in bfloat16; decisions stay in float32.
        eps_curve: also measure robust accuracy at EPS_GRID times the radius, with one PGD run each; at the threat's own
            radius, too, so that all points of the curve are of one attack.
        pictures: store some of the images, clean and adversarial, for the report.
        device: where to compute.
        conditions: further facts to store with the numbers, e.g. the checkpoint's sha256.
        progress: label of a progress bar; None is silent.
        state: folder for intermediate results, from which an interrupted call resumes; the caller removes it once the
            records are saved. All processes of a group share the images and this folder.
        masking: first check at most 64 of the images for gradient masking, by attacks of increasing strength; None does
            so if the suite contains AutoAttack, whose cost is much larger.
        surrogate: another network with the same classes, such as a teacher, for the check of gradient masking. For the
            suite "deployed", networks by name whose images are tried on the file; the gradient of the first one, that
            in float32 which the file was made from, is taken, too.
        before: records of an earlier call. They are returned, and nothing is attacked, if they have the same images,
            settings and versions, the weights that `conditions` names by checkpoint_sha256, the fingerprint of the
            network, and its probabilities of a few images, unless it draws random numbers.

    Returns:
        Records with one row an image, the same on every process of a group.

    Raises:
        ConfigError: an unknown suite or precision, a batch size below 1, or a threat that is invalid or contains
            every image.
        DataError: more images requested than the data set has, or labels outside its classes.
        ModelError: the model does not fit the images, or breaks what an attack relies on, which the message says.
        RunError: `state` belongs to another network, other images or other settings.
    """
    _check_arguments(model, dataset, surrogate, before, conditions, progress)
    for name, flag in (("eps_curve", eps_curve), ("pictures", pictures), ("masking", masking or False)):
        check_flag(name, flag)
    state = None if state is None else check_path("state", state)
    # Select the images, and those that are stored as pictures.
    selected, ids = _select_images(dataset, suite, num_images, first, seed, batch_size, precision)
    threat = Threat.parse(threat)
    threat.check_fits(dataset.image_shape, dataset.name)
    file, others = model, surrogates_by_name(surrogate) if selected.deployed else {}
    model = attacked_network(
        file, dataset.image_shape, selected, suite, surrogate, precision=precision, masking=masking
    )
    has_gradient = model is not file or not selected.deployed
    device = pick_device(device) if isinstance(device, str) else device
    check_type("device", device, torch.device, "a device such as 'cpu' or 'cuda'")
    picture_ids = _picture_ids(dataset, ids) if pictures else ids[:0]
    group = process_group()
    label = printable(progress) if progress is not None and group.is_main else None

    # Check the images, and the model on a few of them, before hours of attacks.
    warnings = pixel_warnings(dataset)
    check_weights_exist(model, "the model")
    probe_ids = _subset(dataset, ids, _NUM_PROBE_IMAGES, seed)
    probe_images, probe_labels = images_and_labels(dataset, probe_ids, device)
    model = place(model, device, probe_images)
    for name, each in others.items():
        place(each, device, probe_images)
        warnings += check_network(each, probe_images, dataset.num_classes, name, differentiable=True)
    if has_gradient:
        warnings += check_contract(model, probe_images, probe_labels, dataset.num_classes, "the model")
    else:
        warnings += check_network(model, probe_images, dataset.num_classes, "the model")
    warnings += accuracy_warnings(model, dataset, "the model", device)
    _print_lines(label, [*warnings, *busy_lines(device)])

    # Collect the conditions of the numbers.
    eps_grid = _eps_grid(threat) if eps_curve and has_gradient else []
    check_masking = masking
    if check_masking is None:
        check_masking = selected.autoattack is not None and not selected.quick and not selected.deployed
    fingerprint = _shared_fingerprint(file, probe_images, group)
    surrogate_fingerprint = None
    if isinstance(surrogate, nn.Module) and check_masking:
        surrogate = place(surrogate, device, probe_images)
        warnings += check_network(surrogate, probe_images, dataset.num_classes, "the surrogate", differentiable=True)
        surrogate_fingerprint = _shared_fingerprint(surrogate, probe_images, group)
    deployed = None
    if selected.deployed:
        deployed = DeployedWorstCase(model, threat, selected, eps_grid, seed, batch_size, others)
    surrogates = {name: {"sha256": tensors_sha256(each)} for name, each in others.items()}
    architecture = str((conditions or {}).get("architecture", ""))
    conditions = {
        **evaluation_conditions(dataset, len(ids), threat, suite, seed, architecture=architecture),
        **({} if deployed is None else {"suite": {"name": suite, "stages": deployed.describe(dataset.num_classes)}}),
        **({} if first is None else {"selection": f"first {len(ids)} of {len(dataset)}"}),
        "precision": _PRECISIONS[precision],
        "parameters": sum(p.numel() for p in model.parameters()),
        "fingerprint": fingerprints_to_json(fingerprint, surrogate_fingerprint),
        **({"runtime": runtime_name()} if isinstance(file, OnnxNetwork) else {}),
        **({"surrogates": surrogates} if surrogates else {}),
        **(conditions or {}),
    }

    # Return the records of an earlier call if nothing has changed.
    if before is not None:
        unchanged = is_reusable(
            before, conditions, ids, picture_ids, eps_grid, check_masking=check_masking
        ) and are_same_networks(before.conditions.get("fingerprint"), fingerprint, surrogate_fingerprint)
        # The probabilities of a network that draws random numbers, or is decided by rounding, differ in each pass.
        is_comparable = fingerprint.note not in (RANDOM, UNSTABLE)
        if unchanged and (not is_comparable or predictions_match(before, model, probe_images, probe_ids)):
            return before

    # Check for gradient masking, then attack; an interrupted call resumes from its state.
    part_size = batch_size if selected.autoattack is None else _part_size(len(ids), group)
    resume_conditions = _resume_conditions(conditions, file, surrogates, ids, picture_ids, eps_grid)
    evaluation_state = EvaluationState(state, resume_conditions, part_size, fingerprint)
    if group.is_main:
        evaluation_state.create()
    group.barrier()
    worst_case = deployed or WorstCase(model, threat, selected, eps_grid, seed, batch_size, precision)
    calibration_attack = None if selected.deployed else CalibrationAttack(model, threat, batch_size)
    passes_per_image = worst_case.passes_per_image(dataset.num_classes)
    if calibration_attack is not None:
        passes_per_image += calibration_attack.passes_per_image
    parts = Parts(
        dataset, ids, picture_ids, worst_case, calibration_attack, evaluation_state, group, passes_per_image, device
    )
    parts.announce(label, MASKING_PASSES * min(_NUM_MASKING_IMAGES, len(ids)) if check_masking else 0)
    if check_masking:
        of_masking = surrogate if isinstance(surrogate, nn.Module) else None
        masking_check = _MaskingCheck(model, of_masking, surrogate_fingerprint, dataset, ids, threat, seed, device)
        conditions["masking"] = masking_check.run(evaluation_state, group, label)
        warnings += masking_warnings(conditions["masking"])

    with evaluating(model, *others.values()), frozen(model, *others.values()):
        columns = parts.attack(label)

    if deployed is not None:
        correct = columns["broken_by"] != WRONG_ON_CLEAN
        conditions["attacked_as_shipped"], lines = as_shipped(
            deployed, columns.pop(ALONE), correct, dataset.num_classes
        )
        warnings += lines
        if isinstance(file, OnnxNetwork):
            measured = file.measure(dataset.image_shape) if group.is_main else None
            conditions["deployment"] = group.broadcast(measured)
    if selected.quick:
        conditions["quick"] = True
        warnings.append(f"A quick look with few attacks ({selected}): robust accuracy under the whole suite is lower.")
    if eps_grid:
        conditions["curve"] = {"attack": "pgd-ce", "steps": CURVE_ATTACK.steps, "restarts": CURVE_ATTACK.restarts}
    conditions["calibration_attack"] = (
        "none in the suite deployed, whose files may have no gradient"
        if calibration_attack is None
        else calibration_attack.describe()
    )
    conditions["warnings"] = [*warnings, *conditions.get("warnings", [])]
    return Records(
        index=ids.numpy(),
        label=dataset.labels[ids].numpy(),
        eps_grid=np.asarray(eps_grid, dtype=np.float32),
        stages=tuple(str(stage["name"]) for stage in conditions["suite"]["stages"]),
        classes=dataset.classes,
        conditions=conditions,
        example_index=picture_ids.numpy(),
        **columns,
    )


def _check_arguments(model: Any, dataset: Any, surrogate: Any, before: Any, conditions: Any, progress: Any) -> None:
    """Check the types of the arguments that have no values to check."""
    check_module("model", model)
    for each in surrogate.values() if isinstance(surrogate, Mapping) else () if surrogate is None else (surrogate,):
        check_module("surrogate", each)
    check_dataset(dataset)
    for name, value, kind, expected in (
        ("before", before, Records, "the robustill.Records of an earlier call"),
        ("conditions", conditions, Mapping, "a dictionary of facts to record"),
        ("progress", progress, str, "the label of a progress bar, or None for silence"),
    ):
        if value is not None:
            check_type(name, value, kind, expected)
    try:
        json.dumps(conditions, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"conditions cannot be written as JSON ({error}): give numbers, texts, lists of them") from None


def evaluation_conditions(
    dataset: Dataset, num_images: int, threat: Threat, suite: str, seed: int, *, architecture: str = ""
) -> dict[str, Any]:
    """Return the conditions that every attack on a data set records: images, threat, suite, seed, versions and date.

    The versions include that of timm or torchvision if the architecture is theirs.
    """
    packages = [package for package in PACKAGES if architecture.startswith(f"{package}:")]
    split_rule = getattr(dataset, "split_rule", None)
    return {
        "data": dataset.name,
        "split": dataset.split,
        **({} if split_rule is None else {"split_rule": split_rule}),
        "data_fingerprint": dataset.fingerprint,
        "num_images": num_images,
        "of_images": len(dataset),
        "threat": {"norm": threat.norm, "eps": threat.eps, "text": str(threat)},
        "suite": {"name": suite, "stages": find_suite(suite).describe(threat, dataset.num_classes)},
        "seed": seed,
        "versions": environment(packages)["versions"],
        "date": datetime.date.today().isoformat(),
    }


def _select_images(
    dataset: Dataset,
    suite: str,
    num_images: int | None,
    first: int | None,
    seed: int,
    batch_size: int,
    precision: str,
) -> tuple[Suite, Tensor]:
    """Check the settings; return the suite and the ids of the images to attack."""
    selected = find_suite(suite)
    check_integer("batch_size", batch_size, at_least=1)
    check_choice("precision", precision, _PRECISIONS)
    check_seed(seed)
    if num_images is not None and first is not None:
        raise ConfigError(f"num_images is {num_images} and first is {first}: give one of them")
    count = num_images if first is None else first
    if count is None and selected.num_images is not None:
        count = min(selected.num_images, len(dataset))
    if count is None:
        return selected, torch.arange(len(dataset))
    # One below 1 has an error of its own, with the number of images that there are.
    check_integer("num_images" if first is None else "first", count, at_least=-sys.maxsize)
    if count > len(dataset) or count < 1:
        raise DataError(f"{count} images requested of {dataset.name} ({dataset.split}): expected 1 to {len(dataset)}")
    if first is not None:
        return selected, torch.arange(first)
    return selected, stratified_subset(dataset.labels, count, seed=seed)


def _subset(dataset: Dataset, ids: Tensor, num_images: int, seed: int) -> Tensor:
    """Return the ids of a class-balanced subset of at most `num_images` of the images."""
    return ids[stratified_subset(dataset.labels[ids], min(num_images, len(ids)), seed=seed)]


def _picture_ids(dataset: Dataset, ids: Tensor) -> Tensor:
    """Return the ids of the images to store, clean and adversarial in float32; the same for every model."""
    bytes_per_picture = 8 * math.prod(dataset.image_shape)
    limit = max(_MIN_PICTURES, _MAX_PICTURE_BYTES // bytes_per_picture)
    return _subset(dataset, ids, min(_MAX_PICTURES, limit), seed=0)


def _shared_fingerprint(network: nn.Module, images: Tensor, group: ProcessGroup) -> Fingerprint:
    """Return the fingerprint of a network, the same on every process, although their devices may round differently."""
    fingerprint = None
    if group.is_main:
        fingerprint = compute_fingerprint(network, images.shape[1:], device=images.device, images=images)
    return group.broadcast(fingerprint)  # type: ignore[no-any-return]


def _eps_grid(threat: Threat) -> list[float]:
    """Return the radii of the curve; in linf none above 1, where every image is allowed."""
    radii = [threat.eps * factor for factor in EPS_GRID]
    return [eps for eps in radii if threat.norm != "linf" or eps <= 1]


def _part_size(num_images: int, group: ProcessGroup) -> int:
    # Small enough for the processes to finish at about the same time, large enough for the searches of several images
    # to fill a batch.
    images_per_part = math.ceil(num_images / (4 * group.world_size))
    return max(32, min(_MAX_PART_SIZE, images_per_part))


def _resume_conditions(
    conditions: dict[str, Any],
    model: nn.Module,
    surrogates: Mapping[str, Any],
    ids: Tensor,
    picture_ids: Tensor,
    eps_grid: Sequence[float],
) -> dict[str, Any]:
    """Return what must be the same for a call to resume one that was interrupted."""
    return {
        "weights": tensors_sha256(model),
        # The stages of the suite have only their names, which other weights may take.
        **({"surrogates": [each["sha256"] for each in surrogates.values()]} if surrogates else {}),
        "images": [conditions["data_fingerprint"], hashlib.sha256(ids.numpy().tobytes()).hexdigest()],
        "threat": str(conditions["threat"]),
        "suite": conditions["suite"],
        "seed": conditions["seed"],
        "precision": conditions["precision"],
        "radii": list(eps_grid),
        # Parts of earlier versions, whose curves took the whole suite at one radius, are not mixed with new ones.
        **({"curve": CURVE_ATTACK.name} if eps_grid else {}),
        "pictures": len(picture_ids),
    }


def predictions_match(before: Records, model: nn.Module, probe_images: Tensor, probe_ids: Tensor) -> bool:
    """Return whether the model gives the recorded probabilities: its code may change while its weights do not."""
    rows = np.searchsorted(before.index, probe_ids.numpy())
    with evaluating(model), torch.no_grad():
        probabilities = model(probe_images).float().softmax(dim=1).cpu().numpy()
    return bool(np.abs(before.clean_probabilities[rows] - probabilities).max() < _PROBABILITY_TOLERANCE)


def _print_lines(label: str | None, lines: Iterable[str]) -> None:
    """Print the lines to stderr, unless the label is None."""
    if label is not None:
        for line in lines:
            print(f"{label}: {line}", file=sys.stderr)


@dataclass
class _MaskingCheck:
    """The check for gradient masking; the main process runs it, all processes get its result."""

    model: nn.Module
    surrogate: nn.Module | None
    surrogate_fingerprint: Fingerprint | None
    dataset: Dataset
    ids: Tensor
    threat: Threat
    seed: int
    device: torch.device

    def run(self, state: EvaluationState, group: ProcessGroup, label: str | None) -> dict[str, Any]:
        """Return the result of `masking_ladder`, from the state if it is there."""
        result = self._load_or_compute(state, label) if group.is_main else None
        if result is not None:
            summary = f"gradient masking: {result['verdict']} on {result['images']} images"
            _print_lines(label, masking_warnings(result) or [summary])
        gathered = group.gather({} if result is None else {0: result})
        return gathered[0]  # type: ignore[no-any-return]

    def _load_or_compute(self, state: EvaluationState, label: str | None) -> dict[str, Any]:
        name = "masking"
        if self.surrogate is not None:
            name = f"masking-{tensors_sha256(self.surrogate)}"
        of_surrogate = self.surrogate_fingerprint
        note = state.load_note(name) or {}
        stored: dict[str, Any] | None = note.get("result")
        # The weights of the surrogate may be in other code now.
        if stored is not None and (of_surrogate is None or of_surrogate.difference(note.get("surrogate")) is None):
            return stored
        ids = _subset(self.dataset, self.ids, _NUM_MASKING_IMAGES, self.seed)
        _print_lines(label, [f"looking for gradient masking on {len(ids)} images first"])
        x, y = images_and_labels(self.dataset, ids, self.device)
        result = masking_ladder(self.model, x, y, self.threat, seed=self.seed, surrogate=self.surrogate)
        state.save_note(name, {"result": result, "surrogate": None if of_surrogate is None else of_surrogate.to_json()})
        return result
