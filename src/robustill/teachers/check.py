"""What a teacher is worth, before hours are spent on learning from it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustill.analysis.calibration import ece
from robustill.attacks.pgd import pgd
from robustill.config.overrides import apply_overrides
from robustill.config.schema import make_config
from robustill.config.split import load_split
from robustill.core.contexts import evaluating, frozen
from robustill.core.device import configure_process, place
from robustill.core.errors import ConfigError
from robustill.core.randomness import generator
from robustill.data import Dataset, stratified_subset
from robustill.losses import ce
from robustill.models.checks import check_network
from robustill.models.loading import LoadedNetwork, Shape, load_network
from robustill.runs.directory import RunDirectory
from robustill.threat import Threat

STEPS = 20
"""Of PGD, with a step size of a quarter of eps."""

# The first batch says how fast the teacher is; the largest one keeps memory small.
_FIRST, _LARGEST = 8, 128


@dataclass(frozen=True, kw_only=True)
class TeacherReport:
    """What a teacher is, and what it says of some images.

    The adversarial images are those that PGD finds against the teacher; an image that it gets wrong as it is counts as
    not robust.

    Args:
        teacher: where it came from.
        parameters: how many numbers it learned.
        conditions: data set, split, threat and attack, in words.
        images: how many were looked at.
        of_images: how many there are.
        clean_accuracy: in [0,1].
        robust_accuracy: in [0,1].
        ece_clean: in [0,1].
        ece_adversarial: in [0,1].
        confidence_clean: mean probability of the top label.
        confidence_adversarial: mean probability of the top label.
        agreement_clean: share of the images that a student gives the same top label; None without a student.
        agreement_adversarial: the same on the teacher's adversarial images.
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


def check_spec(
    spec: str,
    *,
    overrides: Sequence[str] = (),
    student: str | None = None,
    split: Literal["train", "test"] = "test",
    sha256: str | None = None,
    image_size: int | None = None,
    download: bool = False,
    **settings: Any,
) -> TeacherReport:
    """Load a teacher and check it.

    Args:
        spec: as `load_network` takes it.
        overrides: data, threat and, for a file of weights, model: ["--data", "cifar10", "--threat", "linf:8/255"]. A
            run has its own data and threat.
        student: a specification that names its own network, such as run:DIR@best.
        split: whose images.
        sha256: as `load_network` takes it.
        image_size: as `load_network` takes it.
        download: as `load_network` takes it.
        settings: num_images, seed and seconds of `check_teacher`.

    Raises:
        RobustillError: the teacher, the student, the data or a setting that cannot be.
    """
    values: dict[str, Any] = {}
    if spec.startswith("run:"):
        own = RunDirectory.existing(spec.removeprefix("run:").partition("@")[0]).config()
        values = {key: own[key] for key in ("data", "threat", "compute") if key in own}
    values = apply_overrides(values, overrides)
    for key in values:
        if key not in ("data", "threat", "model", "compute"):
            raise ConfigError(
                f"--{key} has no effect on a check: expected settings of data, threat, model, compute only"
            )
    for key in ("data", "threat"):
        if key not in values:
            raise ConfigError(f"{spec} says nothing of its images and threat: give --{key} too")
    config = make_config(values)
    device = configure_process(config.compute)
    dataset = load_split(config, split)
    shape = Shape.of(dataset)
    named = "model" in values
    teacher = load_network(
        spec,
        shape=shape,
        name=config.model.name if named else None,
        options={**config.model.options, "mean": config.model.mean, "std": config.model.std} if named else None,
        sha256=sha256,
        image_size=image_size,
        download=download,
    )
    return check_teacher(
        teacher,
        dataset,
        threat=config.threat.build(),
        student=None if student is None else load_network(student, shape=shape),
        device=device,
        **settings,
    )


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
) -> TeacherReport:
    """Clean and robust accuracy, calibration and confidence of a teacher on some images, in a random order.

    Args:
        teacher: the network.
        dataset: whose images.
        threat: of the attack, PGD-20.
        student: to compare top labels with.
        num_images: at most so many, class-balanced.
        seed: of the choice, the order and the attack's starts.
        seconds: no new batch is begun that would end later; None looks at all of `num_images`.
        device: where to compute.

    Raises:
        ModelError: a network does not fit the images.
        DataError: more images wanted than there are.
    """
    ids = stratified_subset(dataset.labels, min(num_images, len(dataset)), seed=seed)
    ids = ids[torch.randperm(len(ids), generator=generator(seed, "teacher check", "order"))]
    device = torch.device(device)
    networks = [place(each.module, device) for each in (teacher, student) if each is not None]
    for network, each in zip(networks, (teacher, student), strict=False):
        few = dataset.read(ids[:2]).to(device).float() / 255
        check_network(network, few, dataset.num_classes, "" if each is None else each.spec)
    clean: list[list[Tensor]] = [[] for _ in networks]
    adversarial: list[list[Tensor]] = [[] for _ in networks]
    done, size, began = 0, _FIRST, time.monotonic()
    with evaluating(*networks), frozen(*networks):
        while done < len(ids) and size > 0:
            part = ids[done : done + size]
            x, x_adv = _attacked(networks[0], dataset, part, threat, seed, device)
            with torch.no_grad():
                for network, on_clean, on_adversarial in zip(networks, clean, adversarial, strict=True):
                    on_clean.append(network(x).float().softmax(dim=1).cpu())
                    on_adversarial.append(network(x_adv).float().softmax(dim=1).cpu())
            done += len(part)
            size = _LARGEST
            if seconds is not None:
                spent = time.monotonic() - began
                size = min(_LARGEST, int((seconds - spent) * done / spent))
    return _report(
        teacher,
        dataset,
        ids[:done],
        [torch.cat(each).double().numpy() for each in clean],
        [torch.cat(each).double().numpy() for each in adversarial],
        f"{dataset.name} {dataset.split}, {threat}, PGD {STEPS} steps, seed {seed}",
    )


def _attacked(
    network: nn.Module, dataset: Dataset, part: Tensor, threat: Threat, seed: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The images with these ids, and what PGD makes of them; their starts depend on (seed, id) alone."""
    x = (dataset.read(part).to(device).float() / 255).contiguous(memory_format=torch.channels_last)
    y = dataset.labels[part].to(device)
    starts = [generator(seed, "teacher check", int(each), device=device) for each in part]
    x_adv = pgd(lambda z: ce(network(z), y), x, threat, steps=STEPS, step_size=threat.eps / 4, generator=starts)
    return x, x_adv


def _report(
    teacher: LoadedNetwork,
    dataset: Dataset,
    ids: Tensor,
    clean: list[NDArray[Any]],
    adversarial: list[NDArray[Any]],
    conditions: str,
) -> TeacherReport:
    labels = dataset.labels[ids].cpu().numpy()
    right = clean[0].argmax(axis=1) == labels
    robust = right & (adversarial[0].argmax(axis=1) == labels)
    agreement: list[float | None] = [None, None]
    if len(clean) > 1:
        agreement = [float(np.mean(a.argmax(axis=1) == b.argmax(axis=1))) for a, b in (clean, adversarial)]
    return TeacherReport(
        teacher=teacher,
        parameters=sum(parameter.numel() for parameter in teacher.module.parameters()),
        conditions=conditions,
        images=len(ids),
        of_images=len(dataset),
        clean_accuracy=float(right.mean()),
        robust_accuracy=float(robust.mean()),
        ece_clean=ece(clean[0], labels),
        ece_adversarial=ece(adversarial[0], labels),
        confidence_clean=float(clean[0].max(axis=1).mean()),
        confidence_adversarial=float(adversarial[0].max(axis=1).mean()),
        agreement_clean=agreement[0],
        agreement_adversarial=agreement[1],
    )
