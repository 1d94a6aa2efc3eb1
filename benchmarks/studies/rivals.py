"""Do the rivals of a teacher, and later methods with one, beat AKD and RSLAD?

    robustill study benchmarks.studies.rivals:rivals --seeds 5 --recipe digits_at --suite standard --optim.ema 0.99

From the root of the repository. Every network also has its averaged weights (EMA), whose checkpoints are lines of their
own in the table; the methods that learn from an average learn from that one. On CIFAR-10: --recipe cifar10_part_at
--data.root DATA --num-images 500. `robustill plan` with the same words estimates the time.
"""

from __future__ import annotations

from robustill.studies import Design, Row, StudyRuns, builtin

METHODS = ("trades", "sgls", "adr", "te", "rebat", "lbgat", "akd", "rslad", "absld", "dgad", "hat")


def rivals(runs: StudyRuns) -> Design:
    """Methods without an outside teacher, and later methods with one, beside PGD-AT, AKD and RSLAD."""
    baseline = runs.baseline_label
    rows = [Row(label=name, run=runs.student("", method=name), against=baseline) for name in METHODS]
    return Design(rows=(Row(label=baseline, run=runs.baseline()), *builtin.rivals(runs), *rows))
