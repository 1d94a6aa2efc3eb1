"""What does recording every sample cost, as a share of the training step?

    python benchmarks/speed/dynamics_overhead.py --out benchmarks/results/dynamics-overhead-DATE.json

About two minutes on one core. ResNet-8 of width 16, PGD-10, one thread, on CIFAR-10's and on the digits' shapes. Time
is processor time, so that other work on the machine does not count; steps with and without the recorder take turns,
each share is that of the medians.

    record      all that the recorder does in an epoch of 50,000 (CIFAR-10) or 250 (digits) images, its file included
    clean pass  one more pass over the batch; a run makes it every fifth epoch

A run also validates and writes checkpoints, so of its time the share is smaller.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robustill.config.schema import Config
from robustill.config.split import Split
from robustill.core.device import environment
from robustill.core.memory_format import place
from robustill.core.randomness import generator, uniform
from robustill.methods import AKD, AT, TRADES, Batch, Method
from robustill.models import build
from robustill.threat import Threat
from robustill.training.optimizer import build_optimizer
from robustill.training.recorder import Recorder
from robustill.training.step import Step, StepLogits

CASES = {"cifar10": ((3, 32, 32), 128, 50_000, 8 / 255), "digits": ((1, 8, 8), 64, 250, 0.2)}
METHODS: dict[str, Callable[[], Method]] = {"at": AT, "akd": AKD, "trades": TRADES}


def measured(method: str, case: str, rounds: int) -> dict[str, Any]:
    (channels, height, width), batch_size, images, eps = CASES[case]
    networks = [
        build("resnet8", num_classes=10, in_channels=channels, image_size=(height, width), seed=seed, width=16)
        for seed in (0, 1)
    ]
    student, teacher = (place(network, torch.device("cpu")) for network in networks)
    threat = Threat(norm="linf", eps=eps)
    step = Step(
        student.train(), METHODS[method](), teacher if method == "akd" else None, threat, steps=10, step_size=eps / 4
    )
    optimizer = build_optimizer(
        [student], "sgd", learning_rate=1e-4, weight_decay=5e-4, decay_all=True, momentum=0.9, nesterov=False
    )
    x = uniform(torch.empty(batch_size, channels, height, width), generator(0, "images"))
    ids = torch.arange(images)
    y = ids % 10
    batch = Batch(
        x=x.contiguous(memory_format=torch.channels_last),
        y=y[:batch_size],
        index=ids[:batch_size],
        epoch=4,
        epochs=100,
    )
    seen: list[StepLogits] = []
    step.on_step = lambda _, each: seen.append(each)

    def whole() -> None:
        seen.clear()
        outcome = step(batch, generator(0, "attack"))
        optimizer.zero_grad(set_to_none=True)
        outcome.loss.mean().backward()
        optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        split = Split(train=ids, validation=ids[:0], labels=y, flipped=ids[:0], left_out=ids[:0])
        recorder = Recorder(Path(folder), 5, split, 100, torch.device("cpu"))
        parts = {
            "step": whole,
            "clean pass": lambda: recorder.record_clean(step, batch),
        }
        spent: dict[str, list[float]] = {name: [] for name in parts}
        for number in range(rounds + 3):
            for name, part in parts.items():
                if name == "clean pass":
                    # As in a run: what the step has seen decides whether the pass is made.
                    recorder.record(batch, seen[0])
                began = time.process_time()
                part()
                if number >= 3:
                    spent[name].append(time.process_time() - began)
        began = time.process_time()
        for part in ids.split(batch_size):
            logits = {name: each if each is None else each[: len(part)] for name, each in vars(seen[0]).items()}
            recorder.record(replace(batch, x=batch.x[: len(part)], y=y[part], index=part), StepLogits(**logits))
        recorder.write(1)
        recorded = (time.process_time() - began) / (images / batch_size)
    seconds = {name: statistics.median(each) for name, each in spent.items()}
    every = Config().dynamics.clean_every
    record, clean = recorded / seconds["step"], seconds["clean pass"] / seconds["step"]
    return {
        "method": method,
        "data": case,
        "step_seconds": round(seconds["step"], 5),
        "record_percent": round(100 * record, 3),
        "clean_pass_percent": round(100 * clean, 3),
        "clean_every": every,
        "share_percent": round(100 * (record + clean / every), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measured(method, case, given.rounds) for case in CASES for method in METHODS]
    for row in rows:
        print(row)
    if given.out is not None:
        page = {
            "date": datetime.date.today().isoformat(),
            "environment": environment(),
            "rounds": given.rounds,
            "rows": rows,
        }
        given.out.write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
