"""What is it worth to keep freed memory for the next step (compute.keep_memory)? PGD-AT with PGD-10, with and without.

    python benchmarks/speed/freed_memory.py --threads 2 --out benchmarks/results/freed-memory-DATE.json

About seven minutes on two idle cores. The step of training_step.py in two processes, which take turns; wall time, so
that nothing else should run. Faults are pages that the system had to map in one step.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import resource
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from training_step import SHAPES, ours

from robustill.core.device import environment


def serve(pipe: Connection, name: str, precision: Any, keep: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    run = ours(name, "at", precision, keep_memory=keep)
    for _ in range(2):
        run()
    pipe.send(None)
    while pipe.recv():
        faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        run()
        pipe.send((time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults))


def measure(name: str, precision: str, rounds: int, threads: int) -> dict[str, object]:
    context, pipes = multiprocessing.get_context("spawn"), {}
    for keep in (False, True):
        pipes[keep], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, name, precision, keep, threads), daemon=True).start()
        pipes[keep].recv()
    found: dict[bool, list[tuple[float, int]]] = {False: [], True: []}
    for number in range(rounds):
        for keep in (False, True) if number % 2 else (True, False):
            pipes[keep].send(True)
            found[keep].append(pipes[keep].recv())
    for pipe in pipes.values():
        pipe.send(False)
    ratios = [back[0] / kept[0] for back, kept in zip(found[False], found[True], strict=True)]
    row = {
        "model": name, "batch": SHAPES[name], "precision": precision, "rounds": rounds,
        "seconds": {"given back": statistics.median(each[0] for each in found[False]),
                    "kept": statistics.median(each[0] for each in found[True])},
        "faults": {"given back": statistics.median(each[1] for each in found[False]),
                   "kept": statistics.median(each[1] for each in found[True])},
        "is_faster_by": round(statistics.median(ratios), 3),
        "quartiles": [round(value, 3) for value in statistics.quantiles(ratios, n=4)[::2]],
    }  # fmt: skip
    print(
        f"| {name}, batch {SHAPES[name]} | {precision} | {row['seconds']['given back']:.2f} s, "
        f"{row['faults']['given back']:,.0f} faults | {row['seconds']['kept']:.2f} s, {row['faults']['kept']:,.0f} "
        f"| {row['is_faster_by']:.2f}× |",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments = parser.parse_args()
    print("| model | precision | given back | kept | is faster by |\n|---|---|---|---|---|")
    rows = [
        measure(name, precision, arguments.rounds, arguments.threads)
        for name in arguments.models
        for precision in ("fp32", "bf16")
    ]
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        machine = {**environment(), "threads": arguments.threads}
        content = {"date": datetime.date.today().isoformat(), "environment": machine, "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
