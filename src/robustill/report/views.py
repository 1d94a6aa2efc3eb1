"""What the template of the page shows of each arm and run, as texts and rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from robustill.analysis.arms import Arm
from robustill.analysis.evaluations import Evaluation
from robustill.analysis.runs import FinishedRun, find_teacher
from robustill.analysis.sources import StudyFolder
from robustill.core import formatting
from robustill.core.errors import printable
from robustill.core.formatting import percent, points
from robustill.report.commands import evaluate_command, like_main_command, missing_notes, repeat_commands
from robustill.report.comparison import Comparison, after_holm
from robustill.report.curves import best_validation_accuracy
from robustill.report.ranking import RankedRow, Spread, number_cell, percent_cell, shown_ece, time_cell
from robustill.report.verdict import evaluation_warnings

_MAX_NAMES = 4
"""Maximum number of names that fit into a title or a list of those concerned."""
_COLUMNS = (
    ("clean_accuracy", "Clean, %"),
    ("robust_accuracy", "Robust, best epoch, %"),
    ("last_robust_accuracy", "Robust, last epoch, %"),
    ("ece_clean", "ECE, clean"),
)


def title(arms: Sequence[Arm], studies: Sequence[StudyFolder]) -> str:
    """Return the title of the page: the names of few arms, the names of the studies, or the number of arms."""
    if studies:
        return formatting.join_with_and([study.name for study in studies])
    names = [arm.name for arm in arms if not arm.is_teacher] or [arm.name for arm in arms]
    if len(names) > _MAX_NAMES:
        return f"{len(names)} configurations" if any(len(arm.runs) > 1 for arm in arms) else f"{len(names)} runs"
    seeds = max(len(arm.runs) for arm in arms if arm.name in names)
    return formatting.join_with_and(names) + (f", {seeds} seeds" if seeds > 1 else "")


def task(runs: Sequence[FinishedRun]) -> str:
    """Return the data sets and the threats of the runs, in a few words."""
    data = formatting.join_with_and(list(dict.fromkeys(str(run.get("data.name", "unknown data")) for run in runs)))
    threats = dict.fromkeys(run.threat for run in runs if run.threat is not None)
    return f"{data}, trained against {formatting.join_with_and(list(threats))}" if threats else data


def question(comparisons: Sequence[Comparison], arms: Sequence[Arm]) -> str:
    """Return the question that the headline answers."""
    if any(each.student.runs[0].teachers for each in comparisons):
        return "Is the student better?"
    return "Which is the most robust?" if len(arms) > 1 else "How robust is it?"


def ranking_views(rows: Sequence[RankedRow], comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return the rows of the ranked table: name, what is said of it in small print, and the cells."""
    significant = after_holm(comparisons)
    ece, attack = shown_ece(rows)
    views = []
    for row in rows:
        cells = []
        for name, heading in (*_COLUMNS, (ece, f"ECE, {attack}")):
            spread = row.numbers.get(name)
            text = number_cell(spread) if name.startswith("ece") else percent_cell(spread)
            interval = "" if name.startswith("ece") else _interval(spread)
            cells.append({"heading": heading, "text": text, "interval": interval, "is_main": name == "robust_accuracy"})
        gap = row.gap
        against = "" if row.comparison is None else f"to {row.comparison.baseline.name}"
        interval = "" if gap is None else f"{points(gap.low)} to {points(gap.high)}"
        views.append(
            {
                "rank": row.rank,
                "name": row.arm.name,
                "about": _about(row),
                "cells": cells,
                "difference": "–" if gap is None else points(gap.difference),
                "interval": interval,
                "against": against,
                "significant": row.comparison in significant,
                "time": time_cell(row),
            }
        )
    return views


def _interval(spread: Spread | None) -> str:
    return "" if spread is None or math.isnan(spread.low) else f"{100 * spread.low:.1f}–{100 * spread.high:.1f}"


def _about(row: RankedRow) -> str:
    """Say how many seeds an arm has, which checkpoint it shows, and what is known of one that was not evaluated."""
    number, of = len(row.runs), len(row.arm.runs)
    parts = [f"{number} seeds" if number == of else f"{number} of {of} seeds"] if of > 1 else []
    if row.rank is not None:
        run = row.runs[0]
        if run.average is not None and run.main is not None:
            parts.append(f"checkpoint {run.main.checkpoint}")
        return " · ".join(parts)
    trained_against = row.runs[0].threat
    threat = f" under its own threat {trained_against}" if trained_against is not None else ""
    values = [value for each in row.arm.runs if (value := best_validation_accuracy(each)) is not None]
    parts.append("not evaluated like the others")
    if values:
        parts.append(f"{percent(sum(values) / len(values))} robust on validation images{threat}")
    return " · ".join(parts)


def run_view(run: FinishedRun, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return everything that the table of all evaluations and the last section show of one run."""
    parameters = [each.conditions["parameters"] for each in run.evaluations if "parameters" in each.conditions]
    epochs = {"best": run.best, "last": run.last}
    baselines = [each.baseline.name for each in comparisons if run.path in [own.path for own in each.student.runs]]
    return {
        "run": run,
        "folder": printable(str(run.path)),
        "method": _method(run),
        "commands": repeat_commands(run),
        "teachers": [_teacher(run, each) for each in run.teachers],
        "baselines": formatting.join_with_and(baselines),
        "parameters": parameters[0] if parameters else None,
        "rows": [
            (
                each,
                each.attack if run.is_network else each.checkpoint,
                each.conditions.get("epoch", epochs.get(each.checkpoint)),
            )
            for each in run.evaluations
        ],
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100),
        "environment": list(formatting.flatten(run.environment or {})),
        "evaluations": [(each, list(_listed_conditions(each))) for each in run.evaluations],
    }


def _method(run: FinishedRun) -> str:
    if run.is_network:
        return str(run.get("model.name", "network"))
    options = {key: value for key, value in (run.get("method") or {}).items() if key != "name"}
    return f"method {run.method} ({formatting.show_value(options)})" if options else f"method {run.method}"


def _teacher(run: FinishedRun, teacher: dict[str, Any]) -> str:
    spec = str(teacher.get("spec", "unknown teacher"))
    found, weight, role = find_teacher(spec, beside=run.path), teacher.get("weight", 1.0), teacher.get("role", "robust")
    parts = [] if role == "robust" else [str(role)]
    if found is not None and found.eps is not None:
        parts.append(f"eps {formatting.radius(str(run.get('threat.norm', 'linf')), found.eps)}")
    if weight != 1.0:
        parts.append(f"weight {formatting.show_value(weight)}")
    return f"{spec} ({', '.join(parts)})" if parts else spec


def _listed_conditions(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Yield every condition of an evaluation but the fingerprint of its network, which only a program can read."""
    return formatting.flatten({key: value for key, value in evaluation.conditions.items() if key != "fingerprint"})


def full_conditions(runs: Sequence[FinishedRun]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each distinct set of conditions in short parts, with the rows of the table to which it applies."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            checkpoint = "" if run.is_network else f" {evaluation.checkpoint}"
            rows.setdefault(condition_parts(evaluation), []).append(f"{run.name}{checkpoint}")
    for parts, names in rows.items():
        yield parts, "" if len(rows) == 1 else _names(names, len(names) + 1)


def condition_parts(evaluation: Evaluation) -> tuple[str, ...]:
    """Return the conditions of an evaluation in short parts."""
    conditions = evaluation.conditions
    total = "" if evaluation.of_images is None else f" of {evaluation.of_images}"
    subset = ", a subset" if evaluation.is_subset else ""
    first = "the first " if evaluation.is_first else ""
    parts = [
        f"{first}{len(evaluation.records)}{total} {evaluation.split} images{subset}",
        "threat not recorded" if evaluation.threat is None else f"threat {evaluation.threat}",
        f"attack {evaluation.attack_settings}",
    ]
    parts += [f"{key} {formatting.show_value(conditions[key])}" for key in ("seed", "precision") if key in conditions]
    if "date" in conditions:
        parts.append(str(conditions["date"]))
    return tuple(parts)


def shipped_parts(runs: Sequence[FinishedRun]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each file that was attacked as it is shipped: by what, what was not tried, its size and its latency."""
    for run in runs:
        for evaluation in run.evaluations:
            if parts := formatting.as_shipped(evaluation.conditions):
                yield evaluation.checkpoint, parts


def warning_lines(runs: Sequence[FinishedRun]) -> Iterator[tuple[str, str]]:
    """Yield each warning once, with the runs that it concerns unless it concerns all of them."""
    concerned: dict[str, list[str]] = {}
    for run in runs:
        if run.main is not None:
            for line in evaluation_warnings(run.main):
                concerned.setdefault(line, []).append(run.name)
    evaluated = sum(run.main is not None for run in runs)
    for line, names in concerned.items():
        yield line, _names(names, evaluated)


def missing_lines(rows: Sequence[RankedRow], common: Evaluation | None) -> Iterator[str]:
    """Yield what the page cannot show of the arms, and the commands that would add it; once for all seeds of one."""
    for row in rows:
        run = row.arm.runs[0]
        is_comparable = row.rank is not None or common is None or run.is_network
        notes: dict[str, list[str]] = {}
        for each in row.arm.runs:
            for kind, note in missing_notes(each):
                notes.setdefault(kind, []).append(note)
        if not is_comparable:
            notes.pop("evaluation", None)
        for same in notes.values():
            yield _alike(same[0], len(same))
        evaluated = [each for each in row.runs if each.main is not None]
        lacking = [each for each in evaluated if each.at_last is None and not each.is_network]
        if 0 < len(lacking) < len(evaluated):
            command = evaluate_command(lacking[0], checkpoints=[lacking[0].last_checkpoint])
            reason = f"{lacking[0].name} was not evaluated at its last epoch, so {row.arm.name} has no number there"
            yield f"{reason}: run {command}"
        left_out = [each for each in row.arm.evaluated if each not in row.runs]
        if left_out and common is not None:
            reason = f"{left_out[0].name} was not evaluated like the others, and does not count for {row.arm.name}"
            yield _alike(f"{reason}: run {like_main_command(left_out[0], common)}", len(left_out))
        if not is_comparable and common is not None:
            command = like_main_command(run, common)
            yield f"{row.arm.name} was not evaluated like the others, and has no rank: run {command}"


def _alike(note: str, number: int) -> str:
    """Return a note on one run, which says so if it holds for several."""
    return note if number == 1 else f"{note} ({number} runs alike)"


def _names(names: Sequence[str], out_of: int) -> str:
    """Join names; none if they are all, and their number if they are many."""
    names = list(dict.fromkeys(names))
    if len(names) == out_of:
        return ""
    return formatting.join_with_and(names) if len(names) <= 2 * _MAX_NAMES else f"{len(names)} of them"
