"""The rivals of a teacher beside AKD and RSLAD: methods without an outside teacher, and later methods with one.

    robustill study benchmarks.studies.rivals:rivals --seeds 5 --recipe digits_at --suite standard --optim.ema 0.99

From the root of the repository. Every network also has its averaged weights (EMA), whose checkpoints are rows of their
own in the table; the methods that learn from an average learn from that one. A setting of CIFAR-10 that takes about
ten hours on one core: --recipe cifar10_part_at --data.root DATA --num-images 500.
"""

from __future__ import annotations

from robustill.studies import Design, Row, StudyRuns

WITHOUT_TEACHER = ("trades", "sgls", "adr", "te", "rebat", "lbgat")
WITH_TEACHER = ("akd", "rslad", "absld", "dgad", "hat")
LABEL_SMOOTHING = 0.4


def rivals(runs: StudyRuns) -> Design:
    """Methods without an outside teacher, and later methods with one, beside PGD-AT, AKD and RSLAD."""
    baseline = runs.baseline_label
    smoothed = runs.baseline(tag="smoothing", optim={"label_smoothing": LABEL_SMOOTHING})
    own = runs.student("self-best", [f"{runs.baseline()}@best"], method="akd")
    rows = {
        f"{baseline}, label smoothing {LABEL_SMOOTHING:g}": smoothed,
        "akd, its own best epoch": own,
        **{name: runs.student("", method=name) for name in (*WITHOUT_TEACHER, *WITH_TEACHER)},
    }
    compared = [Row(label=label, run=run, against=baseline) for label, run in rows.items()]
    return Design(rows=(Row(label=baseline, run=runs.baseline()), *compared))
