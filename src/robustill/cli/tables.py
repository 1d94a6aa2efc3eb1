"""What the command line prints as tables."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustill.analysis.human_agreement import Agreement
from robustill.analysis.summary import summary
from robustill.analysis.transfer import transfer_matrix
from robustill.attacks.suites import SUITES
from robustill.cli.doctor import Finding
from robustill.config.recipes import RECIPES
from robustill.core import formatting
from robustill.core.errors import printable
from robustill.core.formatting import clock
from robustill.data import DATASETS
from robustill.methods import METHODS, build_method, method_options
from robustill.models import MODELS
from robustill.models.robustbench import ZOO
from robustill.report.transfer import transfer_doubts
from robustill.runs.records import Records
from robustill.runs.transfer_records import TransferRecords
from robustill.studies import STUDIES
from robustill.teachers.check import TeacherReport
from robustill.training.cost import Forecast, count_passes

# Of PGD, in the counts that `list methods` shows.
PASSES_STEPS = 10


def results_table(found: Mapping[Path, Records]) -> None:
    """One row an evaluation, and where its records lie."""
    comparison_table({"": found})
    for folder in found:
        Console().print(f"records: {printable(str(folder))}", highlight=False, soft_wrap=True)


def comparison_table(runs: Mapping[str, Mapping[Path, Records]]) -> None:
    """One row for each evaluation of each run, and the conditions that the numbers hold under.

    What is the same in all rows stands above or below; where the window has no room for the columns, each row is a few
    words under its name.
    """
    every = [(run, records) for run, found in runs.items() for records in found.values()]
    rows = [(_named(run, records), _numbers(records)) for run, records in every]
    threats = {name["threat"] for name, _ in rows}
    of_runs = list(dict.fromkeys(name["run"] for name, _ in rows))
    left = ["run"] * (len(of_runs) > 1) + ["checkpoint"] + ["threat"] * (len(threats) > 1)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in left:
        table.add_column(column, no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for name, numbers in rows:
        table.add_row(*(Text(name[column]) for column in left), *numbers)
    console = Console()
    if len(of_runs) == 1 and of_runs[0]:
        console.print(of_runs[0], highlight=False, soft_wrap=True, markup=False)
    # Asked for more than there is, a table says that it needs what there is.
    if console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width:
        console.print(table)
    else:
        for name, numbers in rows:
            console.print(" ".join(name[column] for column in left), highlight=False, soft_wrap=True, markup=False)
            told = (
                formatting.SPACE.join([*column.split(), each]) for column, each in zip(_COLUMNS, numbers, strict=True)
            )
            lines = textwrap.fill(", ".join(told), console.width, initial_indent="  ", subsequent_indent="  ")
            console.print(lines.replace(formatting.SPACE, " "), highlight=False, soft_wrap=True)
    for line in dict.fromkeys(conditions_line(records) for _, records in every):
        console.print(line, highlight=False, soft_wrap=True)
    for doubt in dict.fromkeys(doubt for _, records in every for doubt in records.conditions.get("warnings", [])):
        console.print(f"! {doubt}", highlight=False, soft_wrap=True, markup=False)


# In two lines, so that several threats have room in eighty columns.
_COLUMNS = ("clean", "robust", "95 %", "ECE", "ECE\nadv", "NLL\nadv", "Brier\nadv")


def _named(run: str, records: Records) -> dict[str, str]:
    known = records.conditions
    return {
        "run": printable(run or str(known.get("run", ""))),
        "checkpoint": printable(str(known["checkpoint"])) + (" (quick look)" if known.get("quick") else ""),
        "threat": str(known["threat"]["text"]),
    }


def _numbers(records: Records) -> list[str]:
    """In the order of _COLUMNS."""
    results = summary(records)
    low, high = results["robust_accuracy_interval"]
    scores = ("ece_clean", "ece_adversarial", "nll_adversarial", "brier_adversarial")
    accuracies = [f"{results[key]:.3f}" for key in ("clean_accuracy", "robust_accuracy")]
    return [*accuracies, f"{low:.2f}–{high:.2f}", *(f"{results[key]:.3f}" for key in scores)]


def conditions_line(records: Records) -> str:
    """The conditions that belong under a table of results."""
    stages = records.conditions["suite"]["stages"]
    budgets = ", ".join(f"{each['name']} {each['restarts']}×{each['steps']} steps" for each in stages)
    return formatting.conditions(records.conditions, budgets)


def teacher_table(found: TeacherReport) -> None:
    """What a teacher is, its numbers on clean and on adversarial images, and the conditions that they hold under."""
    console, teacher = Console(), found.teacher
    console.print(f"teacher {printable(teacher.spec)}", highlight=False, soft_wrap=True)
    console.print(f"{teacher.architecture}, {found.parameters:,} parameters; {teacher.trained}", highlight=False)
    console.print(f"sha256 {teacher.sha256}", highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("images")
    columns = ["accuracy", "ECE", "mean confidence", "agrees with student"]
    rows = {
        "clean": [found.clean_accuracy, found.ece_clean, found.confidence_clean, found.agreement_clean],
        "adversarial": [
            found.robust_accuracy,
            found.ece_adversarial,
            found.confidence_adversarial,
            found.agreement_adversarial,
        ],
    }
    shown = len(columns) - (found.agreement_clean is None)
    for column in columns[:shown]:
        table.add_column(column, justify="right")
    for name, numbers in rows.items():
        table.add_row(name, *(f"{number:.3f}" for number in numbers[:shown]))
    console.print(table)
    images = formatting.share_of_images(found.images, found.of_images)
    console.print(f"{found.conditions}: {images}", highlight=False, soft_wrap=True)


def forecast_table(name: str, found: Forecast) -> None:
    """What a run will cost: what was counted, what was measured, and what follows from both."""
    console, step = Console(), found.step
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, show_header=False)
    table.add_column("what", overflow="fold")
    table.add_column("how much", justify="right")
    rate = found.images_per_second
    rows = {
        "images to train on, held out": f"{found.images:,}, {found.validation_images:,}",
        "passes a step, student (forward + backward)": f"{step.student_forward} + {step.student_backward}",
        "passes a step, each teacher": f"{step.teacher_forward} + {step.teacher_backward}",
        "GFLOP an image forward, student and teachers": f"{found.student_gflops:.3g} and {found.teacher_gflops:.3g}",
        "GFLOP an image in training": f"{found.step_gflops:.3g}",
        f"images/s in training on {found.device}, measured": f"{rate:,.0f} ({rate * found.step_gflops:,.0f} GFLOP/s)",
        "memory that a step keeps beside the weights": _size(found.memory),
        "one epoch, its look at held-out images included": clock(found.epoch_seconds),
        f"training, {found.epochs} epochs": clock(found.training_seconds),
        "AutoAttack on the test images, if half are robust, at most": clock(found.evaluation_seconds),
        "disk, each kept epoch": _size(found.checkpoint),
    }
    for label, value in rows.items():
        table.add_row(label, value)
    console.print(printable(name), highlight=False, soft_wrap=True)
    console.print(table)
    if found.stand_ins:
        line = f"not all of {', '.join(found.stand_ins)} are there yet: each counted as a network like the student"
        console.print(line, highlight=False, soft_wrap=True)


def _size(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def findings_table(findings: Iterable[Finding]) -> None:
    """What `robustill doctor` looked at; the rows that matter stand out by their first word, too."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    marks = {"fine": "ok", "note": "note", "wrong": "WRONG"}
    for each in findings:
        table.add_row(Text(marks[each.verdict]), Text(each.what), Text(each.found))
    Console().print(table)


def difficulty_table(found: Sequence[Agreement]) -> None:
    """A table for each thing that people said, one row a score."""
    console = Console()
    for file, target in dict.fromkeys((each.file, each.target) for each in found):
        rows = [each for each in found if (each.file, each.target) == (file, target)]
        flagged = rows[0].detection
        about = "" if flagged is None else f", {flagged.found} of {flagged.num_samples} images"
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        table.title, table.title_justify = f"{target} ({file}{about})", "left"
        table.add_column("score", overflow="fold")
        for column in ("images", "Spearman", "95 %") if flagged is None else ("AUROC", "95 %", "average precision"):
            table.add_column(column, justify="right")
        for source in dict.fromkeys(each.source for each in rows):
            table.add_row(source, style="dim")
            for each in rows:
                if each.source == source:
                    table.add_row(f"  {each.score}", *_agreement_cells(each))
        console.print(table)
    console.print("Scores are turned so that larger is harder.", highlight=False, soft_wrap=True)


def _agreement_cells(each: Agreement) -> tuple[str, ...]:
    if each.correlation is not None:
        own = each.correlation
        return str(own.num_samples), f"{own.rho:+.3f}", f"{own.low:+.3f} to {own.high:+.3f}"
    assert each.detection is not None
    told = each.detection
    return f"{told.auroc:.3f}", f"{told.low:.3f}–{told.high:.3f}", f"{told.average_precision:.3f}"


def transfer_table(records: TransferRecords) -> None:
    """Accuracy of each network on the images made against each, and the conditions."""
    console, size = Console(), len(records.names)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("made against", overflow="fold")
    for number in range(1, size + 1):
        table.add_column(f"asked: {number}" if number == 1 else str(number), justify="right")
    matrix = transfer_matrix(records.adversarial, records.label)
    for number, (name, row) in enumerate(zip(records.names, matrix, strict=True), start=1):
        table.add_row(f"{number} {name}", *(f"{value:.3f}" for value in row))
    console.print(table)
    for line in (formatting.conditions(records.conditions), *transfer_doubts(records)):
        console.print(line, highlight=False, soft_wrap=True)


def list_tables(what: str | None) -> None:
    """Everything that has a name, or one kind of it: a name is what one copies, so it is never folded."""
    console = Console()
    for kind, rows in LISTS.items():
        if what in (None, kind):
            table = Table(title=kind, title_justify="left", box=None, show_header=False)
            table.add_column(no_wrap=True)
            table.add_column(overflow="fold")
            for name, *lines in rows():
                table.add_row(name, "\n".join(line for line in lines if line))
            console.print(table)
            console.print()


def _methods() -> Iterable[Sequence[str]]:
    for name, method in METHODS.items():
        counts = count_passes(build_method(name), PASSES_STEPS)
        student = f"student {counts.student_forward} forward {counts.student_backward} backward"
        teacher = f"teacher {counts.teacher_forward} forward {counts.teacher_backward} backward"
        roles = ", ".join(method.roles)
        facts = [
            f"teachers {roles}" if roles else "no teacher",
            f"passes of {PASSES_STEPS} steps: {student}" + (f", {teacher}" if roles else ""),
            ", ".join(f"{key}={_short(each.default)}" for key, each in method_options(name).items()),
            method.reference or "",
        ]
        yield name, _first_line(method), " · ".join(fact for fact in facts if fact)


def _models() -> Iterable[Sequence[str]]:
    for name, entry in MODELS.items():
        yield name, entry.description, ", ".join(f"{key}={_short(value)}" for key, value in entry.options.items())


def _data() -> Iterable[Sequence[str]]:
    for name, entry in DATASETS.items():
        yield name, entry.description


def _recipes() -> Iterable[Sequence[str]]:
    for name, recipe in RECIPES.items():
        yield name, _first_line(recipe)


def _studies() -> Iterable[Sequence[str]]:
    for name, study in STUDIES.items():
        yield name, _first_line(study)


def _suites() -> Iterable[Sequence[str]]:
    for name, suite in SUITES.items():
        yield name, str(suite)


def _robustbench() -> Iterable[Sequence[str]]:
    for entry in ZOO:
        options = " ".join(f"{key}={value}" for key, value in entry.options.items() if key not in ("mean", "std"))
        # As that leaderboard states them.
        stated = f"clean {entry.clean:.2f} %, AutoAttack {entry.autoattack:.2f} %"
        yield f"robustbench:{entry.data}/{entry.norm}/{entry.name}", f"{stated}; {entry.model} {options}".strip()


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


LISTS: dict[str, Callable[[], Iterable[Sequence[str]]]] = {
    "methods": _methods,
    "models": _models,
    "data": _data,
    "recipes": _recipes,
    "studies": _studies,
    "suites": _suites,
    "robustbench": _robustbench,
}
"""Kinds of things that have names: rows of a name and what is said of it, line by line."""
