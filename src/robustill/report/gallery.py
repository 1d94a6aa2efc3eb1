"""A dozen images of an evaluation: clean, adversarial, and what was added to one to get the other."""

from __future__ import annotations

import base64
import io
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustill.core.formatting import percent
from robustill.runs.records import Records

_MOST = 12
_LARGEST = 160
"""Pixels; larger images are scaled down on the page."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image of the grid, ready for the page."""

    index: int
    label: str
    outcome: str
    clean: str
    """PNG as data URI"""
    adversarial: str
    perturbation: str
    clean_caption: str
    """prediction and confidence"""
    adversarial_caption: str
    size: tuple[int, int]
    """width and height of the PNGs"""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The grid of one evaluation."""

    pictures: list[Picture]
    factor: float
    """by which perturbations are amplified around middle grey"""
    scaled_down: bool


def gallery(records: Records) -> Gallery | None:
    """A dozen of the pictures that an evaluation kept, of as many classes as there are; None where it kept none."""
    index, clean, adversarial = records.example_index, records.example_clean, records.example_adversarial
    if index is None or clean is None or adversarial is None or not len(index):
        return None
    row_of = {int(each): row for row, each in enumerate(records.index)}
    rows = [row_of[int(each)] for each in index]
    chosen = sorted(in_turn([records.label[row] for row in rows])[:_MOST])
    factor = _amplification(adversarial[chosen] - clean[chosen])
    pictures = [
        _picture(records, rows[i], clean[i], adversarial[i], 0.5 + factor * (adversarial[i] - clean[i])) for i in chosen
    ]
    return Gallery(pictures=pictures, factor=factor, scaled_down=max(clean.shape[2:]) > _LARGEST)


def in_turn(kinds: Sequence[Hashable]) -> list[int]:
    """Positions in rounds: first one of each kind, then another one of each that has more, and so on.

    Example:
        >>> in_turn("aaab")
        [0, 3, 1, 2]
    """
    seen: dict[Hashable, int] = {}
    rounds = []
    for position, kind in enumerate(kinds):
        seen[kind] = seen.get(kind, 0) + 1
        rounds.append((seen[kind], position))
    return [position for _, position in sorted(rounds)]


def amplification(records: Records) -> float:
    """The factor by which no kept perturbation leaves [0,1] around middle grey."""
    assert records.example_clean is not None
    assert records.example_adversarial is not None
    return _amplification(records.example_adversarial - records.example_clean)


def _amplification(change: Any) -> float:
    return _rounded_down(0.5 / max(float(np.abs(change).max()), 1e-6))


def outcome(records: Records, row: int) -> str:
    """Of one image: "held", "fooled" or "wrong without attack"."""
    if not records.clean_correct[row]:
        return "wrong without attack"
    return "held" if records.robust[row] else "fooled"


def shown_size(image: Any) -> tuple[int, int]:
    """Width and height of the PNG of an image [C,H,W]."""
    H, W = image.shape[1:]
    scale = min(1.0, _LARGEST / max(H, W))
    return round(W * scale), round(H * scale)


def _picture(records: Records, row: int, clean: Any, adversarial: Any, change: Any) -> Picture:
    return Picture(
        index=int(records.index[row]),
        label=records.classes[records.label[row]],
        outcome=outcome(records, row),
        clean=png_uri(clean),
        adversarial=png_uri(adversarial),
        perturbation=png_uri(change),
        clean_caption=_said(records.classes, records.clean_probabilities[row]),
        adversarial_caption=_said(records.classes, records.adversarial_probabilities[row]),
        size=shown_size(clean),
    )


def _said(classes: tuple[str, ...], probabilities: Any) -> str:
    return f"{classes[probabilities.argmax()]}, {percent(float(probabilities.max()))}"


def png_uri(image: Any) -> str:
    """A data URI of [C,H,W] in [0,1]: grey for one channel, colour for three, the mean over channels otherwise."""
    from PIL import Image

    levels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    pixels = levels.transpose(1, 2, 0) if len(levels) == 3 else levels.mean(axis=0).astype(np.uint8)
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LARGEST, _LARGEST))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _rounded_down(factor: float) -> float:
    """To two digits that are easily read: 7.97 is 7.5, 63.2 is 60."""
    step = 10.0 ** np.floor(np.log10(factor)) / 2
    return float(np.floor(factor / step) * step)
