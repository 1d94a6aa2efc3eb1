"""The check of a teacher: its accuracy, calibration and agreement with a student, before it is distilled from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustill.analysis.calibration import ece
from robustill.attacks.cost import seconds_per_pass
from robustill.attacks.pgd import run_pgd
from robustill.config.overrides import apply_overrides
from robustill.config.schema import Config, make_config, setting_hint
from robustill.config.split import holds_out, load_split, load_validation
from robustill.core.contexts import evaluating, frozen
from robustill.core.contract import check_network, check_weights_exist
from robustill.core.device import configure_process
from robustill.core.errors import ConfigError, ModelError
from robustill.core.memory_format import keeping_placement, place
from robustill.core.progress import Progress, announce
from robustill.core.randomness import generator
from robustill.core.user_code import TrustCode, only_named, paths_in
from robustill.data import Dataset, check_dataset, pixel_warnings, stratified_subset
from robustill.data.images import MissingDataError
from robustill.losses import ce, probabilities
from robustill.models.loading import LoadedNetwork, Shape, check_names_itself, load_network
from robustill.models.normalisation import accuracy_warnings
from robustill.runs.directory import RunDirectory, split_checkpoint
from robustill.threat import Threat

STEPS = 20
"""Steps of PGD, each of a quarter of eps."""

# The speed of the teacher is measured on the first batch; the largest batch bounds the memory.
_FIRST_BATCH, _LARGEST_BATCH = 8, 128


@dataclass(frozen=True, kw_only=True)
class TeacherReport:
    """The accuracy, calibration and confidence of a teacher on some images.

    The adversarial images are those that PGD finds against the teacher; an image that it misclassifies without an
    attack counts as not robust.

    Args:
        teacher: the network, with its origin.
        parameters: number of parameters.
        conditions: data set, split, threat and attack, as text.
        images: number of images that were evaluated.
        of_images: number of images in the data set.
        clean_accuracy: in [0,1].
        robust_accuracy: in [0,1].
        ece_clean: expected calibration error, in [0,1].
        ece_adversarial: expected calibration error, in [0,1].
        confidence_clean: mean probability of the top label.
        confidence_adversarial: mean probability of the top label.
        agreement_clean: share of the images that a student gives the same top label; None without a student.
        agreement_adversarial: the same on the teacher's adversarial images.
        warnings: why the numbers may mean little, one line each.
    """

    teacher: LoadedNetwork
    parameters: int
    conditions: str
    images: int
    of_images: int
    clean_accuracy: float
    robust_accuracy: float
    ece_clean: float
    ece_adversarial: float
    confidence_clean: float
    confidence_adversarial: float
    agreement_clean: float | None
    agreement_adversarial: float | None
    warnings: tuple[str, ...] = ()


def check_spec(
    spec: str,
    *,
    overrides: Sequence[str] = (),
    student: str | None = None,
    split: Literal["validation", "train", "test"] = "validation",
    sha256: str | None = None,
    image_size: int | None = None,
    download: bool = False,
    progress: bool = True,
    trust_code: TrustCode = False,
    **settings: Any,
) -> TeacherReport:
    """Load a teacher and check it.

    Args:
        spec: as for `load_network`.
        overrides: data, threat and, for a file of weights, model: ["--data", "cifar10", "--threat", "linf:8/255"]. A
            run has its own data and threat.
        student: a specification that names its own network, such as run:DIR@best.
        split: the images to check on: by default the validation images, training images that no run of these settings
            of data is trained on. A network that was trained elsewhere may have been trained on them.
        sha256: as for `load_network`.
        image_size: as for `load_network`.
        download: as for `load_network`.
        progress: show a progress bar.
        trust_code: as for `load_network`, of the teacher and the student.
        settings: num_images, seed and seconds of `check_teacher`.

    Raises:
        RobustillError: a teacher, student, data set or setting that is missing or invalid.
    """
    named = paths_in([spec, *overrides, student or ""])
    with only_named(*named, trust=trust_code):
        teacher, dataset, held_out, config, student_network, device = _load(
            spec, overrides, student, split, sha256=sha256, image_size=image_size, download=download
        )
    result = check_teacher(
        teacher,
        dataset,
        threat=config.threat.build(),
        student=student_network,
        device=device,
        progress=progress,
        **settings,
    )
    if held_out is None:
        return result
    images = f"{dataset.name} validation"
    if not holds_out(teacher, held_out):
        images += " (training images, on which this network may have been trained)"
    return replace(result, conditions=result.conditions.replace(f"{dataset.name} {dataset.split}", images, 1))


def _load(
    spec: str,
    overrides: Sequence[str],
    student: str | None,
    split: Literal["validation", "train", "test"],
    **options: Any,
) -> tuple[LoadedNetwork, Dataset, dict[str, Any] | None, Config, LoadedNetwork | None, torch.device]:
    values = _settings(spec, overrides)
    config = make_config(values)
    device = configure_process(config.compute)
    try:
        dataset, held_out = load_validation(config) if split == "validation" else (load_split(config, split), None)
    except MissingDataError as error:
        hint = "" if split == "test" else ", or --split test to check on test images"
        raise MissingDataError(f"{error}{hint}") from None
    shape = Shape.of(dataset)
    is_named = "model" in values
    if student is not None:
        check_names_itself(student, "--student")
    teacher = load_network(
        spec,
        shape=shape,
        name=config.model.name if is_named else None,
        options=_model_options(config) if is_named else None,
        **options,
    )
    other = None if student is None else load_network(student, shape=shape)
    return teacher, dataset, held_out, config, other, device


def _settings(spec: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return data, threat, compute and model: those of the teacher's run, if it is one, with the overrides applied."""
    values: dict[str, Any] = {}
    if spec.startswith("run:"):
        folder, _ = split_checkpoint(spec.removeprefix("run:"))
        stored = RunDirectory.existing(folder).config()
        values = {key: stored[key] for key in ("data", "threat", "compute") if key in stored}
    values = apply_overrides(values, overrides)
    for key in values:
        used = ("data", "threat", "model", "compute")
        if key not in used:
            raise ConfigError(f"--{key} has no effect on a check: {setting_hint(key, used)}")
    for key in ("data", "threat"):
        if key not in values:
            raise ConfigError(f"{spec} does not state its data and threat: give --{key} too")
    return values


def _model_options(config: Config) -> dict[str, Any]:
    return {**config.model.options, "mean": config.model.mean, "std": config.model.std}


def check_teacher(
    teacher: LoadedNetwork,
    dataset: Dataset,
    *,
    threat: Threat,
    student: LoadedNetwork | None = None,
    num_images: int = 1000,
    seed: int = 0,
    seconds: float | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> TeacherReport:
    """Compute clean and robust accuracy, calibration and confidence of a teacher on some images, in a random order.

    Args:
        teacher: the network.
        dataset: the images and labels.
        threat: of the attack, PGD-20.
        student: a network whose top labels are compared with the teacher's.
        num_images: the largest number of images, class-balanced.
        seed: of the choice and order of the images and of the attack's random starts.
        seconds: no batch is started that would end later than this; None evaluates all of `num_images`.
        device: where to compute.
        progress: show a progress bar, if the check takes more than two seconds.

    Raises:
        ModelError: a network does not fit the images.
        DataError: an invalid number of images.
    """
    check_dataset(dataset)
    ids = stratified_subset(dataset.labels, min(num_images, len(dataset)), seed=seed)
    ids = ids[torch.randperm(len(ids), generator=generator(seed, "teacher check", "order"))]
    device = torch.device(device)
    loaded = [teacher] if student is None else [teacher, student]
    networks = [each.module for each in loaded]
    probe_images = dataset.read(ids[:2]).to(device).float() / 255
    warnings = pixel_warnings(dataset)
    clean: list[list[Tensor]] = [[] for _ in networks]
    adversarial: list[list[Tensor]] = [[] for _ in networks]
    done, batch_size, start = 0, _FIRST_BATCH, time.monotonic()
    with keeping_placement(*networks), evaluating(*networks), frozen(*networks):
        for network, each in zip(networks, loaded, strict=True):
            check_weights_exist(network, each.spec)
            place(network, device, probe_images)
            warnings += check_network(
                network, probe_images, dataset.num_classes, each.spec, differentiable=network is networks[0]
            )
            warnings += accuracy_warnings(network, dataset, each.spec, device)
        if progress:
            _announce(teacher, networks, dataset, ids, threat, device, seconds)
        with Progress(f"checking {teacher.spec}", total=len(ids), unit="images", shown=progress, delay=2) as bar:
            while done < len(ids) and batch_size > 0:
                batch_ids = ids[done : done + batch_size]
                x, x_adv = attacked_images(networks[0], dataset, batch_ids, threat, seed, device)
                with torch.no_grad():
                    for network, of_clean, of_adversarial in zip(networks, clean, adversarial, strict=True):
                        of_clean.append(finite_probabilities(network, x))
                        of_adversarial.append(finite_probabilities(network, x_adv))
                done += len(batch_ids)
                batch_size = _LARGEST_BATCH
                if seconds is not None:
                    elapsed = time.monotonic() - start
                    batch_size = min(_LARGEST_BATCH, int((seconds - elapsed) * done / elapsed))
                    # What is left of the time may be less than the images need.
                    bar.total = min(len(ids), max(done, int(done * seconds / elapsed)))
                bar.advance(len(batch_ids))
    return _report(
        teacher,
        dataset,
        ids[:done],
        [torch.cat(each).double().numpy() for each in clean],
        [torch.cat(each).double().numpy() for each in adversarial],
        f"{dataset.name} {dataset.split}, {threat}, PGD {STEPS} steps, seed {seed}",
        warnings,
    )


def _announce(
    teacher: LoadedNetwork,
    networks: Sequence[nn.Module],
    dataset: Dataset,
    ids: Tensor,
    threat: Threat,
    device: torch.device,
    limit: float | None,
) -> None:
    """Print how long the check will take, and how many images that is if the time is limited."""
    timed = ids[:_LARGEST_BATCH]
    x = (dataset.read(timed).to(device).float() / 255).contiguous(memory_format=torch.channels_last)
    # The attack on the teacher, and each network on clean and adversarial images.
    passes = 2 * STEPS + 2 * len(networks)
    per_image = passes * seconds_per_pass(networks[0], x, dataset.labels[timed].to(device), threat)
    expected, note = len(ids) * per_image, ""
    if limit is not None and expected > limit:
        expected, note = limit, f"the limit, for some {round(limit / per_image)} of {len(ids)} images"
    announce(f"checking {teacher.spec}", expected, note)


def attacked_images(
    network: nn.Module, dataset: Dataset, ids: Tensor, threat: Threat, seed: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the images with these ids and those of PGD against a network; random starts depend on (seed, id) alone.

    Args:
        network: on the device, in eval mode.
        dataset: the images and labels.
        ids: int64 [B].
        threat: of the attack.
        seed: of the random starts.
        device: where to compute.

    Returns:
        Clean and adversarial images, float32 [B,C,H,W] in [0,1].
    """
    x = (dataset.read(ids).to(device).float() / 255).contiguous(memory_format=torch.channels_last)
    y = dataset.labels[ids].to(device)
    generators = [generator(seed, "teacher check", int(each), device=device) for each in ids]
    x_adv = run_pgd(lambda z: ce(network(z), y), x, threat, steps=STEPS, step_size=threat.eps / 4, generator=generators)
    return x, x_adv


def finite_probabilities(network: nn.Module, x: Tensor) -> Tensor:
    """Return the probabilities [B,K] on the CPU.

    Raises:
        ModelError: a logit is NaN or infinite.
    """
    logits = network(x).float()
    if not bool(logits.isfinite().all()):
        raise ModelError("the network gives NaN or infinite logits on clean or adversarial images")
    return probabilities(logits).cpu()


def _report(
    teacher: LoadedNetwork,
    dataset: Dataset,
    ids: Tensor,
    clean: list[NDArray[Any]],
    adversarial: list[NDArray[Any]],
    conditions: str,
    warnings: Sequence[str],
) -> TeacherReport:
    """Compute the report from probabilities [N,K] of the teacher and, where there is one, of the student."""
    labels = dataset.labels[ids].cpu().numpy()
    correct = clean[0].argmax(axis=1) == labels
    robust = correct & (adversarial[0].argmax(axis=1) == labels)
    return TeacherReport(
        teacher=teacher,
        parameters=sum(parameter.numel() for parameter in teacher.module.parameters()),
        conditions=conditions,
        images=len(ids),
        of_images=len(dataset),
        clean_accuracy=float(correct.mean()),
        robust_accuracy=float(robust.mean()),
        ece_clean=ece(clean[0], labels),
        ece_adversarial=ece(adversarial[0], labels),
        confidence_clean=float(clean[0].max(axis=1).mean()),
        confidence_adversarial=float(adversarial[0].max(axis=1).mean()),
        agreement_clean=_agreement(clean),
        agreement_adversarial=_agreement(adversarial),
        warnings=tuple(warnings),
    )


def _agreement(probabilities: list[NDArray[Any]]) -> float | None:
    """Return the share of images on which teacher and student have the same top label; None without a student."""
    if len(probabilities) == 1:
        return None
    teacher, student = probabilities
    return float(np.mean(teacher.argmax(axis=1) == student.argmax(axis=1)))
