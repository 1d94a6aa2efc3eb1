"""What a run says about itself beside its numbers: the network, the split, the teachers, the machine."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch

from robustill import runtime
from robustill.config import Config
from robustill.data.extra import MixedLoader
from robustill.errors import RunError
from robustill.heldout import held_out_accuracy
from robustill.loading import LoadedNetwork
from robustill.prepare import Pieces
from robustill.run_directory import RunDirectory

# Enough to see a teacher that does not know the task, or was loaded with the wrong normalisation.
_SAMPLE = 256


def describe(directory: RunDirectory, config: Config, pieces: Pieces, *, shown: bool) -> None:
    """Write model.json, split.json, teachers.json and environment.json, or check that a resumed run still agrees.

    Raises:
        RunError: the images, the split or a teacher's weights are not those that the run began with.
    """
    split = pieces.split
    images = {
        "fingerprint": pieces.dataset.fingerprint,
        "images": len(pieces.dataset),
        "train": split.train.tolist() if len(split.train) + len(split.validation) < len(pieces.dataset) else "the rest",
        "validation": split.validation.tolist(),
        "flipped": split.flipped.tolist(),
    }
    if len(split.left_out):
        images["left_out"] = split.left_out.tolist()
    if isinstance(pieces.loader, MixedLoader):
        extra = pieces.loader.extra
        images["extra"] = {"images": len(extra), "fingerprint": extra.fingerprint}
    # All comparisons come before the first write.
    known_images, known_teachers = directory.read_json("split.json"), directory.read_json("teachers.json")
    _refuse_other_images(directory, known_images, images)
    _refuse_other_teachers(directory, known_teachers, pieces.teachers)
    if known_images is None:
        directory.write_json("split.json", images)
        _warn_of_missing_classes(pieces)
    if known_teachers is None and pieces.teachers:
        _describe_teachers(directory, config, pieces, shown=shown)
    directory.write_json("model.json", _network(config, pieces))
    directory.write_json("environment.json", runtime.environment())


def _warn_of_missing_classes(pieces: Pieces) -> None:
    split = pieces.split
    for what, ids in (("to train on", split.train), ("held out", split.validation)):
        counts = torch.bincount(split.labels[ids], minlength=pieces.shape.num_classes)
        missing = [pieces.dataset.classes[label] for label in (counts == 0).nonzero().flatten().tolist()]
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            warnings.warn(f"{len(missing)} of {len(counts)} classes have no image {what}: {shown}", stacklevel=3)


def _network(config: Config, pieces: Pieces) -> dict[str, Any]:
    return {
        "name": config.model.name,
        "options": config.model.options,
        "num_classes": pieces.shape.num_classes,
        "in_channels": pieces.shape.in_channels,
        "image_size": list(pieces.shape.image_size),
        "classes": list(pieces.dataset.classes),
        "parameters": sum(p.numel() for p in pieces.student.parameters()),
    }


def _refuse_other_images(directory: RunDirectory, known: dict[str, Any] | None, images: dict[str, Any]) -> None:
    for key, value in images.items():
        if known is not None and known.get(key) != value:
            raise RunError(
                f"{directory.path} began with other images ({key} differs from split.json): "
                "give it the data it began with, or use another --run"
            )


def _refuse_other_teachers(
    directory: RunDirectory, known: dict[str, Any] | None, teachers: list[LoadedNetwork]
) -> None:
    if known is None:
        return
    before = [card["sha256"] for card in known["teachers"]]
    for teacher, sha256 in zip(teachers, before, strict=True):
        if teacher.sha256 != sha256:
            raise RunError(
                f"teacher {teacher.spec} has changed since {directory.path} began "
                f"(sha256 {teacher.sha256[:12]}, then {sha256[:12]}): restore it, or use another --run"
            )


def _describe_teachers(directory: RunDirectory, config: Config, pieces: Pieces, *, shown: bool) -> None:
    cards = [_card(config, pieces, number) for number in range(len(pieces.teachers))]
    directory.write_json("teachers.json", {"teachers": cards})
    for card in cards if shown else ():
        print(
            f"teacher {card['spec']} ({card['trained']}): clean {card['clean_accuracy']:.3f}, "
            f"robust {card['robust_accuracy']:.3f} on {card['images']} held-out images",
            file=sys.stderr,
        )
        # Who always names the commonest class is right as often.
        labels = pieces.validation[1][: card["images"]]
        chance = float(torch.bincount(labels).max()) / len(labels)
        if card["clean_accuracy"] <= chance:
            print(
                f"robustill: warning: teacher {card['spec']} is no better than chance ({chance:.3f}): look at its "
                "normalisation, the order of its classes, and what it was trained on",
                file=sys.stderr,
            )


def _card(config: Config, pieces: Pieces, number: int) -> dict[str, Any]:
    teacher, settings, threat = pieces.teachers[number], config.validation, config.threat.build()
    images, labels = (part[:_SAMPLE] for part in pieces.validation)
    clean, robust = held_out_accuracy(
        teacher.module,
        images,
        labels,
        threat,
        steps=settings.steps,
        step_size=settings.length(threat.eps),
        seed=config.seed,
    )
    return {
        "spec": teacher.spec,
        "role": config.teachers[number].role,
        "weight": config.teachers[number].weight,
        "sha256": teacher.sha256,
        "epoch": teacher.epoch,
        "trained": teacher.trained,
        "architecture": teacher.architecture,
        "threat": None if teacher.config is None else teacher.config["threat"],
        "clean_accuracy": clean,
        "robust_accuracy": robust,
        "images": len(labels),
    }
