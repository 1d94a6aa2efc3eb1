"""The page: what the runs hold, arranged in the order in which a reader asks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from robustill import atomic
from robustill.errors import RunError
from robustill.report import dynamics, figures, words
from robustill.report.pictures import gallery
from robustill.report.runs import Evaluation, Run, read_runs, teacher_eps
from robustill.report.verdict import Comparison, compare, doubts, headline, reasons, temperatures

_TEMPLATES = Path(__file__).with_name("templates")
_MOST_NAMED = 4
"""Runs whose names fit a title."""
_MOST_CLASSES = 30
"""More than these would not be told apart in one panel."""


def report(runs: Sequence[Path | str], out: Path) -> Path:
    """One self-contained HTML page that compares the runs; the same bytes for the same runs.

    Args:
        runs: run directories; parts that have not been made yet are named as missing.
        out: the page; it is there whole or not at all.

    Returns:
        out.

    Raises:
        RunError: a path is no run directory, a file in it is damaged, or out cannot be written; then nothing is.
    """
    page = render(read_runs(runs))
    try:
        atomic.write_text(out, page)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror}): give the name of a file as --out") from None
    return out


def render(runs: Sequence[Run]) -> str:
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
        "percent": words.percent,
        "duration": words.duration,
        "count": words.count,
        "value": words.show_value,
    }
    comparisons = compare(runs)
    beside = dynamics.side_by_side(runs, comparisons)
    panels = _figures(runs) | dynamics.figures(beside)
    page = environment.get_template("page.html.j2").render(
        style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        title=words.listed([run.name for run in runs]) if len(runs) <= _MOST_NAMED else f"{len(runs)} runs",
        task=_task(runs),
        headline=headline(runs, comparisons),
        reasons=reasons(runs, comparisons),
        comparisons=comparisons,
        runs=[_run_view(run) for run in runs],
        notes=[note for run in runs for note in run.missing()],
        conditions=list(_conditions(runs)),
        attack=_common_attack(runs),
        doubts=list(_doubts(runs)),
        stages=list(_stages(runs)),
        figures={name: [(Markup(svg), title) for svg, title in row] for name, row in panels.items()},
        galleries=[(run, shown) for run in runs if run.main is not None and (shown := gallery(run.main.records))],
        outcomes=[(each, _outcomes(each)) for each in comparisons],
        reference=beside[0].run.name if beside else None,
        learned=dynamics.outcomes(beside),
        temperatures=list(temperatures(runs)),
    )
    return page


def _task(runs: Sequence[Run]) -> str:
    """Data and threats, in a few words."""
    data = words.listed(list(dict.fromkeys(str(run.get("data.name", "unknown data")) for run in runs)))
    threats = dict.fromkeys(run.threat for run in runs if run.threat is not None)
    return f"{data}, trained against {words.listed(list(threats))}" if threats else data


def _run_view(run: Run) -> dict[str, Any]:
    parameters = next(
        (each.conditions["parameters"] for each in run.evaluations if "parameters" in each.conditions), None
    )
    epochs = {"best": run.best, "last": run.last}
    return {
        "run": run,
        "method": _method(run),
        "commands": _commands(run),
        "teachers": [_teacher(run, each) for each in run.teachers],
        "parameters": parameters,
        "rows": [(each, each.conditions.get("epoch", epochs.get(each.checkpoint))) for each in run.evaluations],
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100),
        "environment": list(words.flat(run.environment or {})),
        "evaluations": [(each, list(words.flat(each.conditions))) for each in run.evaluations],
    }


def _method(run: Run) -> str:
    options = {key: value for key, value in (run.get("method") or {}).items() if key != "name"}
    return f"{run.method} ({words.show_value(options)})" if options else run.method


def _commands(run: Run) -> list[str]:
    """What repeats the run and its evaluations in a directory beside it."""
    again = shlex.quote(f"{run.path}-again")
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
        f"robustill train {shlex.quote(str(run.path / 'config.yaml'))} --run {again}",
        *(f"robustill evaluate {again} --checkpoint {' '.join(each)} {how}".rstrip() for how, each in evaluate.items()),
        f"robustill report {again} --out report.html",
    ]


def _teacher(run: Run, teacher: dict[str, Any]) -> str:
    spec = str(teacher.get("spec", "unknown teacher"))
    eps, weight, role = teacher_eps(spec), teacher.get("weight", 1.0), teacher.get("role", "robust")
    parts = [] if role == "robust" else [str(role)]
    if eps is not None:
        parts.append(f"eps {words.radius(str(run.get('threat.norm', 'linf')), eps)}")
    if weight != 1.0:
        parts.append(f"weight {words.show_value(weight)}")
    return f"{spec} ({', '.join(parts)})" if parts else spec


def _conditions(runs: Sequence[Run]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each distinct set of conditions in short parts, with the rows of the table that it holds for."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            rows.setdefault(_parts(evaluation), []).append(f"{run.name} {evaluation.checkpoint}")
    for parts, names in rows.items():
        yield parts, "" if len(rows) == 1 else words.listed(names)


def _parts(evaluation: Evaluation) -> tuple[str, ...]:
    conditions, n = evaluation.conditions, len(evaluation.records)
    of = "" if evaluation.of_images is None else f" of {evaluation.of_images}"
    parts = [
        f"{n}{of} {evaluation.split} images{', a subset' if evaluation.is_subset else ''}",
        "threat not recorded" if evaluation.threat is None else f"threat {evaluation.threat}",
        f"attack {evaluation.attack_settings}",
    ]
    parts += [f"{key} {words.show_value(conditions[key])}" for key in ("seed", "precision") if key in conditions]
    if "date" in conditions:
        parts.append(str(conditions["date"]))
    return tuple(parts)


def _common_attack(runs: Sequence[Run]) -> str | None:
    """The attack of every row of the table, if it is one."""
    names = {evaluation.attack for run in runs for evaluation in run.evaluations}
    return names.pop() if len(names) == 1 else None


def _doubts(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """Each doubt once, with the runs that it is about unless it is about all of them."""
    about: dict[str, list[str]] = {}
    for run in runs:
        if run.main is not None:
            for line in doubts(run, run.main):
                about.setdefault(line, []).append(run.name)
    evaluated = sum(run.main is not None for run in runs)
    for line, names in about.items():
        yield line, "" if len(names) == evaluated else words.listed(names)


def _stages(runs: Sequence[Run]) -> Iterator[tuple[str, list[tuple[str, float]]]]:
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


Panels = list[tuple[str, str]]


def _figures(runs: Sequence[Run]) -> dict[str, Panels]:
    """Rows of panels by their place on the page; a place without data has none."""
    trained = [(number, run) for number, run in enumerate(runs) if run.metrics]
    evaluated = [(number, run) for number, run in enumerate(runs) if run.main is not None]
    return {
        "eps": list(_eps_panels(runs)),
        "training": [
            panel
            for number, run in trained
            for panel in _panel(figures.training_accuracy(run, number), f"training-{number}", run.name, _told(run))
        ],
        "together": list(_together(runs)) if trained else [],
        "reliability": [
            panel
            for number, run in evaluated
            for kind in ("clean", "adversarial")
            for panel in _reliability(run, number, kind)
        ],
        "classes": list(_class_panels(runs)) if evaluated else [],
    }


def _panel(
    paint: figures.Draw, name: str, title: str, description: str, height: float = 2.75
) -> Iterator[tuple[str, str]]:
    yield figures.inline_svg(figures.draw(paint, height=height), name, description), title


def _told(run: Run) -> str:
    best: dict[str, Any] = next((line for line in run.metrics if line["epoch"] == run.best), {})
    value = best.get("validation_robust_accuracy")
    chosen = f"; best is epoch {run.best} with {words.percent(value)} robust accuracy held out" if value else ""
    return f"Accuracy of {run.name} over {run.metrics[-1]['epoch']} epochs{chosen}."


def _together(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    if len(runs) > 1 and any("validation_robust_accuracy" in line for run in runs for line in run.metrics):
        told = "Robust accuracy on held-out images over the epochs, all runs in one panel."
        yield from _panel(figures.held_out_robustness(runs), "held-out", "Robust accuracy, held out", told)
    if any("train_loss" in line for run in runs for line in run.metrics):
        told = "Training loss over the epochs, all runs in one panel."
        yield from _panel(figures.training_loss(runs), "loss", "Training loss", told)


def _eps_panels(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    shown = [(run, run.main) for run in runs if run.main is not None and len(run.main.records.eps_grid)]
    norms = list(dict.fromkeys(evaluation.norm for _, evaluation in shown))
    for number, norm in enumerate(norms):
        told = []
        for run, evaluation in shown:
            rows = evaluation.results["robust_at_eps"]
            curve = ", ".join(f"{words.percent(row['robust_accuracy'])} at {row['eps']:.3g}" for row in rows)
            told += [f"{run.name}: {curve}"] if evaluation.norm == norm else []
        paint = figures.robust_against_eps(runs, norm)
        yield from _panel(paint, f"eps-{number}", norm if len(norms) > 1 else "", "; ".join(told), 3.0)


def _reliability(run: Run, number: int, kind: str) -> Iterator[tuple[str, str]]:
    assert run.main is not None
    records, results = run.main.records, run.main.results
    probabilities = getattr(records, f"{kind}_probabilities")
    told = (
        f"Reliability of {run.name} on {kind} images: ECE {results[f'ece_{kind}']:.3f}, "
        f"mean confidence {words.percent(results[f'mean_confidence_{kind}'])}."
    )
    paint = figures.reliability_diagram(probabilities, records.label, number)
    yield from _panel(paint, f"reliability-{kind}-{number}", f"{run.name}, {kind} images", told, 3.2)


def _class_panels(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    first = next(run.main.records.classes for run in runs if run.main is not None)
    same = [run for run in runs if run.main is not None and run.main.records.classes == first]
    if len(first) <= _MOST_CLASSES and len(same) == sum(run.main is not None for run in runs):
        told = "Robust accuracy by class, all runs in one panel."
        height = 1.1 + 0.2 * len(first)
        yield from _panel(figures.class_robustness(runs), "classes", "", told, height)
