"""The tables that the command line prints for a study: its plan before it is run, its results afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from robustill.cli.terminal import plain_console
from robustill.core.formatting import clock
from robustill.studies.board import BoardRow
from robustill.studies.board_table import HEADER, board_cells, board_notes
from robustill.studies.cost import estimated_seconds, run_costs
from robustill.studies.engines import Workers
from robustill.studies.parts import Part
from robustill.studies.scheduler import StudyResult, check_folder, is_finished
from robustill.studies.shipped import HEADER as SHIPPED_HEADER
from robustill.studies.shipped import shipped_cells, shipped_notes
from robustill.studies.study import Study, seed_folder
from robustill.studies.table import COMPARED
from robustill.studies.tracks import TRACKS
from robustill.studies.writing import (
    MEMORISATION_HEADER,
    conditions,
    difference_cells,
    explain_memorisation,
    memorisation_cells,
    number_cells,
    short_memorisation_cells,
)


def print_plan(study: Study, workers: Workers) -> None:
    """Print the runs of one seed, what each needs, and the estimated time; nothing is trained or written."""
    check_folder(study)
    seconds = estimated_seconds(study, run_costs(study))
    console = plain_console()
    console.print(study.description, soft_wrap=True)
    console.print(_runs_table(study, seconds))
    for line in (_summary_line(study), _time_line(study, workers, seconds)):
        console.print(line, soft_wrap=True)


def _runs_table(study: Study, seconds: Mapping[str, float]) -> RichTable:
    """Return a row for each run of the first seed."""
    table = _table("run", "method", "epochs", "eps", "needs", right=("time",))
    prefix = f"{seed_folder(study.seeds[0])}/"
    for name, config in study.runs.items():
        if name.startswith(prefix):
            needs = ", ".join(need.removeprefix(prefix) for need in study.needs[name]) or "–"
            table.add_row(
                name.removeprefix(prefix),
                config.method.name,
                str(config.optim.epochs),
                f"{config.threat.eps:.4g}",
                needs,
                clock(seconds[name]),
            )
    return table


def _summary_line(study: Study) -> str:
    num_teachers = sum(study.evaluation(name) is None for name in study.runs)
    num_finished = sum(is_finished(study, name) for name in study.runs)
    line = f"{_plural(len(study.seeds), 'seed')}: {len(study.runs)} runs, {num_teachers} of them shared teachers"
    if study.subsets:
        line += f", {len(study.subsets)} on subsets of the training images"
    line += f", suite {study.suite}"
    if study.design.ship:
        line += "; " + (study.cannot_ship or "each also exported in float32 and in int8, and attacked as it is shipped")
    if num_finished:
        line += f"; {num_finished} of them are finished"
    return line


def _time_line(study: Study, workers: Workers, seconds: Mapping[str, float]) -> str:
    remaining = sum(time for name, time in seconds.items() if not is_finished(study, name))
    num_workers = workers.count or 1
    return (
        f"about {clock(remaining / num_workers)} with {_plural(num_workers, 'worker')} of "
        f"{_plural(workers.threads, 'thread')} each, estimated from one timed training step under the present load of "
        "this machine, assuming that half of the images are robust"
    )


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_results(study: Study, result: StudyResult) -> None:
    """Print the main columns of the table, its conditions, the runs that failed, and the files of results."""
    console = plain_console()
    # These columns, and those of memorisation below, fit a terminal of eighty columns.
    table = _table("", "", right=("clean", "robust", "robust, difference"))
    for each in result.table.results:
        clean, robust = number_cells(each, COMPARED)
        _, difference = difference_cells(each)
        table.add_row(each.row.label, each.checkpoint, clean, robust, difference)
    console.print(table)
    if result.memorisation is not None:
        table = _table(*MEMORISATION_HEADER[:4], right=MEMORISATION_HEADER[6:])
        for mean, cells in zip(result.memorisation.means, memorisation_cells(result.memorisation), strict=True):
            table.add_row(*cells[:4], *short_memorisation_cells(mean))
        console.print(table)
        console.print(explain_memorisation(study, result.memorisation), soft_wrap=True)
    for line in conditions(study, result.table):
        console.print(line, soft_wrap=True)
    _print_shipped(console, study, result)
    _print_failures(console, result)
    files = ", ".join(file.name for file in result.files)
    console.print(f"results in {study.folder}: {files}", soft_wrap=True)


def _print_shipped(console: Console, study: Study, result: StudyResult) -> None:
    """Print the files of the runs as they are shipped, or why there are none."""
    lines = []
    if result.shipped:
        table = _table(*SHIPPED_HEADER[:2], right=(*SHIPPED_HEADER[3:5], *SHIPPED_HEADER[6:]))
        for row, file, _, num_bytes, one, _, *accuracies in shipped_cells(result.shipped):
            table.add_row(row, file, num_bytes, one, *accuracies)
        console.print(table)
        lines = shipped_notes(result.shipped)
    elif study.design.ship and study.cannot_ship is not None:
        lines = [f"The runs were {study.cannot_ship}"]
    for line in lines:
        console.print(line, soft_wrap=True)


def print_board(track: str, rows: Sequence[BoardRow]) -> None:
    """Print the rows of a track, one below the other, with what they were measured under."""
    console = plain_console()
    console.print(f"{track}: {TRACKS[track].description}", soft_wrap=True)
    # These columns fit a terminal of a hundred columns.
    shown = ("", "robust, best / last", "robust, difference, best", "robust, difference, last", "TFLOP (teachers)")
    table = _table("", right=shown[1:])
    for cells in board_cells(rows):
        table.add_row(*(cells[HEADER.index(column)] for column in shown))
    console.print(table)
    for line in board_notes(rows):
        console.print(line, soft_wrap=True)


def print_part(study: Study, part: Part, result: StudyResult) -> None:
    """Print what became of the runs of a part, and the commands that finish the study."""
    console = plain_console()
    num_finished = sum(outcome.error is None for outcome in result.outcomes.values())
    num_runs = len(result.outcomes) + len(result.lacking)
    lines = [f"part {part}: {num_finished} of {_plural(num_runs, 'run')} finished"]
    command = f"{study.command} --part {part}"
    if result.lacking:
        needs = ", ".join(dict.fromkeys(need for needs in result.lacking.values() for need in needs))
        lines += [
            f"left out: {', '.join(result.lacking)}, for lack of {needs} of other parts; once these are finished:",
            command,
        ]
    elif num_finished == num_runs:
        lines += ["the part that ends last writes the table; at any time, or if parts failed:", study.command]
    else:
        lines += ["to try again:", command]
    for line in lines:
        console.print(line, soft_wrap=True)
    _print_failures(console, result)


def _print_failures(console: Console, result: StudyResult) -> None:
    for name, outcome in result.outcomes.items():
        if outcome.error:
            log = "" if outcome.log is None else f" (log: {outcome.log})"
            console.print(f"! {name}: {outcome.error}{log}", soft_wrap=True)


def _table(*left: str, right: tuple[str, ...]) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right")
    return table
