"""A grid of a dozen images of an evaluation: clean, adversarial, and the amplified perturbation."""

from __future__ import annotations

import base64
import io
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustill.core.formatting import percent
from robustill.runs.records import Records

MAX_PICTURES = 12
"""Maximum number of images in the grid of one evaluation."""

_MAX_SIDE = 160
"""Pixels; larger images are scaled down on the page."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image of the grid, ready for the page."""

    index: int
    label: str
    outcome: str
    clean: str
    """PNG as a data URI"""
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
    """amplification of the perturbations around middle grey"""
    scaled_down: bool


def make_gallery(records: Records) -> Gallery | None:
    """Select a dozen of an evaluation's example images, from as many classes as possible; None if it has none."""
    index, clean, adversarial = records.example_index, records.example_clean, records.example_adversarial
    if index is None or clean is None or adversarial is None or not len(index):
        return None
    row_of = {int(each): row for row, each in enumerate(records.index)}
    rows = [row_of[int(each)] for each in index]
    selected = sorted(round_robin([records.label[row] for row in rows])[:MAX_PICTURES])
    factor = _amplification(adversarial[selected] - clean[selected])
    pictures = [
        _picture(records, rows[i], clean[i], adversarial[i], 0.5 + factor * (adversarial[i] - clean[i]))
        for i in selected
    ]
    return Gallery(pictures=pictures, factor=factor, scaled_down=max(clean.shape[2:]) > _MAX_SIDE)


def round_robin(kinds: Sequence[Hashable]) -> list[int]:
    """Return the positions in rounds: first one of each kind, then a second one of each kind that has more, and so on.

    Example:
        >>> round_robin("aaab")
        [0, 3, 1, 2]
    """
    counts: dict[Hashable, int] = {}
    rounds = []
    for position, kind in enumerate(kinds):
        counts[kind] = counts.get(kind, 0) + 1
        rounds.append((counts[kind], position))
    return [position for _, position in sorted(rounds)]


def amplification(records: Records) -> float:
    """Return a factor that amplifies every example perturbation around middle grey without leaving [0,1]."""
    assert records.example_clean is not None
    assert records.example_adversarial is not None
    return _amplification(records.example_adversarial - records.example_clean)


def _amplification(perturbation: Any) -> float:
    return _round_down(0.5 / max(float(np.abs(perturbation).max()), 1e-6))


def image_outcome(records: Records, row: int) -> str:
    """Return the outcome of one image: "robust", "fooled" or "wrong without attack"."""
    if not records.clean_correct[row]:
        return "wrong without attack"
    return "robust" if records.robust[row] else "fooled"


def png_size(image: Any) -> tuple[int, int]:
    """Return the width and height of the PNG of an image [C,H,W]."""
    H, W = image.shape[1:]
    scale = min(1.0, _MAX_SIDE / max(H, W))
    return round(W * scale), round(H * scale)


def _picture(records: Records, row: int, clean: Any, adversarial: Any, perturbation: Any) -> Picture:
    return Picture(
        index=int(records.index[row]),
        label=records.classes[records.label[row]],
        outcome=image_outcome(records, row),
        clean=png_uri(clean),
        adversarial=png_uri(adversarial),
        perturbation=png_uri(perturbation),
        clean_caption=_caption(records.classes, records.clean_probabilities[row]),
        adversarial_caption=_caption(records.classes, records.adversarial_probabilities[row]),
        size=png_size(clean),
    )


def _caption(classes: tuple[str, ...], probabilities: Any) -> str:
    return f"{classes[probabilities.argmax()]}, {percent(float(probabilities.max()))}"


def png_uri(image: Any) -> str:
    """Encode an image as a PNG data URI.

    Args:
        image: [C,H,W] in [0,1]; one channel gives grey, three give colour, and any other number their mean in grey.
    """
    from PIL import Image

    levels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    pixels = levels.transpose(1, 2, 0) if len(levels) == 3 else levels.mean(axis=0).astype(np.uint8)
    picture = Image.fromarray(pixels)
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _round_down(factor: float) -> float:
    """Round down to two digits that are easy to read: 7.97 becomes 7.5 and 63.2 becomes 60."""
    step = 10.0 ** np.floor(np.log10(factor)) / 2
    return float(np.floor(factor / step) * step)
