"""The example that comes with the package: a small robust student, its teacher, and test images to attack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robustill.data import load
from robustill.models.loading import load_network
from robustill.threat import Threat

FOLDER = Path(__file__).parent / "example_networks"
"""The networks as `robustill export` wrote them, with their model cards; benchmarks/LOG.md has the commands."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """Two networks, test images and the threat that the student was trained against.

    Args:
        student: a ResNet-8 of width 16, trained by AKD; images [B,1,8,8] in [0,1] to logits [B,10].
        teacher: a ResNet-8 of width 32, adversarially trained with a weak attack and stopped early; same shapes.
        x: the 500 test images of digits, float32 [500,1,8,8] in [0,1].
        y: their labels, int64 [500].
        threat: l∞ with eps 0.15.
    """

    student: nn.Module
    teacher: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat


def load_example() -> Example:
    """Load a trained robust student and its teacher from the package; nothing is downloaded.

    Example:
        >>> example = load_example()
        >>> print(example.threat)
        linf:0.15
        >>> (example.student(example.x).argmax(dim=1) == example.y).float().mean() > 0.98
        tensor(True)
    """
    digits = load("digits", split="test")
    x = digits.read(torch.arange(len(digits))).float() / 255
    student = load_network(f"hf:{FOLDER / 'student'}").module
    teacher = load_network(f"hf:{FOLDER / 'teacher'}").module
    return Example(student=student, teacher=teacher, x=x, y=digits.labels, threat=Threat(norm="linf", eps=0.15))
