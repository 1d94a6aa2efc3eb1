"""The robustness sheet of a network: AutoAttack in several norms, corruptions, rotations, calibration, worst class."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustill.analysis.evaluations import is_number
from robustill.analysis.statistics import wilson_interval
from robustill.analysis.summary import result_warnings, summary
from robustill.config.split import load_split
from robustill.core.contexts import evaluating, full_float32
from robustill.core.device import configure_process
from robustill.core.errors import printable
from robustill.core.files import write_text
from robustill.core.fingerprint import Fingerprint, compute_fingerprint
from robustill.core.memory_format import place
from robustill.core.outputs import check_output_file
from robustill.core.progress import Progress
from robustill.core.user_code import TrustCode, only_named, paths_in
from robustill.core.validation import check_path, check_texts
from robustill.data import Dataset
from robustill.data.corruptions import ANGLES, CORRUPTIONS, SEVERITIES, SHIFTS
from robustill.evaluation.corruptions import check_official, corrupted_accuracy, moved_accuracy, num_passes
from robustill.evaluation.targets import Target, evaluate_file, evaluate_run, is_network_spec, open_target
from robustill.runs.records import Records
from robustill.threat import Threat

_FORMAT = "robustill sheet 1"
# The radii that the field takes on CIFAR-10 are linf 8/255, l2 0.5 and l1 12: l2 and l1 as shares of what the l∞ ball
# allows, eps·√d and eps·d.
_L2_SHARE = 0.5 / (8 / 255 * math.sqrt(3072))
_L1_SHARE = 12 / (8 / 255 * 3072)
_NORM_NAMES = {"linf": "l∞", "l2": "l2", "l1": "l1"}


def default_threats(trained: Threat, image_shape: Sequence[int]) -> list[Threat]:
    """Return the threat of the training, then one of each other norm.

    Their radii stand to one another as those of CIFAR-10's benchmarks do, for the number of pixels of an image.

    Args:
        trained: the threat that the network was trained against.
        image_shape: (C, H, W).

    Example:
        >>> [str(each) for each in default_threats(Threat.parse("linf:8/255"), (3, 32, 32))]
        ['linf:8/255', 'l2:0.5', 'l1:12']
    """
    size = math.prod(image_shape)
    shares = {"linf": 1.0, "l2": _L2_SHARE * math.sqrt(size), "l1": _L1_SHARE * size}
    eps = trained.eps / shares[trained.norm]
    others = []
    for norm, share in shares.items():
        if norm == trained.norm:
            continue
        levels = round(eps * 255)
        text = f"{levels}/255" if norm == "linf" and levels else f"{eps * share:.2g}"
        others.append(Threat.parse(f"{norm}:{text}"))
    return [trained, *others]


@full_float32()
def measure_sheet(
    target: Path | str | None,
    *,
    out: Path | str,
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
    threats: Sequence[str] = (),
    official: Path | str | None = None,
    evaluations: Path | str = "evaluations",
    progress: bool = True,
    trust_code: TrustCode = False,
    **settings: Any,
) -> dict[str, Any]:
    """Measure the robustness of a network in every way that is known here, and write the numbers as JSON.

    Attacks are recorded as `evaluate_run` and `evaluate_file` record them, and read where they have been recorded. What
    is measured is written as it comes, so that the same call resumes a stopped one.

    Args:
        target: a run directory, or a file or specification as for `evaluate_file`.
        out: the file for the numbers.
        checkpoint: the checkpoint of a run.
        overrides: as for `evaluate_run` and `evaluate_file`.
        threats: the first is the one that the network was trained for; empty is `default_threats`.
        official: a folder with the files of CIFAR-10-C or CIFAR-100-C, in place of corruptions that are computed.
        evaluations: the folder for the records of a network that is no run.
        progress: show progress bars.
        trust_code: as for `evaluate_run`.
        settings: arguments of `evaluate`: suite, num_images, first, seed, batch_size, precision.

    Returns:
        The numbers, as in the file.

    Raises:
        RobustillError: an invalid network, data set or setting; the official files are of other images; out is another
            file.
    """
    overrides = check_texts("overrides", overrides, '["--data.root", "data"]')
    out = check_path("out", out)
    official = None if official is None else check_path("official", official)
    check_output_file(out, is_sheet, "sheet of `robustill sheet`", "--out")
    settings = {"suite": "standard", "seed": 0, "batch_size": 256, **settings}
    named = paths_in([*overrides, "" if target is None else str(target)])
    with only_named(*named, trust=trust_code):
        opened = open_target(target, checkpoint=checkpoint, overrides=overrides)
        dataset = load_split(opened.config, "test")
        if official is not None:
            check_official(official, dataset)
        parsed = [Threat.parse(text) for text in threats]
        parsed = parsed or default_threats(opened.config.threat.build(), dataset.image_shape)
        common = {"threats": list(map(str, parsed)), "progress": progress, "trust_code": trust_code, **settings}
        if target is None or is_network_spec(str(target)):
            evaluated = evaluate_file(target, out=evaluations, overrides=overrides, **common)
        else:
            evaluated = evaluate_run(target, checkpoints=[checkpoint], overrides=overrides, **common)
        sheet = _describe(opened, evaluated, official, settings)
        _Measurement(sheet, opened, dataset, next(iter(evaluated.values())), out, official, settings).run(progress)
    return sheet


def is_sheet(head: bytes) -> bool:
    """Return whether a file begins like the JSON of a sheet."""
    return head.lstrip(b"{ \n").startswith(f'"format": "{_FORMAT}"'.encode())


def _describe(
    opened: Target, evaluated: Mapping[Path, Records], official: Path | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the sheet with everything that the records know."""
    first = next(iter(evaluated.values()))
    known = first.conditions
    names = ("checkpoint", "run", "epoch", "checkpoint_sha256", "architecture", "model", "normalisation", "parameters")
    facts = ("data", "split", "data_fingerprint", "num_images", "of_images", "selection", "seed", "precision", "date")
    return {
        "format": _FORMAT,
        "complete": False,
        "network": {"name": opened.name, **{name: known[name] for name in names if name in known}},
        "conditions": {
            **{name: known[name] for name in facts if name in known},
            "suite": known["suite"]["name"],
            "corruptions": "generated" if official is None else "official files",
        },
        "threats": [_describe_threat(folder, records) for folder, records in evaluated.items()],
        "calibration": _calibration(first),
        "corruptions": {},
        "moves": None,
        "not_tried": _not_tried(evaluated.values(), official, settings),
    }


def _describe_threat(folder: Path, records: Records) -> dict[str, Any]:
    """Return the numbers of one threat."""
    results = summary(records)
    return {
        "threat": records.conditions["threat"]["text"],
        "records": printable(str(folder)),
        **{name: results[name] for name in ("clean_accuracy", "clean_accuracy_interval")},
        **{name: results[name] for name in ("robust_accuracy", "robust_accuracy_interval", "accuracy_after")},
        "robust_at_eps": results["robust_at_eps"],
        "worst_class": _worst_class(records),
        "warnings": [*map(str, records.conditions.get("warnings", [])), *result_warnings(records)],
    }


def _worst_class(records: Records) -> dict[str, Any]:
    """Return the class of which the smallest share is robust."""
    shares = [
        (float(records.robust[records.label == label].mean()), label)
        for label in range(len(records.classes))
        if (records.label == label).any()
    ]
    share, label = min(shares)
    count = int((records.label == label).sum())
    low, high = wilson_interval(round(share * count), count)
    return {
        "name": records.classes[label],
        "robust_accuracy": share,
        "robust_accuracy_interval": [low, high],
        "clean_accuracy": float(records.clean_correct[records.label == label].mean()),
        "num_images": count,
    }


def _calibration(records: Records) -> dict[str, float]:
    results = summary(records)
    names = ("ece", "nll", "brier", "mean_confidence")
    keys = [f"{name}_{kind}" for kind in ("clean", "adversarial", "pgd") for name in names]
    return {key: results[key] for key in keys if key in results}


def _not_tried(records: Any, official: Path | None, settings: Mapping[str, Any]) -> list[str]:
    """Return what the sheet knows nothing of."""
    norms = {each.conditions["threat"]["norm"] for each in records}
    lines = []
    if settings["suite"] not in ("standard", "standard+pgd"):
        lines.append(f"AutoAttack: the suite was {settings['suite']}, whose robust accuracy is an upper bound")
    lines += [f"threats in {name}" for norm, name in _NORM_NAMES.items() if norm not in norms]
    if official is None:
        lines.append("the official files of CIFAR-10-C: the corruptions are generated in their style")
    lines += [
        f"rotations beyond {ANGLES[-1]:g}°, shifts beyond {100 * SHIFTS[-1]:.1f} % of the image, changes of scale",
        "attacks that were written for this very network",
        "images of other classes or from another source",
    ]
    return lines


def _are_shares(values: object, count: int) -> bool:
    """Return whether values from a file are so many shares of images."""
    is_list = isinstance(values, list) and len(values) == count
    return is_list and all(is_number(each) and 0 <= each <= 1 for each in values)  # type: ignore[attr-defined]


def _are_moves(values: object) -> bool:
    """Return whether values from a file are what `_Measurement.run` writes of rotations and shifts."""
    if not isinstance(values, dict) or values.get("angles") != list(ANGLES) or values.get("shifts") != list(SHIFTS):
        return False
    accuracies = [values.get("worst_accuracy"), values.get("mean_accuracy")]
    return _are_shares(accuracies, 2) and _are_shares(values.get("worst_accuracy_interval"), 2)


@dataclass
class _Measurement:
    """The part of a sheet that is measured here: corruptions, rotations and shifts."""

    sheet: dict[str, Any]
    opened: Target
    dataset: Dataset
    records: Records
    out: Path
    official: Path | None
    settings: Mapping[str, Any]

    def run(self, progress: bool) -> None:
        """Measure what an earlier call of the same network and images has not, and write the file."""
        device = configure_process(self.opened.config.compute)
        x = self.dataset.read(torch.arange(1)).to(device).float() / 255
        module = place(self.opened.network.module, device, x)
        fingerprint = compute_fingerprint(module, self.dataset.image_shape, device=device)
        self.sheet["network"]["fingerprint"] = fingerprint.to_json()
        ids = torch.from_numpy(np.asarray(self.records.index)).long()
        done = self._earlier(fingerprint)
        corruptions, moves = done.get("corruptions"), done.get("moves")
        if isinstance(corruptions, dict):
            self.sheet["corruptions"] = {
                kind: corruptions[kind] for kind in CORRUPTIONS if _are_shares(corruptions.get(kind), len(SEVERITIES))
            }
        if _are_moves(moves):
            self.sheet["moves"] = moves
        missing = [kind for kind in CORRUPTIONS if kind not in self.sheet["corruptions"]]
        total = num_passes(missing, len(ids))
        common = {"batch_size": self.settings["batch_size"], "device": device}
        with (
            Progress(f"{self.opened.name} corruptions", total=total, unit="images", shown=progress, delay=2.0) as bar,
            evaluating(module),
        ):
            for kind in missing:
                self.sheet["corruptions"][kind] = corrupted_accuracy(
                    module,
                    self.dataset,
                    ids,
                    kind,
                    seed=self.settings["seed"],
                    official=self.official,
                    report=partial(bar.advance, note=kind),
                    **common,
                )
                self._write()
            if self.sheet["moves"] is None:
                worst, mean = moved_accuracy(
                    module, self.dataset, ids, report=partial(bar.advance, note="rotations"), **common
                )
                self.sheet["moves"] = {
                    "angles": list(ANGLES),
                    "shifts": list(SHIFTS),
                    "worst_accuracy": worst,
                    "worst_accuracy_interval": list(wilson_interval(round(worst * len(ids)), len(ids))),
                    "mean_accuracy": mean,
                }
        accuracies = list(self.sheet["corruptions"].values())
        self.sheet["mean_corruption_accuracy"] = float(np.mean(accuracies))
        self.sheet["complete"] = True
        self._write()

    def _earlier(self, fingerprint: Fingerprint) -> dict[str, Any]:
        """Return what the file has of the same network, images and seed; nothing of any other."""
        stored: Any = None
        with suppress(OSError, ValueError):
            stored = json.loads(self.out.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            return {}
        network, conditions = stored.get("network"), stored.get("conditions")
        if not isinstance(network, dict) or not isinstance(conditions, dict):
            return {}
        same = ("data_fingerprint", "num_images", "selection", "seed", "corruptions")
        is_same = all(conditions.get(name) == self.sheet["conditions"].get(name) for name in same)
        is_same &= network.get("checkpoint_sha256") == self.sheet["network"].get("checkpoint_sha256")
        recorded = network.get("fingerprint")
        is_same &= Fingerprint.from_json(recorded) is not None and fingerprint.difference(recorded) is None
        return stored if is_same else {}

    def _write(self) -> None:
        write_text(self.out, json.dumps(self.sheet, indent=1, ensure_ascii=False) + "\n")
