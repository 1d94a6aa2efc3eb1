"""How much processor time do `robustill --help`, `list` and `show` take, from the start of the process to its end?

    python benchmarks/speed/startup.py
    python -X importtime -m robustill --help    # where it goes

About a minute on one core. Processes take turns with one of Python that does nothing, whose time is what no command
line can go below, and with one that imports torch, which only commands that compute have to.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

REFERENCE = "import torch"
GOALS = {"robustill --help": 0.3, "robustill list": 0.5, "robustill show digits_at": 0.5}
SHOWN = ("--help", "list", "show digits_at", "show digits_akd --optim.epochs 7")
COMMANDS = {
    "python alone": ["-c", "pass"],
    REFERENCE: ["-c", "import torch"],
    **{f"robustill {words}": ["-m", "robustill", *words.split()] for words in SHOWN},
}


def seconds(words: list[str]) -> float:
    """Processor time of a process, so that other work on the machine counts little."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def measure(rounds: int) -> dict[str, list[float]]:
    """Processor seconds of every command, by round."""
    for words in COMMANDS.values():
        seconds(words)  # the first of each reads its files from the disk
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, words in COMMANDS.items():
            taken[name].append(seconds(words))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="2 or more")
    taken = measure(parser.parse_args().rounds)
    print("| command | processor seconds | quartiles |\n|---|---|---|")
    for name, values in taken.items():
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        print(f"| {name} | {median:.3f} | {low:.3f}–{high:.3f} |")
    for name, goal in GOALS.items():
        print(f"{name}: {statistics.median(taken[name]) / goal:.2f} of the {goal} s that are the goal")


if __name__ == "__main__":
    main()
