"""In which setting of the digits does a teacher help, on held-out images alone? The quickstart's was chosen so.

    python benchmarks/studies/digits_settings.py --runs runs/digits-settings \\
        --out benchmarks/results/digits-settings.json

About forty minutes on one core. PGD-AT and AKD with and without wrong labels, at two radii; then, in the chosen
setting, the teachers' radius, age and number, and AKD's share of the teacher. Each seed has its own split, wrong
labels, teachers and students. The test images are not looked at. It goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from robustill.config.recipes import digits_at
from robustill.config.schema import Config, make_config
from robustill.core.device import environment
from robustill.training.loop import train

ALPHA = 0.8
CHOSEN = {"eps": 0.15, "noise": 0.2}
COLUMNS = ("validation_clean_accuracy", "validation_robust_accuracy")


def configuration(seed: int, split: int, eps: float, noise: float, weaker: float = 1.0, **values: Any) -> Config:
    """The quickstart's PGD-AT with another radius, share of wrong labels and seed."""
    plain = digits_at().model_dump(mode="json")
    data = {**plain["data"], "split_seed": split, "label_noise": noise}
    radius = eps * weaker
    attack = {**plain["attack"], "step_size": radius / 4} if radius else {"steps": 0}
    return make_config({**plain, "seed": seed, "data": data, "threat": {"eps": radius}, "attack": attack, **values})


class Study:
    """The runs of one split, each trained when it is first asked for."""

    def __init__(self, split: int, folder: Path) -> None:
        self.split = split
        self.folder = folder / f"split-{split}"
        self.found: dict[str, dict[str, dict[str, float]]] = {}

    def _held_out(self, name: str, config: Config) -> dict[str, dict[str, float]]:
        trained = train(config, self.folder / name, progress=False)
        looked_at = [line for line in trained.metrics if COLUMNS[0] in line]
        lines = {"best": next(line for line in looked_at if line["epoch"] == trained.best), "last": looked_at[-1]}
        return {what: {column: float(line[column]) for column in COLUMNS} for what, line in lines.items()}

    def teachers(self, eps: float, noise: float, weaker: float) -> list[Path]:
        """Three, trained like the student on the same images with the same labels."""
        names = [f"teacher-{number}-eps{eps}-noise{noise}-weaker{weaker}" for number in range(3)]
        for number, name in enumerate(names):
            self._held_out(name, configuration(1000 + 3 * self.split + number, self.split, eps, noise, weaker))
        return [self.folder / name for name in names]

    def at(self, eps: float, noise: float) -> None:
        """PGD-AT."""
        name = f"at-eps{eps}-noise{noise}"
        self._add(name, name, configuration(self.split, self.split, eps, noise))

    def akd(
        self,
        label: str,
        eps: float,
        noise: float,
        weaker: float,
        age: str = "best",
        count: int = 3,
        alpha: float = ALPHA,
    ) -> None:
        """AKD from `count` teachers of `weaker` times the radius at that age."""
        folders = self.teachers(eps, noise, weaker)[:count]
        method = {"name": "akd", "alpha": alpha}
        teachers = [f"run:{folder}@{age}" for folder in folders]
        config = configuration(self.split, self.split, eps, noise, method=method, teachers=teachers)
        self._add(label, f"akd-eps{eps}-noise{noise}-{weaker}-{age}-{count}-{alpha}", config)

    def _add(self, label: str, name: str, config: Config) -> None:
        self.found[label] = self._held_out(name, config)
        print(self.split, label, self.found[label], flush=True)

    def run(self) -> None:
        """Every row of the table."""
        for eps in (0.15, 0.2):
            for noise in (0.0, 0.2):
                self.at(eps, noise)
                self.akd(f"akd-eps{eps}-noise{noise}", eps, noise, weaker=0.75)
        for weaker in (0.0, 0.5, 1.0):
            self.akd(f"akd, teachers' eps times {weaker}", **CHOSEN, weaker=weaker)
        self.akd("akd, teachers' last epochs", **CHOSEN, weaker=0.75, age="last")
        self.akd("akd, full-radius teachers' last epochs", **CHOSEN, weaker=1.0, age="last")
        for count in (1, 2):
            self.akd(f"akd, teachers {count}", **CHOSEN, weaker=0.75, count=count)
        for alpha in (0.5, 1.0):
            self.akd(f"akd, alpha {alpha}", **CHOSEN, weaker=0.75, alpha=alpha)


def table(studies: Sequence[Study]) -> None:
    """Mean ± standard deviation over splits."""
    print("\n| setting | best clean | best robust | last clean | last robust |\n|---|---|---|---|---|")
    for label in studies[0].found:
        cells = []
        for what in ("best", "last"):
            for column in COLUMNS:
                values = np.array([study.found[label][what][column] for study in studies])
                cells.append(
                    f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"
                )
        print(f"| {label} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/digits-settings"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    studies = [Study(split, arguments.runs) for split in range(arguments.seeds)]
    for study in studies:
        study.run()
    table(studies)
    if arguments.out is not None:
        found = {study.split: study.found for study in studies}
        page = {"date": date.today().isoformat(), "environment": environment(), "splits": found}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
