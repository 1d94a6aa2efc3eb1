"""Accuracy on the held-out part, the only number that chooses anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustill.attacks import pgd
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
    """Clean accuracy, and accuracy under one run of PGD, from the same starts at every call.

    Args:
        model: images in [0,1] to logits.
        images: uint8 [N,C,H,W].
        labels: int64 [N].
        threat: of the attack.
        steps: of PGD.
        step_size: of PGD.
        seed: of its random starts.
        precision: of the attack, "fp32" or "bf16"; predictions are always float32.
        group: processes that share the images; each gets the same shares.

    Returns:
        Two shares, in [0,1]; an image that is wrong on clean is not robust.
    """
    right_count = torch.zeros(2, dtype=torch.int64, device=images.device)
    with evaluating(model), frozen(model):
        for number, (part, y) in enumerate(zip(torch.split(images, 500), torch.split(labels, 500), strict=True)):
            if number % group.world_size != group.rank:
                continue
            x = (part.float() / 255).contiguous(memory_format=torch.channels_last)
            start = generator(seed, "validation", number, device=images.device)
            with torch.autocast(images.device.type, torch.bfloat16, precision == "bf16"):
                x_adv = pgd(
                    lambda z, y=y: ce(model(z), y),  # type: ignore[misc]
                    x,
                    threat,
                    steps=steps,
                    step_size=step_size,
                    generator=start,
                )
            # What is right is decided in float32, whatever the attack computed in.
            with torch.no_grad(), full_float32():
                right = model(x).argmax(dim=1) == y
                robust = right & (model(x_adv).argmax(dim=1) == y)
                right_count += torch.stack([right.sum(), robust.sum()])
    clean, both = group.all_reduce(right_count).tolist()
    return clean / len(labels), both / len(labels)


def validation_metrics(
    networks: Mapping[str, nn.Module], held_out: tuple[Tensor, Tensor], config: Config, group: ProcessGroup
) -> dict[str, float]:
    """What belongs into an epoch's line.

    Args:
        networks: by the prefix of their keys, such as "" and "ema_".
        held_out: images and labels.
        config: of the run, that says how they are attacked.
        group: processes that share the images.
    """
    settings, threat = config.validation, config.threat.build()
    line: dict[str, float] = {}
    for prefix, network in networks.items():
        clean, robust = validation_accuracy(
            network,
            *held_out,
            threat,
            steps=settings.steps,
            step_size=settings.length(threat.eps),
            seed=config.seed,
            precision=config.compute.precision,
            group=group,
        )
        line |= {f"{prefix}validation_clean_accuracy": clean, f"{prefix}validation_robust_accuracy": robust}
    return line
