"""One evaluation as the report reads it: its records, its numbers and the conditions under which they hold."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np

from robustill.analysis.method_names import average_of
from robustill.analysis.summary import summary
from robustill.core.formatting import radius
from robustill.runs.records import Records


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of a network: a folder of evaluations/, e.g. test-best-pgd."""

    name: str
    records: Records

    @cached_property
    def results(self) -> dict[str, Any]:
        """The numbers, computed from the records; those of summary.json are not used."""
        return summary(self.records)

    @property
    def conditions(self) -> dict[str, Any]:
        """The conditions under which the numbers hold."""
        return self.records.conditions

    @property
    def split(self) -> str:
        """The split of the images, e.g. "test"."""
        return str(self.conditions.get("split") or self.name.partition("-")[0])

    @property
    def checkpoint(self) -> str:
        """The checkpoint of the weights, e.g. "best"; for a network without a run, the name of its file."""
        return str(self.conditions.get("checkpoint") or self.name.partition("-")[2] or self.name)

    @property
    def average(self) -> str | None:
        """The kind of average that the weights are, "ema" or "swa"; None if they are none."""
        return average_of(self.checkpoint)

    @property
    def suite(self) -> dict[str, Any]:
        """Name and stages of the suite; empty if they are not recorded."""
        suite = self.conditions.get("suite")
        return suite if isinstance(suite, dict) else {}

    @property
    def attack(self) -> str:
        """The suite's name, or its stages if the name is not recorded."""
        return str(self.suite.get("name") or " + ".join(self.records.stages) or "no attack")

    @property
    def attack_settings(self) -> str:
        """The suite's name with the restarts and steps of each stage."""
        stages = self.suite.get("stages")
        if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
            return self.attack
        parts = []
        for stage in stages:
            part = str(stage.get("name"))
            if "restarts" in stage and "steps" in stage:
                part += f" {stage['restarts']}×{stage['steps']} steps"
            parts.append(part)
        return f"{self.attack} ({', '.join(parts)})"

    @property
    def norm(self) -> str:
        """The norm of the threat; "unknown norm" if it is not recorded."""
        threat = self.conditions.get("threat")
        return str(threat.get("norm")) if isinstance(threat, dict) else "unknown norm"

    @property
    def eps(self) -> float | None:
        """The radius of the threat; None if it is not recorded."""
        threat = self.conditions.get("threat")
        value = threat.get("eps") if isinstance(threat, dict) else None
        return float(value) if is_number(value) else None

    @property
    def threat(self) -> str | None:
        """Norm and radius as text; None if they are not recorded."""
        return None if self.eps is None else f"{self.norm}, eps {radius(self.norm, self.eps)}"

    @property
    def of_images(self) -> int | None:
        """Number of images in the split; None if it is not recorded."""
        value = self.conditions.get("of_images")
        return value if isinstance(value, int) else None

    @cached_property
    def kind(self) -> tuple[Any, ...]:
        """The images, the threat and the attack: evaluations of one kind may stand side by side."""
        data = str(self.conditions.get("data")), str(self.conditions.get("data_fingerprint"))
        attack = self.threat, self.attack_settings, self.records.stages
        return self.split, *data, *attack, np.sort(self.records.index).tobytes()

    @property
    def is_subset(self) -> bool:
        """Whether the split has more images than were evaluated."""
        return self.of_images is not None and len(self.records) < self.of_images

    @property
    def is_first(self) -> bool:
        """Whether a subset is the first images of the split, as papers often take them, and not class-balanced."""
        return self.is_subset and str(self.conditions.get("selection", "")).startswith("first ")

    @property
    def images(self) -> str:
        """Number and split of the images as text, which calls a subset a subset."""
        text = f"{len(self.records)} {self.split} images"
        if self.is_first:
            return f"the first {text}"
        return f"a subset of {text}" if self.is_subset else text


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value of a file is a finite number that fits in a float."""
    # An int of hundreds of digits does not fit in a float. Written so that nan fails too.
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
