"""Does a temperature make a better teacher of a network that somebody else has trained?

    robustill study benchmarks.studies.tempered_teachers:tempered_teachers --seeds 5 --recipe cifar10_part_at \
        --suite quick --num-images 1000 --data.root DATA --study.checkpoints CHECKPOINTS

From the root of the repository. CHECKPOINTS holds the files that `benchmarks/public_checkpoints.json` lists: the
certified CNN-A and the ResNet-2B2 with mixup are teachers of AKD at temperatures of 1, 2 and 4. Some forty minutes on
two cores; in the folder of `why-early-stopping` with the same recipe, both share the baseline.
"""

from __future__ import annotations

import json
from pathlib import Path

from robustill.studies import Design, Row, StudyRuns

TABLE = Path(__file__).parents[1] / "public_checkpoints.json"
FILES = {
    "certified CNN-A": "cifar10/abcrown_cifar_wide.pth",
    "ResNet-2B2 with mixup": "cifar10/mnbab_resnet_2b2_bn_mixup_sadv_8.0_bs128_lr-1.pth",
}
TEMPERATURES = (1.0, 2.0, 4.0)


def tempered_teachers(runs: StudyRuns, *, checkpoints: str) -> Design:
    """AKD from two public networks at three temperatures, each against the student of the same network at 1."""
    baseline = runs.baseline_label
    entries = {entry["file"]: entry for entry in json.loads(TABLE.read_text())}
    rows = [Row(label=baseline, run=runs.baseline())]
    for label, file in FILES.items():
        model = {"name": entries[file]["model"], **entries[file]["normalisation"]}
        teacher = {"spec": str(Path(checkpoints) / file), "model": model}
        for temperature in TEMPERATURES:
            tag = f"{Path(file).stem}-t-{temperature:g}"
            name = runs.student(tag, [teacher], options={"temperature": temperature})
            untempered = f"{label}, temperature {TEMPERATURES[0]:g}"
            against = baseline if temperature == TEMPERATURES[0] else untempered
            rows.append(Row(label=f"{label}, temperature {temperature:g}", run=name, against=against))
    return Design(rows=tuple(rows))
