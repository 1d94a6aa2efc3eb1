"""What a run says about itself beside its numbers: the network, the split, the teachers, the machine."""

from __future__ import annotations

import sys
from typing import Any

from robustill import runtime
from robustill.config import Config
from robustill.errors import RunError
from robustill.heldout import held_out_accuracy
from robustill.prepare import Pieces
from robustill.run_directory import RunDirectory
from robustill.teachers import describe_run

# Enough to see a teacher that does not know the task, or was loaded with the wrong normalisation.
_SAMPLE = 256


def describe(directory: RunDirectory, config: Config, pieces: Pieces, *, shown: bool) -> None:
    """Write model.json, split.json, teachers.json and environment.json, or check that a resumed run still agrees.

    Raises:
        RunError: the images, the split or a teacher's weights are not those that the run began with.
    """
    shape, split = pieces.shape, pieces.split
    directory.write_json(
        "model.json",
        {
            "name": config.model.name,
            "options": config.model.options,
            "num_classes": shape.num_classes,
            "in_channels": shape.in_channels,
            "image_size": list(shape.image_size),
            "classes": list(pieces.dataset.classes),
            "parameters": sum(p.numel() for p in pieces.student.parameters()),
        },
    )
    ids = {
        "fingerprint": pieces.dataset.fingerprint,
        "images": len(pieces.dataset),
        "train": split.train.tolist() if len(split.train) + len(split.validation) < len(pieces.dataset) else "the rest",
        "validation": split.validation.tolist(),
        "flipped": split.flipped.tolist(),
    }
    before = directory.read_json("split.json")
    if before is None:
        directory.write_json("split.json", ids)
    else:
        for key, value in ids.items():
            if before.get(key) != value:
                raise RunError(
                    f"{directory.path} began with other images ({key} differs from split.json): "
                    "give it the data it began with, or use another --run"
                )
    _describe_teachers(directory, config, pieces, shown=shown)
    directory.write_json("environment.json", runtime.environment())


def _describe_teachers(directory: RunDirectory, config: Config, pieces: Pieces, *, shown: bool) -> None:
    before = directory.read_json("teachers.json")
    hashes = [teacher.sha256 for teacher in pieces.teachers]
    if before is not None:
        for known, teacher in zip(before["teachers"], pieces.teachers, strict=True):
            if known["sha256"] != teacher.sha256:
                raise RunError(
                    f"teacher {teacher.spec} has changed since {directory.path} began "
                    f"(sha256 {teacher.sha256[:12]}, then {known['sha256'][:12]}): restore it, or use another --run"
                )
        return
    if not hashes:
        return
    cards = [_card(config, pieces, number) for number in range(len(hashes))]
    directory.write_json("teachers.json", {"teachers": cards})
    if shown:
        for card in cards:
            print(
                f"teacher {card['spec']} ({card['trained']}): clean {card['clean_accuracy']:.3f}, "
                f"robust {card['robust_accuracy']:.3f} on {card['images']} held-out images",
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
        step_size=threat.eps / 4 if settings.step_size is None else settings.step_size,
        seed=config.seed,
    )
    return {
        "spec": teacher.spec,
        "role": config.teachers[number].role,
        "weight": config.teachers[number].weight,
        "sha256": teacher.sha256,
        "epoch": teacher.epoch,
        "trained": describe_run(teacher.config),
        "threat": None if teacher.config is None else teacher.config["threat"],
        "clean_accuracy": clean,
        "robust_accuracy": robust,
        "images": len(labels),
    }
