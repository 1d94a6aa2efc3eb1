"""Write a self-contained HTML page that compares runs, in the order of the questions that a reader has."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from robustill.analysis.runs import Evaluation, FinishedRun, read_runs, teacher_eps, with_common_evaluations
from robustill.core import formatting
from robustill.core.errors import ConfigError, RunError, printable
from robustill.core.files import write_text
from robustill.core.outputs import check_output_file
from robustill.core.validation import check_path, describe
from robustill.report.comparison import (
    Comparison,
    compare,
    evaluation_warnings,
    headline,
    reasons,
    temperature_sentences,
)
from robustill.report.dynamics import AlignedRun, align_runs, dynamics_panels, learned_tables
from robustill.report.explorer import make_explorer
from robustill.report.figure_files import write_figures
from robustill.report.gallery import make_gallery
from robustill.report.panels import Panels, run_panels
from robustill.report.transfer import pairwise_similarity, transfer_panel, transfer_warnings
from robustill.runs.transfer_records import TransferRecords

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).with_name("templates")
_STEERING = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a page may not contain, but a name or a file of someone else may."""
_MAX_NAMES = 4
"""Maximum number of runs whose names fit into the title."""


def report(
    runs: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    figures: Path | str | None = None,
    transfer: Path | str | None = None,
) -> Path:
    """Write one self-contained HTML page that compares the runs; the same runs give the same bytes.

    Args:
        runs: run directories, or a single one; the page lists the parts that are missing.
        out: the page, which is written completely or not at all. It replaces only an earlier page.
        figures: a folder for every figure of the page as SVG and PDF, with the data behind it as CSV. It is written
            completely or not at all, and replaces the figures of an earlier call.
        transfer: a folder written by `robustill transfer`, whose results the page then includes.

    Returns:
        out.

    Raises:
        ConfigError: a path is neither text nor a Path.
        RunError: a path is not a run directory, a file in it is damaged, or out or figures cannot be written.
    """
    runs = [runs] if isinstance(runs, str | Path) else runs
    if not isinstance(runs, Sequence):
        raise ConfigError(f"runs is {describe(runs)}, expected a list of run directories")
    runs = [check_path("a run", run) for run in runs]
    out = check_path("out", out)
    figures = None if figures is None else check_path("figures", figures)
    transfer = None if transfer is None else check_path("transfer", transfer)
    check_output_file(out, _is_page, "page of `robustill report`", "--out")
    finished = with_common_evaluations(read_runs(runs))
    comparisons = compare(finished)
    aligned = align_runs(finished, comparisons)
    transfer_records = None if transfer is None else TransferRecords.load(transfer)
    panels = run_panels(finished)
    panels.update(dynamics_panels(aligned))
    panels["transfer"] = [] if transfer_records is None else [transfer_panel(transfer_records)]
    page = _render(finished, comparisons, aligned, panels, transfer_records)
    if figures is not None:
        write_figures([panel for section in panels.values() for panel in section], figures)
    try:
        write_text(out, page)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror}): give the name of a file as --out") from None
    return out


def _is_page(head: bytes) -> bool:
    """Return whether a file begins like a page; the pages of early versions have no generator, only the title."""
    marks = (b'<meta name="generator" content="robustill">', b"<title>Robustness of ")
    return head.startswith(b"<!doctype html>") and any(mark in head.partition(b"</title>")[0] for mark in marks)


def _render(
    runs: Sequence[FinishedRun],
    comparisons: Sequence[Comparison],
    aligned: Sequence[AlignedRun],
    panels: dict[str, Panels],
    transfer_records: TransferRecords | None,
) -> str:
    """Render the page as text."""
    from markupsafe import Markup

    title = f"{len(runs)} runs"
    if len(runs) <= _MAX_NAMES:
        title = formatting.join_with_and([run.name for run in runs])
    galleries = [(run, make_gallery(run.main.records)) for run in runs if run.main is not None]
    explorer = make_explorer(runs, comparisons, aligned)
    script = (_TEMPLATES / "explorer.js").read_text(encoding="utf-8")
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            policy=_content_security_policy(None if explorer is None else script),
            explorer=explorer,
            script=Markup(script),
            style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
            title=title,
            task=_task(runs),
            headline=headline(runs, comparisons),
            reasons=reasons(runs, comparisons),
            comparisons=comparisons,
            runs=[_run_view(run, comparisons) for run in runs],
            notes=[note for run in runs for note in run.missing()],
            conditions=list(_conditions(runs)),
            attack=_common_attack(runs),
            warnings=list(_warnings(runs)),
            stages=list(_stages(runs)),
            figures={
                name: [(Markup(panel.svg()), panel.title) for panel in section] for name, section in panels.items()
            },
            galleries=[(run, each) for run, each in galleries if each is not None],
            outcomes=[(each, _outcome_rows(each)) for each in comparisons],
            reference=aligned[0].run.name if aligned else None,
            learned=learned_tables(aligned),
            temperatures=list(temperature_sentences(runs)),
            transfer=None if transfer_records is None else _transfer_view(transfer_records),
        )
    )
    return _STEERING.sub(lambda match: printable(match[0]), page)


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        # The default depends on the file name and would not escape values in a template that ends in .j2.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = formatting.percent
    environment.filters["duration"] = formatting.duration
    environment.filters["count"] = formatting.count
    environment.filters["value"] = formatting.show_value
    return environment


def _transfer_view(records: TransferRecords) -> dict[str, Any]:
    return {
        "similarity": list(pairwise_similarity(records)),
        "warnings": transfer_warnings(records),
        "conditions": formatting.conditions(records.conditions),
    }


def _content_security_policy(script: str | None) -> str:
    """Return a policy that lets the page load nothing and run no script but this one, if there is one."""
    parts = ["default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"]
    if script is not None:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        parts.append(f"script-src 'sha256-{digest}'")
    return "; ".join([*parts, "base-uri 'none'", "form-action 'none'"])


def _task(runs: Sequence[FinishedRun]) -> str:
    """Return the data sets and the threats of the runs, in a few words."""
    data = formatting.join_with_and(list(dict.fromkeys(str(run.get("data.name", "unknown data")) for run in runs)))
    threats = dict.fromkeys(run.threat for run in runs if run.threat is not None)
    return f"{data}, trained against {formatting.join_with_and(list(threats))}" if threats else data


def _run_view(run: FinishedRun, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    parameters = [each.conditions["parameters"] for each in run.evaluations if "parameters" in each.conditions]
    epochs = {"best": run.best, "last": run.last}
    return {
        "run": run,
        "method": _method(run),
        "commands": _commands(run),
        "teachers": [_teacher(run, each) for each in run.teachers],
        "baselines": formatting.join_with_and([each.baseline.name for each in comparisons if each.student is run]),
        "parameters": parameters[0] if parameters else None,
        "rows": [(each, each.conditions.get("epoch", epochs.get(each.checkpoint))) for each in run.evaluations],
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100),
        "environment": list(formatting.flatten(run.environment or {})),
        "evaluations": [(each, list(_listed_conditions(each))) for each in run.evaluations],
    }


def _method(run: FinishedRun) -> str:
    options = {key: value for key, value in (run.get("method") or {}).items() if key != "name"}
    return f"{run.method} ({formatting.show_value(options)})" if options else run.method


def _commands(run: FinishedRun) -> list[str]:
    """Return the commands that repeat the run and its evaluations in a new directory next to it."""
    config = printable(shlex.quote(str(run.path / "config.yaml")))
    again = printable(shlex.quote(f"{run.path}-again"))
    checkpoints_by_options: dict[str, list[str]] = {}
    for evaluation in run.evaluations:
        options = _evaluate_options(run, evaluation)
        checkpoints_by_options.setdefault(options, []).append(shlex.quote(evaluation.checkpoint))
    commands = [f"robustill train {config} --run {again}"]
    for options, names in checkpoints_by_options.items():
        checkpoints = " ".join(names)
        commands.append(f"robustill evaluate {again} --checkpoint {checkpoints} {options}".rstrip())
    return [*commands, f"robustill report {again} --out report.html"]


def _evaluate_options(run: FinishedRun, evaluation: Evaluation) -> str:
    values = {"suite": evaluation.suite.get("name")}
    if evaluation.split != "test":
        values["split"] = evaluation.split
    if evaluation.is_subset:
        values["num-images"] = len(evaluation.records)
    values["seed"] = evaluation.conditions.get("seed")
    if evaluation.threat not in (None, run.threat):
        values["threat"] = evaluation.conditions["threat"].get("text")
    return " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in values.items() if value is not None)


def _teacher(run: FinishedRun, teacher: dict[str, Any]) -> str:
    spec = str(teacher.get("spec", "unknown teacher"))
    eps, weight, role = teacher_eps(spec), teacher.get("weight", 1.0), teacher.get("role", "robust")
    parts = [] if role == "robust" else [str(role)]
    if eps is not None:
        parts.append(f"eps {formatting.radius(str(run.get('threat.norm', 'linf')), eps)}")
    if weight != 1.0:
        parts.append(f"weight {formatting.show_value(weight)}")
    return f"{spec} ({', '.join(parts)})" if parts else spec


def _listed_conditions(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Yield every condition of an evaluation but the fingerprint of its network, which only a program can read."""
    return formatting.flatten({key: value for key, value in evaluation.conditions.items() if key != "fingerprint"})


def _conditions(runs: Sequence[FinishedRun]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each distinct set of conditions in short parts, with the rows of the table to which it applies."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            rows.setdefault(_condition_parts(evaluation), []).append(f"{run.name} {evaluation.checkpoint}")
    for parts, names in rows.items():
        yield parts, "" if len(rows) == 1 else formatting.join_with_and(names)


def _condition_parts(evaluation: Evaluation) -> tuple[str, ...]:
    conditions = evaluation.conditions
    total = "" if evaluation.of_images is None else f" of {evaluation.of_images}"
    subset = ", a subset" if evaluation.is_subset else ""
    parts = [
        f"{len(evaluation.records)}{total} {evaluation.split} images{subset}",
        "threat not recorded" if evaluation.threat is None else f"threat {evaluation.threat}",
        f"attack {evaluation.attack_settings}",
    ]
    parts += [f"{key} {formatting.show_value(conditions[key])}" for key in ("seed", "precision") if key in conditions]
    if "date" in conditions:
        parts.append(str(conditions["date"]))
    return tuple(parts)


def _common_attack(runs: Sequence[FinishedRun]) -> str | None:
    """Return the attack of the table if all rows have the same one."""
    names = {evaluation.attack for run in runs for evaluation in run.evaluations}
    return names.pop() if len(names) == 1 else None


def _warnings(runs: Sequence[FinishedRun]) -> Iterator[tuple[str, str]]:
    """Yield each warning once, with the runs that it concerns unless it concerns all of them."""
    concerned: dict[str, list[str]] = {}
    for run in runs:
        if run.main is not None:
            for line in evaluation_warnings(run, run.main):
                concerned.setdefault(line, []).append(run.name)
    evaluated = sum(run.main is not None for run in runs)
    for line, names in concerned.items():
        yield line, "" if len(names) == evaluated else formatting.join_with_and(names)


def _stages(runs: Sequence[FinishedRun]) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    for run in runs:
        if run.main is not None and len(run.main.records.stages) > 1:
            results = run.main.results
            yield run.name, [("clean", results["clean_accuracy"]), *results["accuracy_after"].items()]


def _outcome_rows(comparison: Comparison) -> list[tuple[str, int, float]]:
    """Return rows of label, number and share of the images that both runs, one, or neither classifies correctly."""
    labels = {
        "both": "both",
        "only_student": f"only {comparison.student.name}",
        "only_baseline": f"only {comparison.baseline.name}",
        "neither": "neither",
    }
    num_images = comparison.robust.num_images
    return [(label, comparison.outcomes[key], comparison.outcomes[key] / num_images) for key, label in labels.items()]
