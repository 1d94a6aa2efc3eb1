"""Which method is the most robust from the same two teachers with the same budget on digits?

    python benchmarks/studies/digits_methods.py --runs runs/digits-methods --suite standard --num-images 300 \\
        --out RESULTS.json

About half an hour on one core. The setting is the quickstart's (250 digits, a fifth with a wrong label, linf 0.15), 30
epochs. The robust teacher is weakly adversarially trained and early-stopped, the natural one is early-stopped ordinary
training; both are trained once. Seconds are processor time, so that other work does not count. It goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from robustill.analysis.summary import summary
from robustill.config.recipes import digits_at, digits_teacher
from robustill.config.schema import Config, make_config
from robustill.core.device import environment
from robustill.evaluation.targets import evaluate_run
from robustill.methods import METHODS, build_method, method_class
from robustill.studies.design import EMA_DECAY, SWA_START
from robustill.training.cost import count_passes
from robustill.training.loop import train

EPOCHS = 30
COLUMNS = ("clean_accuracy", "robust_accuracy", "ece_clean", "ece_adversarial")
CHECKPOINTS = ("best", "last")


def teachers(folder: Path) -> dict[str, str]:
    """The specification of each teacher, by role, trained if it is missing."""
    robust = digits_teacher().model_copy(update={"seed": 1000})
    natural = make_config({**digits_teacher().model_dump(mode="json"), "seed": 1001, "method": {"name": "clean"}})
    for name, config in (("robust", robust), ("natural", natural)):
        train(config, folder / name)
    return {name: f"run:{folder / name}@best" for name in ("robust", "natural")}


def student(method: str, seed: int, specs: dict[str, str]) -> Config:
    """One student's run."""
    plain = digits_at().model_dump(mode="json")
    plain["optim"]["epochs"] = EPOCHS
    if method in SWA_START:
        plain["optim"]["swa"] = SWA_START[method]
    if method in EMA_DECAY:
        plain["optim"]["ema"] = EMA_DECAY[method]
    given = [{"spec": specs[role], "role": role} for role in method_class(method).roles if role in specs]
    return make_config({**plain, "seed": seed, "method": {"name": method}, "teachers": given})


def measured(run: Path, method: str, **evaluation: Any) -> dict[str, dict[str, float]]:
    """Every number of a student, by checkpoint."""
    # Where the method averages the weights, the average is the student.
    names = [f"{what}-swa" if method in SWA_START else what for what in CHECKPOINTS]
    found = evaluate_run(run, checkpoints=names, eps_curve=False, progress=False, **evaluation)
    numbers = [summary(records) for records in found.values()]
    return {what: {column: each[column] for column in COLUMNS} for what, each in zip(CHECKPOINTS, numbers, strict=True)}


def trained(config: Config, run: Path) -> float:
    """Train, if that is not done; the processor seconds that its epochs took, in whichever processes that was."""
    clock = run.with_suffix(".seconds")
    before = float(clock.read_text()) if clock.exists() else 0.0
    began = time.process_time()

    def save(_: object) -> None:
        clock.write_text(f"{before + time.process_time() - began}\n")

    # After every epoch: a process that is stopped has spent them, too.
    train(config, run, progress=False, on_epoch=save)
    return float(clock.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--runs", type=Path, default=Path("runs/digits-methods"))
    parser.add_argument("--suite", default="pgd")
    parser.add_argument("--num-images", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    specs = teachers(arguments.runs)
    evaluation = {"suite": arguments.suite, "num_images": arguments.num_images}
    results: dict[str, dict[str, object]] = {}
    # Seeds outside: stopped early, every method has equally many.
    for seed in range(arguments.seeds):
        for method in arguments.methods:
            run = arguments.runs / f"{method}-{seed}"
            seconds = trained(student(method, seed, specs), run)
            found: dict[str, object] = {**measured(run, method, **evaluation), "seconds": seconds}
            results.setdefault(method, {})[str(seed)] = found
            print(seed, method, found, flush=True)
    conditions = {"epochs": EPOCHS, **evaluation, "environment": environment()}
    page = {"date": date.today().isoformat(), **conditions, "methods": results}
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(page, indent=1) + "\n")
    print_table(results)


def print_table(results: dict[str, dict[str, object]]) -> None:
    """Mean ± standard deviation over seeds, best and last."""
    header = ["method", "passes", "checkpoint", "clean", "robust", "ECE clean", "ECE adv.", "seconds"]
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for method, seeds in results.items():
        counts = count_passes(build_method(method), 10)
        shown = f"{counts.student_forward} {counts.student_backward} {counts.teacher_forward} {counts.teacher_backward}"
        seconds = np.median([each["seconds"] for each in seeds.values()])  # type: ignore[index]
        for what in CHECKPOINTS:
            values = [[each[what][column] for each in seeds.values()] for column in COLUMNS]  # type: ignore[index]
            cells = (f"{np.mean(value):.3f} ± {np.std(value, ddof=1):.3f}" for value in values)
            print(f"| {method} | {shown} | {what} | {' | '.join(cells)} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
