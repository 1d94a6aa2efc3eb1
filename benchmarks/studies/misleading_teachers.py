"""Who knows more where a teacher teaches, read from the records of trainings: is the warning of `train` right?

    python benchmarks/studies/misleading_teachers.py runs/cifar/seed-*/akd* --out benchmarks/results/misled.json

About a second a run, as it reads records alone. Of every run whose teacher saw adversarial images: the shares of these
on which student and teacher were right when a quarter of the epochs was done, and whether
`robustill.training.diagnostics.misleading_teacher` speaks then. Runs without such a teacher are left out.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from robustill.runs.dynamics import read_dynamics
from robustill.training.diagnostics import misleading_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments = parser.parse_args()
    found = {}
    print("| run | student | teacher | warned |\n|---|---|---|---|")
    for run in arguments.runs:
        known = read_dynamics(run)
        if known.adversarial is None or known.teacher_adversarial is None:
            continue
        epochs = known.num_epochs
        epoch = math.ceil(epochs / 4)
        looks = (known.adversarial, known.teacher_adversarial)
        student, teacher = (float(look.correct[look.epochs == epoch].mean()) for look in looks)
        warned = misleading_teacher(epoch, epochs, student, teacher, len(known.ids)) is not None
        found[str(run)] = {"epoch": epoch, "student": student, "teacher": teacher, "warned": warned}
        print(f"| {run} | {student:.3f} | {teacher:.3f} | {'yes' if warned else 'no'} |")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
