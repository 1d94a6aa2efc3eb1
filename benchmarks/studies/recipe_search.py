"""What is the most robust recipe for one small student and budget? A search on held-out images alone, then its test.

    python benchmarks/studies/recipe_search.py cifar10_part_at --runs runs/search --workers 2 --data.root data \\
        --out benchmarks/results/recipe-search.json

An hour and a half of one core for the search, three quarters of an hour for the test. The student and its epochs are
those of the recipe, PGD-AT. Question by question, in the order of QUESTIONS, the answer of the highest held-out robust
accuracy is kept: mean over the seeds of the search, each with a split of its own; of each run the best epoch, of the
weights or of their average. What is found is then trained again, with other seeds and so with other splits, beside the
recipe and beside PGD-AT with the same augmentation and averages; only these see test images. It goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from robustill.analysis.statistics import paired_over_seeds
from robustill.analysis.summary import summary
from robustill.config.recipes import resolve
from robustill.config.schema import Config, make_config
from robustill.core.device import environment
from robustill.evaluation.targets import evaluate_run
from robustill.runs.directory import RunDirectory
from robustill.training.loop import train

SEARCH_SEEDS = (100, 101)
TEST_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """A recipe, apart from what all have in common.

    Args:
        augmentation: of teachers and student.
        cutmix: of both: the share of the images that are mixed.
        optim: of teachers and student: averages of the weights and the like.
        share: the teachers' radius, as a share of the student's.
        teachers: how many; 0 is PGD-AT.
        larger: the teachers' network; None is the student's.
        method: of the student, and its options.
    """

    augmentation: tuple[Any, ...]
    cutmix: float
    optim: dict[str, Any] = field(default_factory=dict)
    share: float = 0.75
    teachers: int = 0
    larger: dict[str, Any] | None = None
    method: dict[str, Any] = field(default_factory=lambda: {"name": "at"})


COLUMNS = {
    "clean": "clean_accuracy",
    "robust": "robust_accuracy",
    "ECE clean": "ece_clean",
    "ECE adversarial": "ece_adversarial",
}
AKD = {"name": "akd", "alpha": 0.8}
LARGER = {"name": "resnet8", "width": 16}
# Each answer is laid over what was kept before. From the third question on students are distilled; the second one's
# best answer is the same recipe without a teacher, which is tested beside what is found.
QUESTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "augmentation": {
        "as in the recipe": {},
        "crop, flip": {"augmentation": ("crop", "flip")},
        "idbh": {"augmentation": ("idbh",)},
        "crop, flip, CutMix": {"augmentation": ("crop", "flip"), "cutmix": 0.5},
    },
    "averages": {
        "none": {},
        "EMA 0.99": {"optim": {"ema": 0.99}},
        "SWA of the second half": {"optim": {"swa": 0.5}},
        "AWP 0.005": {"optim": {"awp": 0.005}},
    },
    "teacher": {
        "AKD, half the radius": {"method": AKD, "teachers": 1, "share": 0.5},
        "AKD, three quarters": {"method": AKD, "teachers": 1, "share": 0.75},
        "AKD, all of it": {"method": AKD, "teachers": 1, "share": 1.0},
        "AKD, three quarters, a larger network": {"method": AKD, "teachers": 1, "share": 0.75, "larger": LARGER},
    },
    "method": {
        "as before": {},
        "AKD, alpha 0.5": {"method": {"name": "akd", "alpha": 0.5}},
        "AKD, alpha 1": {"method": {"name": "akd", "alpha": 1.0}},
        "ARD": {"method": {"name": "ard"}},
        "RSLAD": {"method": {"name": "rslad"}},
    },
    "number": {"as before": {}, "three teachers": {"teachers": 3}},
}


def run_name(setting: Setting, *, teacher: bool) -> str:
    """What sets a run apart, and so names its folder."""
    parts = ["+".join(map(str, setting.augmentation))]
    parts += [f"cutmix-{setting.cutmix:g}"] if setting.cutmix else []
    parts += [f"{key}-{value:g}" for key, value in setting.optim.items()]
    if teacher or setting.teachers:
        parts += [f"share-{setting.share:g}", *(map(str, (setting.larger or {}).values()))]
    if not teacher:
        parts += [f"{setting.teachers}-teachers"] * bool(setting.teachers) + [
            str(value) for value in setting.method.values()
        ]
    return "-".join(parts)


def configurations(base: Config, setting: Setting, seed: int, folder: Path) -> dict[Path, Config]:
    """The teachers and then the student, by their run directories."""
    values = base.model_dump(mode="json")
    data = {**values["data"], "augmentation": list(setting.augmentation), "cutmix": setting.cutmix, "split_seed": seed}
    shared = {**values, "data": data, "optim": {**values["optim"], **setting.optim}}
    threat = {**values["threat"], "eps": setting.share * base.threat.eps}
    attack = {**values["attack"], "step_size": setting.share * base.attack.step_size}
    model = setting.larger or values["model"]
    runs: dict[Path, Config] = {}
    for number in range(setting.teachers):
        own = {"threat": threat, "attack": attack, "model": model, "seed": 1000 + 100 * seed + number}
        place = folder / f"seed-{seed}" / f"teacher-{number}-{run_name(setting, teacher=True)}"
        runs[place] = make_config({**shared, **own})
    given = [{"spec": f"run:{place}@{best(config)}", "role": "robust"} for place, config in runs.items()]
    student = {**shared, "method": setting.method, "teachers": given, "seed": seed}
    return {**runs, folder / f"seed-{seed}" / run_name(setting, teacher=False): make_config(student)}


def best(config: Config) -> str:
    """The checkpoint that is meant where the weights are averaged: their average."""
    averages = [kind for kind in ("ema", "swa") if getattr(config.optim, kind) is not None]
    return "-".join(["best", *averages])


def held_out(run: Path, config: Config) -> float:
    """The robust accuracy of that checkpoint on the held-out part of the training images."""
    key = "_".join([*best(config).split("-")[1:], "validation_robust_accuracy"])
    return max(float(line.get(key, 0.0)) for line in RunDirectory(run).metrics())


def trained(run: str, values: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    train(make_config(values), run, progress=False)


class Search:
    """Trains what it is asked for, several runs at once."""

    def __init__(self, base: Config, folder: Path, workers: int) -> None:
        self.base, self.folder = base, folder
        self.pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))

    def train(self, settings: Sequence[Setting], seeds: Sequence[int]) -> dict[tuple[int, int], tuple[Path, Config]]:
        """The students, by number of the setting and seed; first all teachers, then all students."""
        teachers: dict[Path, Config] = {}
        students: dict[tuple[int, int], tuple[Path, Config]] = {}
        for number, setting in enumerate(settings):
            for seed in seeds:
                *first, last = configurations(self.base, setting, seed, self.folder).items()
                teachers |= dict(first)
                students[number, seed] = last
        for group in (teachers, dict(students.values())):
            tasks = [
                self.pool.submit(trained, str(run), config.model_dump(mode="json")) for run, config in group.items()
            ]
            for task in tasks:
                task.result()
        return students

    def answer(self, kept: Setting, answers: dict[str, dict[str, Any]]) -> tuple[Setting, dict[str, list[float]]]:
        """The best of the answers to one question, and the held-out robust accuracy of each, a value a seed."""
        settings = [replace(kept, **changes) for changes in answers.values()]
        students = self.train(settings, SEARCH_SEEDS)
        scores = {
            label: [held_out(*students[number, seed]) for seed in SEARCH_SEEDS] for number, label in enumerate(answers)
        }
        number = max(range(len(settings)), key=lambda each: statistics.mean(list(scores.values())[each]))
        return settings[number], scores

    def tested(self, settings: dict[str, Setting], suite: str, num_images: int) -> dict[str, dict[str, list[float]]]:
        """Each under attack on test images, the chosen and the last checkpoint, a value a seed."""
        students = self.train(list(settings.values()), TEST_SEEDS)
        tasks = {
            key: self.pool.submit(attacked, str(run), best(config), suite, num_images)
            for key, (run, config) in students.items()
        }
        found: dict[str, dict[str, list[float]]] = {}
        for number, label in enumerate(settings):
            for which, what in enumerate(("best", "last")):
                values = [tasks[number, seed].result()[which] for seed in TEST_SEEDS]
                found[f"{label}, {what}"] = {key: [each[key] for each in values] for key in values[0]}
        return found


def attacked(run: str, what: str, suite: str, num_images: int) -> list[dict[str, float]]:
    """Of the checkpoint that was chosen, and of the last."""
    torch.set_num_threads(1)
    records = evaluate_run(
        run, checkpoints=[what, what.replace("best", "last")], suite=suite, num_images=num_images, eps_curve=False,
        progress=False,
    )  # fmt: skip
    return [{name: float(summary(each)[key]) for name, key in COLUMNS.items()} for each in records.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="PGD-AT of the student")
    parser.add_argument("--suite", default="standard", help="of attacks, on test images, at the end")
    parser.add_argument("--num-images", type=int, default=500, help="test images")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, of one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/search"), help="it goes on where it was stopped")
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments, overrides = parser.parse_known_args()
    search = Search(resolve(arguments.recipe, overrides), arguments.runs, arguments.workers)
    data = search.base.data
    recipe = Setting(augmentation=tuple(data.augmentation), cutmix=data.cutmix)
    kept, asked = recipe, {}
    for question, answers in QUESTIONS.items():
        kept, asked[question] = search.answer(kept, answers)
        print(f"\n| {question} | held out, robust |\n|---|---|")
        for label, scores in asked[question].items():
            shown = ", ".join(f"{score:.3f}" for score in scores)
            print(f"| {label} | {statistics.mean(scores):.3f} ({shown}) |", flush=True)
    plain = replace(kept, teachers=0, method={"name": "at"})
    final = {"the recipe": recipe, "PGD-AT with what was found": plain, "what was found": kept}
    tested = search.tested(final, arguments.suite, arguments.num_images)
    print(
        f"\n| {arguments.suite}, {arguments.num_images} images | {' | '.join(COLUMNS)} | minus the recipe |\n"
        f"|{'---|' * (len(COLUMNS) + 2)}"
    )
    for label, values in tested.items():
        pair = paired_over_seeds(values["robust"], tested[f"the recipe, {label.rpartition(', ')[2]}"]["robust"])
        cells = (f"{statistics.mean(values[key]):.3f} ± {statistics.stdev(values[key]):.3f}" for key in COLUMNS)
        difference = f"{pair.mean:+.3f} ± {pair.std:.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
        print(f"| {label} | {' | '.join(cells)} | {difference} |")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "date": datetime.date.today().isoformat(), "environment": environment(), "recipe": arguments.recipe,
            "overrides": overrides, "suite": arguments.suite, "held_out": asked, "found": vars(kept), "tested": tested,
        }  # fmt: skip
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
