"""The page: what the runs hold, arranged in the order in which a reader asks."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from robustill.analysis.runs import Evaluation, FinishedRun, read_runs, teacher_eps
from robustill.core import formatting
from robustill.core.errors import RunError, printable
from robustill.core.files import write_text
from robustill.core.outputs import check_output_file
from robustill.report import dynamics
from robustill.report.comparison import Comparison, compare, doubts, headline, reasons, temperatures
from robustill.report.explorer import explorer
from robustill.report.figure_files import write_figures
from robustill.report.gallery import gallery
from robustill.report.panels import Panels, panels
from robustill.report.transfer import alike, transfer_doubts, transfer_panel
from robustill.runs.transfer_records import TransferRecords

_TEMPLATES = Path(__file__).with_name("templates")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What no page may hold, and a name or a file of somebody else may."""
_MOST_NAMED = 4
"""Runs whose names fit a title."""


def report(
    runs: Sequence[Path | str], out: Path | str, *, figures: Path | None = None, transfer: Path | None = None
) -> Path:
    """One self-contained HTML page that compares the runs; the same bytes for the same runs.

    Args:
        runs: run directories; parts that have not been made yet are named as missing.
        out: the page; it is there whole or not at all, and takes the place of an earlier page, of nothing else.
        figures: a folder for every figure of the page as SVG and PDF, with the data behind it as CSV; it is there
            whole or not at all, and takes the place of an earlier one.
        transfer: a folder that `robustill transfer` made, to be shown too.

    Returns:
        out.

    Raises:
        RunError: a path is no run directory, a file in it is damaged, or out or figures cannot be written.
    """
    out = Path(out)
    check_output_file(out, _is_page, "page of `robustill report`", "--out")
    found = read_runs(runs)
    comparisons = compare(found)
    beside = dynamics.side_by_side(found, comparisons)
    shown = panels(found) | dynamics.figures(beside)
    transferred = None if transfer is None else TransferRecords.load(transfer)
    shown["transfer"] = [] if transferred is None else [transfer_panel(transferred)]
    page = _render(found, comparisons, beside, shown, transferred)
    if figures is not None:
        write_figures([panel for row in shown.values() for panel in row], figures)
    try:
        write_text(out, page)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror}): give the name of a file as --out") from None
    return out


def _is_page(head: bytes) -> bool:
    """Return whether a file begins like a page; those of before there was a generator have the title alone."""
    marks = (b'<meta name="generator" content="robustill">', b"<title>Robustness of ")
    return head.startswith(b"<!doctype html>") and any(mark in head.partition(b"</title>")[0] for mark in marks)


def _render(
    runs: Sequence[FinishedRun],
    comparisons: Sequence[Comparison],
    beside: Sequence[dynamics.Beside],
    figures: dict[str, Panels],
    transferred: TransferRecords | None,
) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        # By hand: the default looks at the file name and would leave .j2 unescaped.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": formatting.percent,
        "duration": formatting.duration,
        "count": formatting.count,
        "value": formatting.show_value,
    }
    explored = explorer(runs, comparisons, beside)
    script = (_TEMPLATES / "explorer.js").read_text(encoding="utf-8")
    page = environment.get_template("page.html.j2").render(
        policy=_policy(script if explored is not None else None),
        explorer=explored,
        script=Markup(script),
        style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        title=formatting.listed([run.name for run in runs]) if len(runs) <= _MOST_NAMED else f"{len(runs)} runs",
        task=_task(runs),
        headline=headline(runs, comparisons),
        reasons=reasons(runs, comparisons),
        comparisons=comparisons,
        runs=[_run_view(run, comparisons) for run in runs],
        notes=[note for run in runs for note in run.missing()],
        conditions=list(_conditions(runs)),
        attack=_common_attack(runs),
        doubts=list(_doubts(runs)),
        stages=list(_stages(runs)),
        figures={name: [(Markup(panel.svg()), panel.title) for panel in row] for name, row in figures.items()},
        galleries=[(run, shown) for run in runs if run.main is not None and (shown := gallery(run.main.records))],
        outcomes=[(each, _outcomes(each)) for each in comparisons],
        reference=beside[0].run.name if beside else None,
        learned=dynamics.outcomes(beside),
        temperatures=list(temperatures(runs)),
        transfer=None if transferred is None else _transfer_view(transferred),
    )
    return _CONTROLS.sub(lambda found: printable(found[0]), page)


def _transfer_view(records: TransferRecords) -> dict[str, Any]:
    return {
        "alike": list(alike(records)),
        "doubts": transfer_doubts(records),
        "conditions": formatting.conditions(records.conditions),
    }


def _policy(script: str | None) -> str:
    """What the page may do: show what is in it and, if it has a script, run this one alone."""
    parts = ["default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"]
    if script is not None:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        parts.append(f"script-src 'sha256-{digest}'")
    return "; ".join([*parts, "base-uri 'none'", "form-action 'none'"])


def _task(runs: Sequence[FinishedRun]) -> str:
    """Data and threats, in a few words."""
    data = formatting.listed(list(dict.fromkeys(str(run.get("data.name", "unknown data")) for run in runs)))
    threats = dict.fromkeys(run.threat for run in runs if run.threat is not None)
    return f"{data}, trained against {formatting.listed(list(threats))}" if threats else data


def _run_view(run: FinishedRun, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    parameters = next(
        (each.conditions["parameters"] for each in run.evaluations if "parameters" in each.conditions), None
    )
    epochs = {"best": run.best, "last": run.last}
    return {
        "run": run,
        "method": _method(run),
        "commands": _commands(run),
        "teachers": [_teacher(run, each) for each in run.teachers],
        "baselines": formatting.listed([each.baseline.name for each in comparisons if each.student is run]),
        "parameters": parameters,
        "rows": [(each, each.conditions.get("epoch", epochs.get(each.checkpoint))) for each in run.evaluations],
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100),
        "environment": list(formatting.flat(run.environment or {})),
        "evaluations": [(each, list(formatting.flat(each.conditions))) for each in run.evaluations],
    }


def _method(run: FinishedRun) -> str:
    options = {key: value for key, value in (run.get("method") or {}).items() if key != "name"}
    return f"{run.method} ({formatting.show_value(options)})" if options else run.method


def _commands(run: FinishedRun) -> list[str]:
    """What repeats the run and its evaluations in a directory beside it."""
    again = printable(shlex.quote(f"{run.path}-again"))
    evaluate: dict[str, list[str]] = {}
    for evaluation in run.evaluations:
        known = evaluation.conditions
        options = [
            f"--{option} {shlex.quote(str(value))}"
            for option, value in (
                ("suite", evaluation.suite.get("name")),
                ("split", evaluation.split if evaluation.split != "test" else None),
                ("num-images", len(evaluation.records) if evaluation.is_subset else None),
                ("seed", known.get("seed")),
                ("threat", known["threat"].get("text") if evaluation.threat not in (None, run.threat) else None),
            )
            if value is not None
        ]
        evaluate.setdefault(" ".join(options), []).append(shlex.quote(evaluation.checkpoint))
    return [
        f"robustill train {printable(shlex.quote(str(run.path / 'config.yaml')))} --run {again}",
        *(f"robustill evaluate {again} --checkpoint {' '.join(each)} {how}".rstrip() for how, each in evaluate.items()),
        f"robustill report {again} --out report.html",
    ]


def _teacher(run: FinishedRun, teacher: dict[str, Any]) -> str:
    spec = str(teacher.get("spec", "unknown teacher"))
    eps, weight, role = teacher_eps(spec), teacher.get("weight", 1.0), teacher.get("role", "robust")
    parts = [] if role == "robust" else [str(role)]
    if eps is not None:
        parts.append(f"eps {formatting.radius(str(run.get('threat.norm', 'linf')), eps)}")
    if weight != 1.0:
        parts.append(f"weight {formatting.show_value(weight)}")
    return f"{spec} ({', '.join(parts)})" if parts else spec


def _conditions(runs: Sequence[FinishedRun]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each distinct set of conditions in short parts, with the rows of the table that it holds for."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            rows.setdefault(_parts(evaluation), []).append(f"{run.name} {evaluation.checkpoint}")
    for parts, names in rows.items():
        yield parts, "" if len(rows) == 1 else formatting.listed(names)


def _parts(evaluation: Evaluation) -> tuple[str, ...]:
    conditions, n = evaluation.conditions, len(evaluation.records)
    of = "" if evaluation.of_images is None else f" of {evaluation.of_images}"
    parts = [
        f"{n}{of} {evaluation.split} images{', a subset' if evaluation.is_subset else ''}",
        "threat not recorded" if evaluation.threat is None else f"threat {evaluation.threat}",
        f"attack {evaluation.attack_settings}",
    ]
    parts += [f"{key} {formatting.show_value(conditions[key])}" for key in ("seed", "precision") if key in conditions]
    if "date" in conditions:
        parts.append(str(conditions["date"]))
    return tuple(parts)


def _common_attack(runs: Sequence[FinishedRun]) -> str | None:
    """The attack of every row of the table, if it is one."""
    names = {evaluation.attack for run in runs for evaluation in run.evaluations}
    return names.pop() if len(names) == 1 else None


def _doubts(runs: Sequence[FinishedRun]) -> Iterator[tuple[str, str]]:
    """Each doubt once, with the runs that it is about unless it is about all of them."""
    about: dict[str, list[str]] = {}
    for run in runs:
        if run.main is not None:
            for line in doubts(run, run.main):
                about.setdefault(line, []).append(run.name)
    evaluated = sum(run.main is not None for run in runs)
    for line, names in about.items():
        yield line, "" if len(names) == evaluated else formatting.listed(names)


def _stages(runs: Sequence[FinishedRun]) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    for run in runs:
        if run.main is not None and len(run.main.records.stages) > 1:
            results = run.main.results
            yield run.name, [("clean", results["clean_accuracy"]), *results["accuracy_after"].items()]


def _outcomes(found: Comparison) -> list[tuple[str, int, float]]:
    labels = {
        "both": "both hold",
        "only_student": f"only {found.student.name} holds",
        "only_baseline": f"only {found.baseline.name} holds",
        "neither": "neither holds",
    }
    return [
        (label, found.outcomes[key], found.outcomes[key] / found.robust.num_images) for key, label in labels.items()
    ]
