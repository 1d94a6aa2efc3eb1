"""What does a teacher say of training images with wrong labels, at its best epoch and at its last?

    python benchmarks/studies/mislabelled_images.py --runs runs/why-early-stopping \\
        --out benchmarks/results/mislabelled-images-DATE.json

A few seconds, after `robustill study why-early-stopping --recipe digits_at`. For each seed, the mean probability that
the teacher gives to the true class, to the wrong label and to the eight other classes together, on the clean images and
on those of PGD-10 against the student that the teacher's epoch taught, which climbs the loss of the wrong label as in
training.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

import robustill as rb
from robustill.config.files import make_config
from robustill.config.split import load_split, make_split
from robustill.core.device import environment
from robustill.core.randomness import generator
from robustill.runs.directory import RunDirectory

STUDENTS = {"best": "akd", "last": "akd-age-last"}


def shares(probabilities: Tensor, true: Tensor, wrong: Tensor) -> dict[str, float]:
    """Return the mean probability of the true class, of the wrong label, and of all others."""
    rows = torch.arange(len(true))
    right, label = float(probabilities[rows, true].mean()), float(probabilities[rows, wrong].mean())
    return {"true class": right, "wrong label": label, "others": 1 - right - label}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for folder in sorted(arguments.runs.glob("seed-*")):
        config = make_config(dict(RunDirectory.existing(folder / "akd").config()))
        data = load_split(config, "train")
        split = make_split(config, data.labels, data.num_classes)
        x = data.read(split.flipped).float() / 255
        true, wrong = data.labels[split.flipped], split.labels[split.flipped]
        for epoch, student_run in STUDENTS.items():
            teacher = rb.load_network(f"run:{folder / 'teacher-0'}@{epoch}").module
            student = rb.load_network(f"run:{folder / student_run}@last").module
            threat = config.threat.build()
            x_adv = rb.pgd(
                lambda z, student=student, wrong=wrong: rb.losses.ce(student(z), wrong), x, threat,
                steps=10, step_size=threat.eps / 4, generator=generator(0, "mislabelled"),
            )  # fmt: skip
            for kind, images in (("clean", x), ("adversarial", x_adv)):
                with torch.no_grad():
                    seeds[folder.name][f"{epoch}, {kind}"] = shares(teacher(images).softmax(dim=1), true, wrong)
    for row in next(iter(seeds.values())):
        means = {key: sum(each[row][key] for each in seeds.values()) / len(seeds) for key in seeds["seed-0"][row]}
        print(row, {key: round(value, 3) for key, value in means.items()})
    arguments.out.write_text(json.dumps({"seeds": seeds, "environment": environment()}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
