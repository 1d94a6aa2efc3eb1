"""Accuracy on the validation images, by which the best epoch is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustill.attacks.pgd import run_pgd
from robustill.core.contexts import evaluating, frozen, full_float32
from robustill.core.distributed import SINGLE_PROCESS, ProcessGroup
from robustill.core.randomness import generator
from robustill.losses import ce
from robustill.threat import Threat

if TYPE_CHECKING:
    from robustill.config.schema import Config


def validation_accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    seed: int,
    precision: str = "fp32",
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[float, float]:
    """Return clean accuracy and robust accuracy under one run of PGD, which starts from the same points in every call.

    Args:
        model: a network from images in [0,1] to logits.
        images: uint8 [N,C,H,W].
        labels: int64 [N].
        threat: the images that the attack may choose.
        steps: number of PGD steps.
        step_size: length of a PGD step.
        seed: seed of the random starts.
        precision: "fp32" or "bf16", of the attack; predictions are always float32.
        group: processes that share the images; each returns the accuracies over all images.

    Returns:
        Clean and robust accuracy in [0,1]; an image that is misclassified unperturbed is not robust.
    """
    num_correct = torch.zeros(2, dtype=torch.int64, device=images.device)
    with evaluating(model), frozen(model):
        for number, (part, y) in enumerate(zip(torch.split(images, 500), torch.split(labels, 500), strict=True)):
            if number % group.world_size != group.rank:
                continue
            x = (part.float() / 255).contiguous(memory_format=torch.channels_last)
            start = generator(seed, "validation", number, device=images.device)
            with torch.autocast(images.device.type, torch.bfloat16, precision == "bf16"):
                x_adv = run_pgd(
                    lambda z, y=y: ce(model(z), y),  # type: ignore[misc]
                    x,
                    threat,
                    steps=steps,
                    step_size=step_size,
                    generator=start,
                )
            # Predictions are float32, whatever the precision of the attack.
            with torch.no_grad(), full_float32():
                correct = _is_correct(model(x), y)
                robust = correct & _is_correct(model(x_adv), y)
                num_correct += torch.stack([correct.sum(), robust.sum()])
    num_clean, num_robust = group.all_reduce(num_correct).tolist()
    return num_clean / len(labels), num_robust / len(labels)


def _is_correct(logits: Tensor, y: Tensor) -> Tensor:
    """Return where the prediction is the label, bool [B]; NaN or infinite logits are wrong."""
    return (logits.argmax(dim=1) == y) & logits.isfinite().all(dim=1)


def validation_metrics(
    networks: Mapping[str, nn.Module], images_and_labels: tuple[Tensor, Tensor], config: Config, group: ProcessGroup
) -> dict[str, float]:
    """Return the validation accuracies of several networks, by their names in an epoch's line of metrics.

    Args:
        networks: the networks by the prefix of their names, such as "" and "ema_".
        images_and_labels: uint8 images [N,C,H,W] and labels [N].
        config: the configuration of the run, which says how they are attacked.
        group: processes that share the images.
    """
    settings, threat = config.validation, config.threat.build()
    line: dict[str, float] = {}
    for prefix, network in networks.items():
        clean, robust = validation_accuracy(
            network,
            *images_and_labels,
            threat,
            steps=settings.steps,
            step_size=settings.length(threat.eps),
            seed=config.seed,
            precision=config.compute.precision,
            group=group,
        )
        line[f"{prefix}validation_clean_accuracy"] = clean
        line[f"{prefix}validation_robust_accuracy"] = robust
    return line
