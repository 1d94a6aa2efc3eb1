"""What RobustBench's leaderboard asks for in the JSON file of an entry, as far as an evaluation knows it."""

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


def robustbench_facts(records: Records) -> tuple[dict[str, Any], list[str]]:
    """The fields of model_info/DATASET/NORM/ID.json, null where an evaluation cannot know them.

    `autoattack_acc` is given for the suite "standard" on all test images alone, in percent, without the PGD stage that
    our suite adds.

    Returns:
        The fields, and what is missing in words.
    """
    known, results = records.conditions, summary(records)
    suite, number, of = known["suite"]["name"], known["num_images"], known["of_images"]
    whole = known["split"] == "test" and number == of
    architecture = known.get("architecture")
    ours = str(architecture).partition(" ")[0] in MODELS
    facts: dict[str, Any] = {
        "link": None,
        "name": None,
        "authors": None,
        "additional_data": None,
        # Our architectures pass an image once; what somebody's function does with it is unknown.
        "number_forward_passes": 1 if ours else None,
        "dataset": known["data"],
        "venue": None,
        "architecture": architecture,
        "eps": known["threat"]["text"].partition(":")[2],
        "clean_acc": _percent(results["clean_accuracy"]) if whole else None,
        "reported": None,
        "autoattack_acc": None,
    }
    missing = [key for key, value in facts.items() if value is None and key != "autoattack_acc"]
    if suite == "standard" and whole and known["precision"] == "fp32":
        last = [stage for stage in records.stages if stage != find_suite(suite).stages[0].name][-1]
        facts["autoattack_acc"] = _percent(results["accuracy_after"][last])
    else:
        missing.append(
            f"autoattack_acc (it takes --suite standard in exact precision on all test images, not {suite} "
            f"in {known['precision']} on {number} of {of} {known['split']} images)"
        )
    return facts, missing


def write_robustbench(records: Records, path: Path) -> list[str]:
    """Write the file; what is left to be filled in by hand is returned."""
    facts, missing = robustbench_facts(records)
    write_text(path, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return missing


def check_place(path: Path) -> None:
    """Check, before hours are spent, that the file is new or one whose blanks nobody has filled in.

    Raises:
        RunError: something else is there.
    """
    check_output_file(path, _is_blank_entry, "entry of --robustbench-json with its blanks left", "--robustbench-json")


def _is_blank_entry(content: bytes) -> bool:
    try:
        page = json.loads(content)
        return all(page[key] is None for key in ("link", "name", "authors", "venue", "reported"))
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def refuse_several(number: int) -> None:
    """Before hours are spent.

    Raises:
        ConfigError: more than one evaluation is asked for.
    """
    if number != 1:
        raise ConfigError(
            f"--robustbench-json takes one evaluation, but {number} are asked for: "
            "give one --checkpoint, such as best, and one threat"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
