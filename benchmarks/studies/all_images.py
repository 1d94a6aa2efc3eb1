"""What does a teacher add where no training image is left out? A study of PGD-AT, TRADES, AKD and RSLAD.

    robustill study benchmarks.studies.all_images:students --recipe cifar10_part_at --seeds 3 --suite standard \\
        --num-images 300 --data.train_size null --data.validation 3000 --optim.epochs 10 --data.root data \\
        --runs runs/cifar-full

Half an hour on two cores. The parts of CIFAR-10 and Fashion-MNIST of the other studies are overfitted within their
epochs, and what a teacher does there is mostly to cure that. All images for a few epochs are not.
"""

from __future__ import annotations

from robustill.studies import Design, Row, StudyRuns


def students(runs: StudyRuns) -> Design:
    """PGD-AT, TRADES, and AKD and RSLAD from one teacher of the student's own size, budget and radius."""
    teacher = f"{runs.teacher(share=1.0)}@best"
    rows = [
        Row(label="at", run=runs.baseline()),
        Row(label="trades", run=runs.student("", method="trades"), against="at"),
    ]
    for method in ("akd", "rslad"):
        run = runs.student("teacher-eps-1", [teacher], method=method)
        rows.append(Row(label=f"{method}, one teacher of the full radius", run=run, against="at"))
    return Design(rows=tuple(rows))
