"""A small robust student, its teacher, and the images that they have never seen: something to attack at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robustill.data import load
from robustill.models.loading import load_network
from robustill.threat import Threat

FOLDER = Path(__file__).parent / "example_networks"
"""student and teacher, as `robustill export` wrote them, with their cards; docs/results.md has the commands."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """Two networks and images to try anything on.

    Args:
        student: a ResNet-8 of width 16, trained by AKD; images [B,1,8,8] in [0,1] to logits [B,10].
        teacher: a ResNet-8 of width 32, weakly adversarially trained and early-stopped; as the student.
        x: the 500 test images of digits, float32 [500,1,8,8] in [0,1].
        y: their labels, int64 [500].
        threat: what the student was trained against: l∞, 0.15.
    """

    student: nn.Module
    teacher: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat


def load_example() -> Example:
    """A real robust student with its teacher; needs neither a file nor a network.

    Example:
        >>> example = load_example()
        >>> print(example.threat)
        linf:0.15
        >>> (example.student(example.x).argmax(dim=1) == example.y).float().mean() > 0.98
        tensor(True)
    """
    images = load("digits", split="test")
    x = images.read(torch.arange(len(images))).float() / 255
    student, teacher = (load_network(f"hf:{FOLDER / name}").module for name in ("student", "teacher"))
    return Example(student=student, teacher=teacher, x=x, y=images.labels, threat=Threat(norm="linf", eps=0.15))
