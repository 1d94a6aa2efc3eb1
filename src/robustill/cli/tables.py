"""The tables that the command line prints."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from robustill.analysis.human_agreement import Agreement
from robustill.analysis.summary import result_warnings, summary
from robustill.analysis.teacher_ranking import TeacherRanking
from robustill.analysis.transfer import transfer_matrix
from robustill.cli.doctor import Finding
from robustill.cli.terminal import plain_console
from robustill.core import formatting
from robustill.core.errors import printable
from robustill.core.formatting import clock
from robustill.report.deployment import ShippedFile, notes, shipped_rows
from robustill.report.teachers import (
    RANKING_COLUMNS,
    RANKING_LEGEND,
    evidence_line,
    ranking_conditions,
    ranking_rows,
)
from robustill.report.transfer import transfer_warnings
from robustill.runs.records import FIXED_ATTACK, Records, attacked_kind
from robustill.runs.transfer_records import TransferRecords
from robustill.teachers.check import TeacherReport
from robustill.training.cost import Forecast
from robustill.training.device_profiles import ProfileForecast


def results_table(evaluations: Mapping[Path, Records]) -> None:
    """Print one row for each evaluation, and the folder of its records."""
    comparison_table({"": evaluations})
    for folder in evaluations:
        plain_console().print(f"records: {printable(str(folder))}", soft_wrap=True)


def comparison_table(runs: Mapping[str, Mapping[Path, Records]]) -> None:
    """Print one row for each evaluation of each run, and the conditions of the numbers.

    What is the same in all rows is printed once, above or below the table. In a terminal that is too narrow for the
    table, each row is printed as a few lines.
    """
    evaluations = [(run, records) for run, each in runs.items() for records in each.values()]
    results = [summary(records) for _, records in evaluations]
    kind = attacked_kind(results)
    columns = _columns(kind)
    rows = [
        (_row_names(run, records), _row_numbers(each, kind))
        for (run, records), each in zip(evaluations, results, strict=True)
    ]
    run_names = list(dict.fromkeys(names["run"] for names, _ in rows))
    left = ["checkpoint"]
    if len(run_names) > 1:
        left.insert(0, "run")
    if len({names["threat"] for names, _ in rows}) > 1:
        left.append("threat")
    table = _table()
    for column in left:
        table.add_column(column, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for names, numbers in rows:
        table.add_row(*(names[column] for column in left), *numbers)
    console = plain_console()
    if len(run_names) == 1 and run_names[0]:
        console.print(run_names[0], soft_wrap=True)
    # measure() never returns more than the width it is given, so it is given a large one.
    needed_width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    if needed_width <= console.width:
        console.print(table)
    else:
        for names, numbers in rows:
            title = " ".join(names[column] for column in left)
            console.print(title, soft_wrap=True)
            console.print(_wrapped_numbers(columns, numbers, console.width), soft_wrap=True)
    for line in dict.fromkeys(conditions_line(records) for _, records in evaluations):
        console.print(line, soft_wrap=True)
    for _, records in evaluations:
        if parts := formatting.as_shipped(records.conditions):
            console.print(f"attacked as shipped: {_row_names('', records)['checkpoint']}", soft_wrap=True)
            for part in parts:
                console.print(f"  {printable(part)}", soft_wrap=True)
    warnings = [warning for _, records in evaluations for warning in _record_warnings(records)]
    for warning in dict.fromkeys(warnings):
        console.print(f"! {warning}", soft_wrap=True)


def sheet_table(lines: Sequence[tuple[str, str, str]], not_tried: Sequence[str]) -> None:
    """Print the first table of a robustness sheet, and what was not tried."""
    table = _table()
    table.add_column("images")
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column("95 % interval")
    for name, value, note in lines:
        table.add_row(name, value, note)
    console = plain_console()
    console.print(table)
    console.print(f"not tried: {'; '.join(not_tried)}")


def _record_warnings(records: Records) -> list[str]:
    """Return the recorded warnings, and those that follow from the records."""
    return [*map(str, records.conditions.get("warnings", [])), *result_warnings(records)]


def _columns(kind: str) -> tuple[str, ...]:
    """Return the names of the numbers of an evaluation, with the calibration under attack of one kind."""
    attack = FIXED_ATTACK.replace("-", "") if kind == "pgd" else "adv"
    # Some in two lines, and as wide as a number, so that the table of the quickstart fits eighty columns.
    return ("clean", "robust", "95 %", "ECE", *(f"{score}\n{attack}" for score in ("ECE", "NLL", "Brier")))


def _row_names(run: str, records: Records) -> dict[str, str]:
    conditions = records.conditions
    quick = " (quick)" if conditions.get("quick") else ""
    return {
        "run": printable(run or str(conditions.get("run", ""))),
        "checkpoint": printable(str(conditions["checkpoint"])) + quick,
        "threat": str(conditions["threat"]["text"]),
    }


def _row_numbers(results: Mapping[str, Any], kind: str) -> list[str]:
    """Format the numbers of an evaluation in the order of `_columns`."""
    low, high = results["robust_accuracy_interval"]
    scores = ("ece_clean", f"ece_{kind}", f"nll_{kind}", f"brier_{kind}")
    accuracies = [f"{results[key]:.3f}" for key in ("clean_accuracy", "robust_accuracy")]
    return [*accuracies, f"{low:.2f}–{high:.2f}", *(f"{results[key]:.3f}" for key in scores)]


def _wrapped_numbers(columns: Sequence[str], numbers: Sequence[str], width: int) -> str:
    """Format the numbers of a row as text, each after its name, wrapped between numbers alone."""
    parts = [formatting.SPACE.join([*column.split(), each]) for column, each in zip(columns, numbers, strict=True)]
    text = textwrap.fill(", ".join(parts), width, initial_indent="  ", subsequent_indent="  ")
    return text.replace(formatting.SPACE, " ")


def conditions_line(records: Records) -> str:
    """Return the conditions of an evaluation in one line, for below its table."""
    stages = records.conditions["suite"]["stages"]
    budgets = ", ".join(f"{each['name']} {each['restarts']}×{each['steps']} steps" for each in stages)
    return formatting.conditions(records.conditions, budgets)


def teacher_table(report: TeacherReport) -> None:
    """Print what a teacher is, its numbers on clean and adversarial images, and their conditions."""
    console, teacher = plain_console(), report.teacher
    console.print(f"teacher {printable(teacher.spec)}", soft_wrap=True)
    console.print(f"{teacher.architecture}, {report.parameters:,} parameters; {teacher.trained}")
    console.print(f"sha256 {teacher.sha256}", soft_wrap=True)
    columns = ["accuracy", "ECE", "mean confidence"]
    clean = [report.clean_accuracy, report.ece_clean, report.confidence_clean]
    adversarial = [report.robust_accuracy, report.ece_adversarial, report.confidence_adversarial]
    if report.agreement_clean is not None and report.agreement_adversarial is not None:
        columns.append("agreement with student")
        clean.append(report.agreement_clean)
        adversarial.append(report.agreement_adversarial)
    table = _table()
    table.add_column("images")
    for column in columns:
        table.add_column(column, justify="right")
    for name, numbers in {"clean": clean, "adversarial": adversarial}.items():
        table.add_row(name, *(f"{number:.3f}" for number in numbers))
    console.print(table)
    images = formatting.share_of_images(report.images, report.of_images)
    console.print(f"{report.conditions}: {images}", soft_wrap=True)
    for warning in report.warnings:
        console.print(f"! {warning}", soft_wrap=True)


def ranking_table(ranking: TeacherRanking) -> None:
    """Print the candidates in the order of their predicted gains, what was measured of them, and the advice."""
    console = plain_console()
    gains, measures = _table(), _table()
    for column in ("", "gain", "95 %", "α", "t"):
        gains.add_column(column, justify="right", no_wrap=True)
    gains.add_column("candidate", overflow="fold")
    for column in ("", *RANKING_COLUMNS):
        measures.add_column(column, justify="right", no_wrap=True)
    for number, row in enumerate(ranking_rows(ranking), start=1):
        gains.add_row(str(number), row.gain, row.interval, row.alpha, row.temperature, row.name)
        measures.add_row(str(number), *row.cells)
    console.print(gains)
    console.print(
        "gain: predicted points of robust accuracy over PGD-AT with EMA; t: temperature that calibrates the candidate",
        soft_wrap=True,
    )
    console.print(measures)
    console.print(RANKING_LEGEND, soft_wrap=True)
    for line in (ranking_conditions(ranking), evidence_line(ranking)):
        console.print(line, soft_wrap=True)
    for warning in ranking.warnings:
        console.print(f"! {warning}", soft_wrap=True)
    console.print(ranking.advice, soft_wrap=True)


def forecast_table(name: str, cost: Forecast) -> None:
    """Print what a run will cost: the counted passes, the measured speed and memory, and the resulting times."""
    console, step = plain_console(), cost.step
    table = _table(show_header=False)
    table.add_column("quantity", overflow="fold")
    table.add_column("value", justify="right")
    rate = cost.images_per_second
    speed = rate * cost.step_gflops
    rows = {
        "training images, validation images": f"{cost.images:,}, {cost.validation_images:,}",
        "passes a step, student (forward + backward)": f"{step.student_forward} + {step.student_backward}",
        "passes a step, each teacher": f"{step.teacher_forward} + {step.teacher_backward}",
        "GFLOP an image forward, student and teachers": f"{cost.student_gflops:.3g} and {cost.teacher_gflops:.3g}",
        "GFLOP an image in training": f"{cost.step_gflops:.3g}",
        f"images/s in training on {cost.device}, measured": f"{rate:,.0f} ({speed:,.0f} GFLOP/s)",
        "memory of a training step, besides the weights": _mebibytes(cost.memory),
        "one epoch, with its validation": clock(cost.epoch_seconds),
        f"training, {cost.epochs} epochs": clock(cost.training_seconds),
        "AutoAttack on the test images, if half are robust, at most": clock(cost.evaluation_seconds),
        "disk, each saved epoch": _mebibytes(cost.checkpoint),
    }
    for label, value in rows.items():
        table.add_row(label, value)
    console.print(printable(name), soft_wrap=True)
    console.print(table)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores + 1:
        line = f"measured while {cores} cores had work for {load:.0f}: on a quiet machine it takes less"
        console.print(line, soft_wrap=True)
    if cost.stand_ins:
        line = f"not all of {', '.join(cost.stand_ins)} exist yet: each is counted as a network like the student"
        console.print(line, soft_wrap=True)


def profile_table(name: str, cost: ProfileForecast) -> None:
    """Print the forecast of a training on a GPU that was not measured, with the source of every number."""
    console, profile = plain_console(), cost.profile
    table = _table(show_header=False)
    table.add_column("quantity", overflow="fold")
    table.add_column("value", justify="right")
    rows = {
        "training images, epochs": f"{cost.images:,}, {cost.epochs}",
        "GFLOP an image forward, student and teachers": f"{cost.student_gflops:.3g} and {cost.teacher_gflops:.3g}",
        "GFLOP an image in training": f"{cost.step_gflops:.3g}",
        "PFLOP of the training, with its validation": f"{cost.total_gflops / 1e6:,.3g}",
        f"forecast at {profile.share:.0%} of the peak": clock(cost.seconds()),
        "at half and at twice that share": f"{clock(cost.seconds(profile.share / 2))}, "
        f"{clock(cost.seconds(2 * profile.share))}",
    }
    for label, value in rows.items():
        table.add_row(label, value)
    console.print(f"{printable(name)} on one {profile.name}: a forecast, not measured", soft_wrap=True)
    console.print(table)
    lines = [
        f"peak: {profile.peak_tflops:g} TFLOP/s ({profile.source}); share of it: {profile.share_source}, an assumption "
        "for this network; evaluation and the reading of images are left out",
    ]
    if cost.stand_ins:
        lines.append(f"not there yet, each counted as a network like the student: {', '.join(cost.stand_ins)}")
    for line in lines:
        console.print(line, soft_wrap=True)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def findings_table(findings: Iterable[Finding]) -> None:
    """Print the findings of `robustill doctor`, each with its verdict as the first word."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    verdicts = {"fine": "ok", "note": "note", "wrong": "WRONG"}
    for each in findings:
        table.add_row(verdicts[each.verdict], each.subject, each.message)
    plain_console().print(table)


def difficulty_table(agreements: Sequence[Agreement]) -> None:
    """Print a table for each kind of human annotation, with one row for each score of difficulty."""
    console = plain_console()
    for file, target in dict.fromkeys((each.file, each.target) for each in agreements):
        rows = [each for each in agreements if (each.file, each.target) == (file, target)]
        detection = rows[0].detection
        table = _table()
        table.title_justify = "left"
        if detection is None:
            table.title = f"{target} ({file})"
            columns = ("images", "Spearman", "95 %")
        else:
            table.title = f"{target} ({file}, {detection.num_flagged} of {detection.num_samples} images)"
            columns = ("AUROC", "95 %", "average precision")
        table.add_column("score", overflow="fold")
        for column in columns:
            table.add_column(column, justify="right")
        for source in dict.fromkeys(each.source for each in rows):
            table.add_row(source, style="dim")
            for each in rows:
                if each.source == source:
                    table.add_row(f"  {each.score}", *_agreement_cells(each))
        console.print(table)
    console.print("Scores are oriented so that larger is harder.", soft_wrap=True)


def _agreement_cells(agreement: Agreement) -> tuple[str, ...]:
    correlation, detection = agreement.correlation, agreement.detection
    if correlation is not None:
        interval = f"{correlation.low:+.3f} to {correlation.high:+.3f}"
        return str(correlation.num_samples), f"{correlation.rho:+.3f}", interval
    assert detection is not None
    interval = f"{detection.low:.3f}–{detection.high:.3f}"
    return f"{detection.auroc:.3f}", interval, f"{detection.average_precision:.3f}"


def transfer_table(records: TransferRecords) -> None:
    """Print the accuracy of each network on the adversarial images of each, and their conditions."""
    console = plain_console()
    table = _table()
    table.add_column("images made against", overflow="fold")
    for number in range(1, len(records.names) + 1):
        table.add_column(f"network {number}" if number == 1 else str(number), justify="right")
    matrix = transfer_matrix(records.adversarial, records.label)
    for number, (name, row) in enumerate(zip(records.names, matrix, strict=True), start=1):
        table.add_row(f"{number} {name}", *(f"{value:.3f}" for value in row))
    console.print(table)
    for line in (formatting.conditions(records.conditions), *transfer_warnings(records)):
        console.print(line, soft_wrap=True)
    for line in records.conditions.get("warnings", []):
        console.print(f"! {line}", soft_wrap=True)


def shipped_table(files: Sequence[ShippedFile]) -> None:
    """Print one row for each file that was attacked as it is shipped, and the conditions of the numbers."""
    console, table = plain_console(), _table()
    # Those of single attacks are in the files; with them the table would not fit eighty columns.
    header, rows = shipped_rows(files, with_families=False)
    for number, column in enumerate(header):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in notes(files):
        console.print(line, soft_wrap=True)


def _table(*, show_header: bool = True) -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, show_header=show_header)
