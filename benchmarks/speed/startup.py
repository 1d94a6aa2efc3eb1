"""How long do `robustill --help`, `list` and `show` take, from the start of the process to its end?

    python benchmarks/speed/startup.py
    python -X importtime -m robustill --help    # where it goes

About three seconds. Processes take turns with ones of Python that do nothing, whose time is what no command line can go
below.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

GOALS = {"robustill --help": 0.3, "robustill list": 0.5}
COMMANDS = {
    "python alone": ["-c", "pass"],
    # What `robustill show` cannot go below: it checks the whole configuration.
    "import torch": ["-c", "import torch"],
    **{f"robustill {words}": ["-m", "robustill", *words.split()] for words in ("--help", "list", "show digits_at")},
}


def seconds(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="2 or more")
    rounds = parser.parse_args().rounds
    for words in COMMANDS.values():
        seconds(words)  # the first of each reads its files from the disk
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, words in COMMANDS.items():
            taken[name].append(seconds(words))
    print("| command | seconds | quartiles |\n|---|---|---|")
    for name, values in taken.items():
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        print(f"| {name} | {median:.3f} | {low:.3f}–{high:.3f} |")
    for name, goal in GOALS.items():
        print(f"{name}: {statistics.median(taken[name]) / goal:.2f} of the {goal} s that are the goal")


if __name__ == "__main__":
    main()
