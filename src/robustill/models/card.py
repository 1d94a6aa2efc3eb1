"""The model card of an exported network: its threat, classes and evaluations as text, as metadata and as JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from robustill.core.errors import RobustillError, RunError, printable
from robustill.runs.records import FIXED_ATTACK, attacked_kind, read_summary
from robustill.threat import Threat

_METRICS = {
    "clean_accuracy": ("accuracy", "clean accuracy"),
    "robust_accuracy": ("accuracy", "robust accuracy"),
    "ece_clean": ("ece", "ECE, clean images"),
    "ece_adversarial": ("ece", "ECE, adversarial images"),
    "ece_pgd": ("ece", f"ECE, {FIXED_ATTACK} images"),
}
"""Type and name of each number of an evaluation in the metadata."""
_ECES = ("ece_clean", "ece_adversarial", "ece_pgd")
"""The names of the calibration errors in the summary of an evaluation; the last is not in all of them."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The temperature that the logits of an exported network are divided by, and its effect on the ECE.

    Args:
        temperature: above 0; above 1 if the network is too confident.
        images: the images that it was fitted on, as text.
        ece: of these images, before and after.
        evaluations: the ECEs after, by the name of an evaluation's folder and by their names in its summary.
    """

    temperature: float
    images: str
    ece: tuple[float, float]
    evaluations: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """How the int8 model of a network was calibrated, and how its answers differ from those in float32.

    Args:
        calibration: the number of images that its ranges were measured on and where they come from, as text.
        num_compared: number of other held-out images, on which both were compared.
        agreement: the share of them on which both predict the same class.
        largest_change: of a logit.
        largest_logit: in float32, as a scale for that.
        clean_accuracy: of both on these images, first in float32.
        num_bytes: of both models without their model cards, first in float32.
    """

    calibration: str
    num_compared: int
    agreement: float
    largest_change: float
    largest_logit: float
    clean_accuracy: tuple[float, float]
    num_bytes: tuple[int, int]

    def __str__(self) -> str:
        """Return the facts in one line."""
        before, after = self.clean_accuracy
        return (
            f"calibrated on {self.calibration}; on {self.num_compared} others it predicts as float32 does on "
            f"{self.agreement:.3f} of them, a logit changes by {self.largest_change:.3g} at most (the largest is "
            f"{self.largest_logit:.3g}), and the clean accuracy is {after:.3f} (float32 {before:.3f})"
        )


@dataclass(frozen=True, kw_only=True)
class CardEvaluation:
    """One evaluation on a model card.

    Args:
        data: name of the data set.
        split: of the images.
        num_images: number of images.
        of_images: number of images of the split.
        norm: of the threat.
        eps: of the threat.
        suite: the name of the attacks; "standard" is AutoAttack.
        clean_accuracy: of all images.
        robust_accuracy: under the strongest attack on each image.
        robust_low: the lower end of its 95 % interval.
        robust_high: the upper end of it.
        ece_clean: the expected calibration error of the clean images.
        ece_adversarial: that of the adversarial images which the suite kept.
        date: year-month-day.
        ece_pgd: that of the images of one fixed attack; None if it was not run.
        ece_before: all of them before a calibration, by their names; None without one. It is on the card alone, not in
            config.json.
    """

    data: str
    split: str
    num_images: int
    of_images: int
    norm: str
    eps: float
    suite: str
    clean_accuracy: float
    robust_accuracy: float
    robust_low: float
    robust_high: float
    ece_clean: float
    ece_adversarial: float
    date: str
    ece_pgd: float | None = None
    ece_before: Mapping[str, float] | None = None

    @property
    def threat(self) -> Threat:
        """The threat of the attacks."""
        return Threat(norm=self.norm, eps=self.eps)  # type: ignore[arg-type]

    @property
    def attack(self) -> str:
        """The attacks as papers name them."""
        return "AutoAttack (standard)" if self.suite == "standard" else self.suite

    def to_json(self) -> dict[str, Any]:
        """Return the values by their names."""
        of_fixed_attack = {} if self.ece_pgd is None else {"ece_pgd": self.ece_pgd}
        return {name: getattr(self, name) for name in _KINDS} | of_fixed_attack

    @classmethod
    def from_json(cls, content: Any) -> CardEvaluation:
        """Read what `to_json` returned, also from a file of somebody else.

        Raises:
            ValueError: a value is missing or of another type.
        """
        values: dict[str, Any] = {}
        expected = dict(_KINDS)
        if isinstance(content, dict) and "ece_pgd" in content:
            expected["ece_pgd"] = _TYPES["float"]
        for name, kinds in expected.items():
            value = content.get(name) if isinstance(content, dict) else None
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"{name} of an evaluation is missing or damaged")
            values[name] = value
        found = cls(**values)
        _ = found.threat  # Refuses an impossible norm or radius.
        return found


_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
_KINDS = {each.name: _TYPES[str(each.type)] for each in fields(CardEvaluation) if str(each.type) in _TYPES}
"""The values that every evaluation in config.json has, with their types."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model card says beside the network itself.

    Args:
        threat: the threat that the network was trained against; None if that is unknown or it was trained without.
        classes: the names of the K classes; empty if they are unknown.
        evaluations: the evaluations of these weights.
    """

    threat: Threat | None = None
    classes: tuple[str, ...] = ()
    evaluations: tuple[CardEvaluation, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what config.json holds of the card."""
        threat = None if self.threat is None else {"norm": self.threat.norm, "eps": self.threat.eps}
        return {
            "classes": list(self.classes),
            "threat": threat,
            "evaluations": [each.to_json() for each in self.evaluations],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], num_classes: int) -> Card:
        """Read the card in a config.json, which may be of somebody else; what it does not hold is left empty.

        Raises:
            ValueError: a value is damaged.
        """
        classes, threat = content.get("classes") or [], content.get("threat")
        evaluations = content.get("evaluations") or []
        if not isinstance(classes, list) or not all(isinstance(each, str) for each in classes):
            raise ValueError("the classes are not a list of names")
        if classes and len(classes) != num_classes:
            raise ValueError(f"{len(classes)} names of classes for {num_classes} classes")
        if threat is not None and (not isinstance(threat, dict) or set(threat) != {"norm", "eps"}):
            raise ValueError("the threat is not a norm and a radius")
        if not isinstance(evaluations, list):
            raise ValueError("the evaluations are not a list")
        try:
            return cls(
                threat=None if threat is None else Threat(**threat),
                classes=tuple(classes),
                evaluations=tuple(map(CardEvaluation.from_json, evaluations)),
            )
        except RobustillError as error:
            raise ValueError(str(error)) from None


def evaluated_checkpoints(folder: Path) -> list[str]:
    """Return the names of the checkpoints that a folder of evaluations has records of."""
    names = []
    for each in sorted(folder.glob("*")):
        with contextlib.suppress(RunError, KeyError):
            names.append(printable(str(read_summary(each)["conditions"]["checkpoint"])))
    return list(dict.fromkeys(names))


def recorded_evaluations(
    folder: Path, weights_sha256: str, calibration: Calibration | None
) -> Iterator[CardEvaluation]:
    """Yield the evaluations of these weights in a folder of evaluations, with their ECE after the calibration."""
    for each in sorted(folder.glob("*")):
        # An evaluation that is unfinished or damaged is left out; `robustill doctor` reports it.
        with contextlib.suppress(RunError, KeyError, TypeError, ValueError):
            summary = read_summary(each)
            results, conditions = summary["results"], summary["conditions"]
            if conditions.get("checkpoint_sha256") != weights_sha256:
                continue
            low, high = results["robust_accuracy_interval"]
            before = {name: results[name] for name in _ECES if name in results}
            after = None if calibration is None else calibration.evaluations.get(each.name)
            yield CardEvaluation(
                data=conditions["data"],
                split=conditions["split"],
                num_images=results["num_images"],
                of_images=conditions["of_images"],
                norm=conditions["threat"]["norm"],
                eps=conditions["threat"]["eps"],
                suite=conditions["suite"]["name"],
                clean_accuracy=results["clean_accuracy"],
                robust_accuracy=results["robust_accuracy"],
                robust_low=low,
                robust_high=high,
                **(before if after is None else after),
                date=conditions["date"],
                ece_before=None if after is None else before,
            )


def describe_calibration(calibration: Calibration | None) -> list[str]:
    """Return the line of a card about its temperature."""
    if calibration is None:
        return []
    before, after = calibration.ece
    return [
        f"Calibrated: its logits are divided by the temperature {calibration.temperature:.4g}, fitted on "
        f"{calibration.images}, whose ECE was {before:.3f} and is {after:.3f}. That changes no prediction, so the "
        "accuracies are those of the network as it was trained."
    ]


def describe_quantisation(quantisation: Quantisation | None) -> list[str]:
    """Return the line of a card about its int8 weights and activations."""
    if quantisation is None:
        return []
    before, after = quantisation.num_bytes
    return [
        "Quantised to int8 (QDQ, weights QInt8 with a scale for each channel, activations QUInt8): "
        f"{quantisation}. Without this card it has {after:,} bytes, in float32 {before:,}. Its robust accuracy is not "
        "that of the network in float32: attack this file."
    ]


def evaluations_table(evaluations: Sequence[CardEvaluation]) -> list[str]:
    """Return one row for each evaluation."""
    if not evaluations:
        return ["Not evaluated yet."]
    kind = attacked_kind(each.to_json() for each in evaluations)
    attacked = FIXED_ATTACK if kind == "pgd" else "adversarial"
    header = ["images", "number", "threat", "suite", "clean", "robust, 95 %", "ECE clean", f"ECE {attacked}", "date"]
    rows = [_row(each, ("ece_clean", f"ece_{kind}")) for each in evaluations]
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *rows]


def _row(each: CardEvaluation, shown: Sequence[str]) -> str:
    eces = [f"{getattr(each, name):.3f}" for name in shown]
    if each.ece_before is not None:
        before = [each.ece_before[name] for name in shown]
        eces = [f"{first:.3f}, calibrated {after}" for first, after in zip(before, eces, strict=True)]
    cells = [
        f"{each.data} {each.split}",
        f"{each.num_images} of {each.of_images}",
        str(each.threat),
        each.suite,
        f"{each.clean_accuracy:.3f}",
        f"{each.robust_accuracy:.3f} [{each.robust_low:.3f}, {each.robust_high:.3f}]",
        *eces,
        each.date,
    ]
    return f"| {' | '.join(map(printable, cells))} |"


def metadata(name: str, evaluations: Sequence[CardEvaluation]) -> str:
    """Return the YAML header of a model card, in the format of the Hugging Face hub."""
    content: dict[str, Any] = {
        "library_name": "robustill",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "robustill"],
    }
    if evaluations:
        content["datasets"] = list(dict.fromkeys(each.data for each in evaluations))
        content["model-index"] = [{"name": name, "results": [_result(each) for each in evaluations]}]
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n"


def _result(each: CardEvaluation) -> dict[str, Any]:
    """Return one evaluation as an entry of a model-index."""
    conditions = {"threat": str(each.threat), "attack": each.attack}
    ece_attacked = f"ece_{attacked_kind([each.to_json()])}"
    metrics = []
    for key in ("clean_accuracy", "robust_accuracy", "ece_clean", ece_attacked):
        kind, name = _METRICS[key]
        metric: dict[str, Any] = {"type": kind, "value": round(getattr(each, key), 4), "name": name}
        if key == "ece_pgd":
            metric["name"] = f"{name}, {each.threat}"
            metric["args"] = {**conditions, "attack": FIXED_ATTACK}
        elif key in ("robust_accuracy", "ece_adversarial"):
            metric["name"] = f"{name}, {each.attack}, {each.threat}"
            # A copy, so that YAML writes no reference.
            metric["args"] = dict(conditions)
        metrics.append(metric)
    arguments = {"num_images": each.num_images, "of_images": each.of_images, **conditions}
    return {
        "task": {"type": "image-classification"},
        "dataset": {"type": each.data, "name": each.data, "split": each.split, "args": arguments},
        "metrics": metrics,
    }
