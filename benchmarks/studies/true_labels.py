"""Does what TE, TRADES and RSLAD gain over AKD on digits come from the wrong labels?

    robustill study benchmarks.studies.true_labels:true_labels --seeds 3 --recipe digits_at --suite pgd-20 \\
        --optim.ema 0.99 --data.label_noise 0

From the root of the repository. The methods of the board's digits track that differ most, beside PGD-AT, at their
averaged weights; the recipe has a fifth of wrong labels, which the last option takes away.
"""

from __future__ import annotations

from robustill.studies import Design, Row, StudyRuns

METHODS = ("te", "trades", "akd", "rslad")


def true_labels(runs: StudyRuns) -> Design:
    """TE and TRADES, which have no teacher, and AKD and RSLAD, beside PGD-AT."""
    baseline = runs.baseline_label
    rows = [Row(label=name, run=runs.student("", method=name), against=baseline) for name in METHODS]
    return Design(rows=(Row(label=baseline, run=runs.baseline()), *rows))
