"""The JSON file that RobustBench's leaderboard asks for, filled in as far as the records of an evaluation allow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robustill.analysis.summary import summary
from robustill.attacks.suites import find_suite
from robustill.core.errors import ConfigError
from robustill.core.files import write_text
from robustill.core.outputs import check_output_file
from robustill.models import MODELS
from robustill.runs.records import Records


def robustbench_entry(records: Records) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of model_info/DATASET/NORM/ID.json, with None for those that an evaluation cannot know.

    `autoattack_acc` is given for the suite "standard" on all test images only, in percent, without the PGD stage that
    our suite adds.

    Returns:
        The fields, and a list of those that are missing.
    """
    conditions, results = records.conditions, summary(records)
    suite, precision, split = conditions["suite"]["name"], conditions["precision"], conditions["split"]
    num_images, of_images = conditions["num_images"], conditions["of_images"]
    is_whole = split == "test" and num_images == of_images
    architecture = conditions.get("architecture")
    is_ours = str(architecture).partition(" ")[0] in MODELS
    entry: dict[str, Any] = {
        "link": None,
        "name": None,
        "authors": None,
        "additional_data": None,
        # Our architectures need one forward pass for an image; for a user's function the number is unknown.
        "number_forward_passes": 1 if is_ours else None,
        "dataset": conditions["data"],
        "venue": None,
        "architecture": architecture,
        "eps": conditions["threat"]["text"].partition(":")[2],
        "clean_acc": _percent(results["clean_accuracy"]) if is_whole else None,
        "reported": None,
        "autoattack_acc": None,
    }
    missing = [key for key, value in entry.items() if value is None and key != "autoattack_acc"]
    if suite == "standard" and is_whole and precision == "fp32":
        pgd_stage = find_suite(suite).stages[0].name
        autoattack_stages = [stage for stage in records.stages if stage != pgd_stage]
        entry["autoattack_acc"] = _percent(results["accuracy_after"][autoattack_stages[-1]])
    else:
        missing.append(
            f"autoattack_acc (it takes --suite standard in exact precision on all test images, not {suite} "
            f"in {precision} on {num_images} of {of_images} {split} images)"
        )
    return entry, missing


def write_robustbench(records: Records, path: Path) -> list[str]:
    """Write the file; return the fields that must be filled in by hand."""
    entry, missing = robustbench_entry(records)
    write_text(path, json.dumps(entry, indent=1, ensure_ascii=False) + "\n")
    return missing


def check_place(path: Path) -> None:
    """Check, before the attacks start, that the file is new, or an entry whose blanks nobody has filled in.

    Raises:
        RunError: there is another file, or no place for the file.
    """
    check_output_file(path, _is_blank_entry, "entry of --robustbench-json with its blanks left", "--robustbench-json")


def _is_blank_entry(content: bytes) -> bool:
    try:
        page = json.loads(content)
        return all(page[key] is None for key in ("link", "name", "authors", "venue", "reported"))
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def check_single_evaluation(number: int) -> None:
    """Check, before the attacks start, that the file is requested for one evaluation.

    Raises:
        ConfigError: several evaluations are requested.
    """
    if number != 1:
        raise ConfigError(
            f"--robustbench-json takes one evaluation, but {number} are requested: "
            "give one --checkpoint, such as best, and one threat"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
