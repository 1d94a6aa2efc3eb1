"""Write a self-contained HTML page that compares runs, in the order of the questions that a reader has."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustill.analysis.arms import Arm, make_arms
from robustill.analysis.runs import FinishedRun, with_common_evaluations
from robustill.analysis.sources import StudyFolder, find_sources, find_studies
from robustill.analysis.teacher_ranking import TeacherRanking
from robustill.core import formatting
from robustill.core.errors import ConfigError, RunError, printable
from robustill.core.files import write_text
from robustill.core.outputs import check_output_file
from robustill.core.validation import check_path, describe
from robustill.report.comparison import Comparison, compare
from robustill.report.dynamics import AlignedRun, align_runs, dynamics_panels, learned_tables
from robustill.report.explorer import make_explorer
from robustill.report.figure_files import write_figures
from robustill.report.gallery import make_gallery
from robustill.report.panels import Panel, run_panels
from robustill.report.plots import MAX_COLOURED
from robustill.report.ranking import RankedRow, common_evaluation, rank, ranking_files
from robustill.report.steps import Steps
from robustill.report.teachers import (
    RANKING_COLUMNS,
    RANKING_LEGEND,
    evidence_line,
    ranking_conditions,
    ranking_panel,
    ranking_rows,
)
from robustill.report.temperature import temperature_sentences
from robustill.report.transfer import pairwise_similarity, transfer_panel, transfer_warnings
from robustill.report.verdict import describe_tests, headline, masking_lines, price, reasons
from robustill.report.views import (
    condition_parts,
    full_conditions,
    missing_lines,
    question,
    ranking_views,
    run_view,
    shipped_parts,
    task,
    title,
    warning_lines,
)
from robustill.runs.records import FIXED_ATTACK, attacked_kind
from robustill.runs.transfer_records import TransferRecords

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).with_name("templates")
_STEERING = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a page may not contain, but a name or a file of someone else may."""

_MAX_OPEN_TESTS = 2
"""Maximum number of comparisons whose tests are listed at once; those of more are folded."""


@dataclass(frozen=True, kw_only=True)
class _Content:
    """Everything that the page is rendered from."""

    studies: list[StudyFolder]
    arms: list[Arm]
    """in the order of the figures: as given if there are few, else the most robust first"""
    runs: list[FinishedRun]
    """all runs, in the order in which they were given"""
    shown: list[FinishedRun]
    """the runs with figures and pictures of their own, by their number on the page: one of each of the first arms"""
    comparisons: list[Comparison]
    rows: list[RankedRow]
    aligned: list[AlignedRun]
    transfer: TransferRecords | None
    teachers: TeacherRanking | None


def report(
    runs: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    figures: Path | str | None = None,
    transfer: Path | str | None = None,
    teachers: Path | str | None = None,
    progress: bool = True,
) -> Path:
    """Write one self-contained HTML page that compares runs and networks; the same ones give the same bytes.

    Args:
        runs: run directories, folders of evaluations of networks without a run, folders of studies, folders that hold
            any of these, or a single one; the page lists the parts that are missing.
        out: the page, which is written completely or not at all. It replaces only an earlier page.
        figures: a folder for every figure of the page as SVG and PDF, with the data behind it as CSV, and for the
            ranked table as CSV and LaTeX. It is written completely or not at all, and replaces the figures of an
            earlier call.
        transfer: a folder written by `robustill transfer`, whose results the page then includes.
        teachers: a folder written by `robustill teachers rank`, likewise.
        progress: show the progress on stderr if it takes more than two seconds.

    Returns:
        out.

    Raises:
        ConfigError: a path is neither text nor a Path.
        RunError: a path holds no run and no evaluation, a file is damaged, or out or figures cannot be written.
    """
    runs = [runs] if isinstance(runs, str | Path) else runs
    if not isinstance(runs, Sequence):
        raise ConfigError(f"runs is {describe(runs)}, expected a list of run directories")
    paths = [check_path("a run", run) for run in runs]
    out = check_path("out", out)
    figures = None if figures is None else check_path("figures", figures)
    transfer = None if transfer is None else check_path("transfer", transfer)
    teachers = None if teachers is None else check_path("teachers", teachers)
    check_output_file(out, is_page, "page of `robustill report`", "--out")
    steps = Steps(shown=progress)
    content = _read(paths, transfer, teachers, steps)
    panels = _panels(content)
    page = _render(content, _drawn(panels, steps))
    if figures is not None:
        all_panels = [panel for section in panels.values() for panel in section]
        conditions = ", ".join(_head_parts(content))
        tables = ranking_files(content.rows, conditions) if len(content.rows) > 1 else {}
        write_figures(steps.over(all_panels, "writing figures", "figures"), figures, tables)
    try:
        write_text(out, page)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror}): give the name of a file as --out") from None
    return out


def is_page(head: bytes) -> bool:
    """Return whether a file begins like a page; the pages of early versions have no generator, only the title."""
    marks = (b'<meta name="generator" content="robustill">', b"<title>Robustness of ")
    return head.startswith(b"<!doctype html>") and any(mark in head.partition(b"</title>")[0] for mark in marks)


def _read(paths: Sequence[Path], transfer: Path | None, teachers: Path | None, steps: Steps) -> _Content:
    """Read everything that the page is rendered from."""
    sources = find_sources(paths)
    found = [source.read() for source in steps.over(sources, "reading runs", "runs")]
    arms = make_arms(with_common_evaluations(found))
    comparisons = compare(arms)
    rows = rank(arms, comparisons)
    named = {run.path: run for arm in arms for run in arm.runs}
    if len(arms) > MAX_COLOURED:
        arms = [row.arm for row in rows]
    shown = [(arm.evaluated or arm.runs)[0] for arm in arms[:MAX_COLOURED]]
    return _Content(
        studies=find_studies(paths),
        arms=arms,
        runs=[named[run.path] for run in found],
        shown=shown,
        comparisons=comparisons,
        rows=rows,
        aligned=align_runs(shown, comparisons),
        transfer=None if transfer is None else TransferRecords.load(transfer),
        teachers=None if teachers is None else TeacherRanking.load(teachers),
    )


def _panels(content: _Content) -> dict[str, list[Panel]]:
    """Return the panels by their section of the page."""
    panels = run_panels(content.arms, content.shown)
    panels.update(dynamics_panels(content.aligned))
    panels["transfer"] = [] if content.transfer is None else [transfer_panel(content.transfer)]
    panels["teachers"] = [] if content.teachers is None else [ranking_panel(content.teachers)]
    return panels


def _drawn(panels: dict[str, list[Panel]], steps: Steps) -> dict[str, list[tuple[str, str]]]:
    """Draw the panels; return the SVG and the title of each, by their section."""
    count = [(name, panel) for name, section in panels.items() for panel in section]
    drawn: dict[str, list[tuple[str, str]]] = {name: [] for name in panels}
    for name, panel in steps.over(count, "drawing figures", "figures"):
        drawn[name].append((panel.svg(), panel.title))
    return drawn


def _render(content: _Content, figures: dict[str, list[tuple[str, str]]]) -> str:
    """Render the page as text."""
    from markupsafe import Markup

    arms, runs, shown, comparisons = content.arms, content.runs, content.shown, content.comparisons
    galleries = [(run, make_gallery(run.main.records)) for run in shown if run.main is not None]
    explorer = make_explorer(shown, _comparisons_among(comparisons, shown), content.aligned)
    script = (_TEMPLATES / "explorer.js").read_text(encoding="utf-8")
    page = (
        environment()
        .get_template("page.html.j2")
        .render(
            policy=content_security_policy(None if explorer is None else script),
            explorer=explorer,
            script=Markup(script),
            style=Markup(read_style()),
            title=title(arms, content.studies),
            studies=content.studies,
            task=task(runs),
            head=_head_parts(content),
            shipped=list(shipped_parts(runs)),
            question=question(comparisons, arms),
            headline=headline(arms, comparisons),
            price=price(comparisons),
            tests=describe_tests(comparisons),
            many_tests=len(comparisons) > _MAX_OPEN_TESTS,
            reasons=reasons(arms, comparisons),
            ranking=ranking_views(content.rows, comparisons) if len(content.rows) > 1 else [],
            runs=[run_view(run, comparisons) for run in runs],
            attacked=attacked_kind(each.results for run in runs for each in run.evaluations),
            fixed_attack=FIXED_ATTACK,
            collapsed=len(runs) > MAX_COLOURED,
            shown_note=_shown_note(content),
            notes=list(missing_lines(content.rows, common_evaluation(arms))),
            conditions=list(full_conditions(runs)),
            attack=_common_attack(runs),
            warnings=list(warning_lines(runs)),
            masking=list(masking_lines([run for run in runs if run.main is not None])),
            stages=list(_stages(shown)),
            figures={name: [(Markup(svg), caption) for svg, caption in section] for name, section in figures.items()},
            galleries=[(run, each) for run, each in galleries if each is not None],
            outcomes=list(_outcomes(comparisons, shown)),
            reference=content.aligned[0].run.name if content.aligned else None,
            learned=learned_tables(content.aligned),
            temperatures=list(temperature_sentences(shown)),
            transfer=None if content.transfer is None else _transfer_view(content.transfer),
            teachers=None if content.teachers is None else _teachers_view(content.teachers),
        )
    )
    return printable_page(page)


def read_style() -> str:
    """Return the style sheet of all pages."""
    return (_TEMPLATES / "style.css").read_text(encoding="utf-8")


def printable_page(page: str) -> str:
    """Return a page with every character that steers a terminal or the direction of text written out."""
    return _STEERING.sub(lambda match: printable(match[0]), page)


def _comparisons_among(comparisons: Sequence[Comparison], shown: Sequence[FinishedRun]) -> list[Comparison]:
    """Return the comparisons whose first pair has figures of its own."""
    paths = {run.path for run in shown}
    return [each for each in comparisons if {each.pairs[0].student.path, each.pairs[0].baseline.path} <= paths]


def environment() -> Environment:
    """Return the templates with the filters that they use."""
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


def _teachers_view(ranking: TeacherRanking) -> dict[str, Any]:
    return {
        "columns": [each.replace("\n", " ") for each in RANKING_COLUMNS],
        "rows": list(ranking_rows(ranking)),
        "advice": ranking.advice,
        "legend": RANKING_LEGEND,
        "warnings": ranking.warnings,
        "lines": [ranking_conditions(ranking), evidence_line(ranking)],
    }


def content_security_policy(script: str | None) -> str:
    """Return a policy that lets the page load nothing and run no script but this one, if there is one."""
    parts = ["default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"]
    if script is not None:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        parts.append(f"script-src 'sha256-{digest}'")
    return "; ".join([*parts, "base-uri 'none'", "form-action 'none'"])


def _head_parts(content: _Content) -> tuple[str, ...]:
    """Return the conditions of the evaluation that the page compares, for its head."""
    evaluation = common_evaluation(content.arms)
    return () if evaluation is None else condition_parts(evaluation)


def _shown_note(content: _Content) -> str:
    """Say which runs have figures of their own, unless all have."""
    if len(content.shown) == len(content.runs):
        return ""
    names = formatting.join_with_and([run.name for run in content.shown])
    return f"Figures of single runs are of one run of each of the first {len(content.shown)}: {names}."


def _common_attack(runs: Sequence[FinishedRun]) -> str | None:
    """Return the attack of the table if all rows have the same one."""
    names = {evaluation.attack for run in runs for evaluation in run.evaluations}
    return names.pop() if len(names) == 1 else None


def _stages(runs: Sequence[FinishedRun]) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    for run in runs:
        if run.main is not None and len(run.main.records.stages) > 1:
            results = run.main.results
            yield run.name, [("clean", results["clean_accuracy"]), *results["accuracy_after"].items()]


def _outcomes(
    comparisons: Sequence[Comparison], shown: Sequence[FinishedRun]
) -> Iterator[tuple[str, list[tuple[str, int, float]]]]:
    """Yield the caption and the rows of a table for each pair of shown runs that are compared.

    A row is the label, number and share of the images that both runs, one, or neither classifies correctly.
    """
    for comparison in _comparisons_among(comparisons, shown):
        pair = comparison.pairs[0]
        labels = {
            "both": "both",
            "only_student": f"only {pair.student.name}",
            "only_baseline": f"only {pair.baseline.name}",
            "neither": "neither",
        }
        rows = [
            (label, pair.outcomes[key], pair.outcomes[key] / len(pair.robust.index)) for key, label in labels.items()
        ]
        yield f"{pair.student.name} and {pair.baseline.name}", rows
