"""The page of a robustness sheet: what a network withstands, measured in many ways, and what was not tried."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustill.core import formatting
from robustill.core.errors import RunError
from robustill.core.files import write_text
from robustill.core.formatting import percent
from robustill.core.outputs import check_output_file
from robustill.report.page import content_security_policy, environment, is_page, printable_page, read_style
from robustill.runs.records import FIXED_ATTACK, attacked_kind

_GROUPS = {
    "Noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "Blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "Weather": ("snow", "frost", "fog", "brightness"),
    "Digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}


def write_sheet(sheet: Mapping[str, Any], out: Path) -> Path:
    """Write the page of a sheet that `measure_sheet` returned; the same sheet gives the same bytes.

    Args:
        sheet: the numbers.
        out: the page, which is written completely or not at all. It replaces only an earlier page.

    Returns:
        out.

    Raises:
        RunError: out is another file or cannot be written.
    """
    from markupsafe import Markup

    check_sheet_place(out)
    page = (
        environment()
        .get_template("sheet.html.j2")
        .render(
            policy=content_security_policy(None),
            style=Markup(read_style()),
            sheet=sheet,
            lines=sheet_lines(sheet),
            threats=[_threat_row(each) for each in sheet["threats"]],
            groups=_corruption_groups(sheet["corruptions"]),
            conditions=_conditions(sheet),
            warnings=list(dict.fromkeys(line for each in sheet["threats"] for line in each["warnings"])),
        )
    )
    write_text(out, printable_page(page))
    return out


def check_sheet_place(out: Path) -> None:
    """Check that a page can be written there, before anything is measured.

    Raises:
        RunError: it cannot, or another file is there.
    """
    check_output_file(out, is_page, "page of `robustill sheet`", "--out")
    if out.suffix == ".json":
        raise RunError(f"{out} is the name of the numbers, which are written beside the page: expected a name in .html")


def _interval(values: list[float]) -> str:
    return f"{100 * values[0]:.1f}–{100 * values[1]:.1f}"


def sheet_lines(sheet: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the first table: what was measured, the number, and its interval or what it is of."""
    first = sheet["threats"][0]
    worst_class, moves, calibration = first["worst_class"], sheet["moves"], sheet["calibration"]
    kind, accuracies = min(sheet["corruptions"].items(), key=lambda each: sum(each[1]))
    worst_kind = f"worst: {kind.replace('_', ' ')}, {percent(sum(accuracies) / len(accuracies))}"
    attack = attacked_kind([calibration])
    clean = percent(first["clean_accuracy"]), _interval(first["clean_accuracy_interval"])
    attacked = [
        (f"Attacked, {each['threat']}", percent(each["robust_accuracy"]), _interval(each["robust_accuracy_interval"]))
        for each in sheet["threats"]
    ]
    return [
        ("Clean images", *clean),
        *attacked,
        ("Corrupted, mean of 15 kinds", percent(sheet["mean_corruption_accuracy"]), worst_kind),
        (
            "Rotated and shifted, worst of each image",
            percent(moves["worst_accuracy"]),
            _interval(moves["worst_accuracy_interval"]),
        ),
        (
            f"Worst class under attack, {worst_class['name']}",
            percent(worst_class["robust_accuracy"]),
            f"{_interval(worst_class['robust_accuracy_interval'])}, {worst_class['num_images']} images",
        ),
        ("Calibration error, clean", f"{calibration['ece_clean']:.3f}", "ECE"),
        (
            f"Calibration error, {FIXED_ATTACK if attack == 'pgd' else 'attacked'}",
            f"{calibration[f'ece_{attack}']:.3f}",
            "ECE",
        ),
    ]


def _threat_row(threat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a threat: accuracy after each attack, and the curve of one attack over radii."""
    return {
        "threat": threat["threat"],
        "robust": percent(threat["robust_accuracy"]),
        "interval": _interval(threat["robust_accuracy_interval"]),
        "after": ", ".join(f"{name} {percent(share)}" for name, share in threat["accuracy_after"].items()),
        "curve": ", ".join(
            f"{each['eps']:.3g}: {percent(each['robust_accuracy'])}" for each in threat["robust_at_eps"]
        ),
        "records": threat["records"],
    }


def _corruption_groups(corruptions: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """Return the corruptions by their group; each cell has its text and its shade, from 0 to 100."""
    groups = []
    for name, kinds in _GROUPS.items():
        rows = []
        for kind in kinds:
            accuracies = corruptions[kind]
            cells = [{"text": f"{100 * each:.1f}", "shade": round(100 * each)} for each in accuracies]
            mean = sum(accuracies) / len(accuracies)
            rows.append({"name": kind.replace("_", " "), "cells": cells, "mean": f"{100 * mean:.1f}"})
        groups.append({"name": name, "rows": rows})
    return groups


def _conditions(sheet: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the conditions of the numbers and the facts of the network, as rows."""
    flat = {**sheet["network"], **sheet["conditions"]}
    flat.pop("fingerprint", None)
    return [(name.replace("_", " "), formatting.show_value(value)) for name, value in flat.items()]
