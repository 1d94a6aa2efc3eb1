"""What does a teacher say of training photographs that people call something else, at its best epoch and at its last?

    python benchmarks/studies/doubted_images.py cifar10n.npz --runs runs/board/small \\
        --out benchmarks/results/doubted-images-DATE.json

Some seconds a seed, after `robustill board run akd --track small`; the file has CIFAR-10N's labels, of three people for
each training image. For each seed, the mean probability that the teacher gives to the label, to the class that people
say instead, and to the eight others together, on training images that at least two of the three people, and then
exactly one, call something else than their label; and how much of what the label lacks the class of the people has,
which is a ninth by chance. Images are clean, and those of PGD-10 against the student of AKD at its last epoch, which
climbs the loss of the label as in training.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import robustill as rb
from robustill.analysis.human_labels import AnnotatorLabels, read_human_labels
from robustill.config.files import make_config
from robustill.config.split import load_split, make_split
from robustill.core.device import environment
from robustill.core.randomness import generator
from robustill.runs.directory import RunDirectory

EPOCHS = ("best", "last")


def doubts(labels: Tensor, people: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many people differ from the label, and what most of these say, the smallest class if they differ.

    Args:
        labels: int64 [N].
        people: int64 [N,3].
    """
    votes = torch.nn.functional.one_hot(people, int(people.max()) + 1).sum(dim=1)
    votes[torch.arange(len(labels)), labels] = 0
    return votes.sum(dim=1), votes.argmax(dim=1)


def shares(probabilities: Tensor, label: Tensor, instead: Tensor) -> dict[str, float]:
    """Return the mean probability of the label, of what people say instead, of all others, and the second's share."""
    rows = torch.arange(len(label))
    own, other = float(probabilities[rows, label].mean()), float(probabilities[rows, instead].mean())
    return {"label": own, "instead": other, "others": 1 - own - other, "instead of wrong": other / (1 - own)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    annotators = read_human_labels(arguments.people)
    assert isinstance(annotators, AnnotatorLabels)
    seeds: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for folder in sorted(path.parents[1] for path in arguments.runs.glob("seed-*/akd/study.json")):
        config = make_config(dict(RunDirectory.existing(folder / "akd").config()))
        data = load_split(config, "train")
        ids = make_split(config, data.labels, data.num_classes).train
        annotators.targets(ids.numpy(), data.labels[ids].numpy())
        three = np.stack([annotators.others[f"random_label{number}"] for number in (1, 2, 3)], axis=1)
        label = data.labels[ids]
        num_doubts, instead = doubts(label, torch.from_numpy(three)[ids])
        x = data.read(ids).float() / 255
        student = rb.load_network(f"run:{folder / 'akd'}@last-ema").module
        threat = config.threat.build()
        noise = generator(0, "doubted")
        x_adv = torch.cat(
            [
                rb.pgd(
                    lambda z, y=y, student=student: rb.losses.ce(student(z), y), part, threat,
                    steps=10, step_size=threat.eps / 4, generator=noise,
                )
                for part, y in zip(x.split(500), label.split(500), strict=True)
            ]
        )  # fmt: skip
        for epoch in EPOCHS:
            teacher = rb.load_network(f"run:{folder / 'teacher-0'}@{epoch}").module
            for kind, images in (("clean", x), ("adversarial", x_adv)):
                with torch.no_grad():
                    p = torch.cat([teacher(part).softmax(dim=1) for part in images.split(500)])
                for name, rows in (("two", num_doubts >= 2), ("one", num_doubts == 1)):
                    seeds[folder.name][f"{name}, {epoch}, {kind}"] = {
                        **shares(p[rows], label[rows], instead[rows]),
                        "images": int(rows.sum()),
                    }
    for row in next(iter(seeds.values())):
        means = {key: sum(each[row][key] for each in seeds.values()) / len(seeds) for key in seeds["seed-0"][row]}
        print(row, {key: round(value, 3) for key, value in means.items()})
    arguments.out.write_text(json.dumps({"seeds": seeds, "environment": environment()}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
