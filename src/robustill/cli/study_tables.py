"""What the command line prints of a study: the grid before, the table after."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from robustill.core.formatting import clock
from robustill.studies.cost import costs, estimated_seconds
from robustill.studies.scheduler import Result, Workers, check_folder, done
from robustill.studies.study import Study, seed_folder
from robustill.studies.table import COMPARED
from robustill.studies.writing import (
    HEADER,
    conditions,
    difference_cells,
    explained,
    mean_cells,
    number_cells,
    short_cells,
)


def print_plan(study: Study, crew: Workers) -> None:
    """The grid: every run of a seed, what it needs, how long it takes about; nothing is trained or written."""
    check_folder(study)
    seconds = estimated_seconds(study, costs(study))
    grid = _table("run", "method", "epochs", "eps", "needs", right=("about",))
    first = study.seeds[0]
    prefix = f"{seed_folder(first)}/"
    for name, config in study.runs.items():
        if name.startswith(prefix):
            needs = ", ".join(need.removeprefix(prefix) for need in study.needs[name]) or "–"
            grid.add_row(
                name.removeprefix(prefix),
                config.method.name,
                str(config.optim.epochs),
                f"{config.threat.eps:.4g}",
                needs,
                clock(seconds[name]),
            )
    console = Console()
    console.print(study.what, highlight=False, soft_wrap=True)
    console.print(grid)
    number, left = len(study.runs), {name: each for name, each in seconds.items() if not done(study, name)}
    teachers = sum(study.asked(name) is None for name in study.runs)
    seeds = len(study.seeds)
    parts = f", {len(study.subsets)} on a part of the training images" if study.subsets else ""
    shown = (
        f"{seeds} seed{'s' * (seeds > 1)}: {number} runs, {teachers} of them shared teachers{parts}, "
        f"suite {study.suite}"
    )
    finished = f"; {number - len(left)} of them are done" if len(left) < number else ""
    console.print(f"{shown}{finished}", highlight=False, soft_wrap=True)
    workers = crew.workers or 1
    console.print(
        f"about {clock(sum(left.values()) / workers)} with {workers} worker{'s' * (workers > 1)} of {crew.threads} "
        f"thread{'s' * (crew.threads > 1)}, estimated from a timed step beside whatever else this machine does, "
        "as if half of the images were robust",
        highlight=False,
        soft_wrap=True,
    )


def print_results(study: Study, result: Result) -> None:
    """The middle of the table, its conditions, what failed, and where everything lies."""
    console = Console()
    # Here and below: as much as a terminal of eighty columns has room for.
    shown = _table("", "", right=("clean", "robust", "robust, difference"))
    for line in result.table.lines:
        clean, robust = number_cells(line, COMPARED)
        shown.add_row(line.row.label, line.checkpoint, clean, robust, difference_cells(line)[1])
    console.print(shown)
    if result.known is not None:
        heart = _table(*HEADER[:4], right=HEADER[6:])
        for mean, cells in zip(result.known.means, mean_cells(result.known), strict=True):
            heart.add_row(*cells[:4], *short_cells(mean))
        console.print(heart)
        console.print(explained(study, result.known), highlight=False, soft_wrap=True)
    for each in conditions(study, result.table):
        console.print(each, highlight=False, soft_wrap=True, markup=False)
    for name, outcome in result.outcomes.items():
        if outcome.error:
            where = "" if outcome.log is None else f" (log: {outcome.log})"
            console.print(f"! {name}: {outcome.error}{where}", highlight=False, soft_wrap=True, markup=False)
    written = ", ".join(file.name for file in result.files)
    console.print(f"results in {study.folder}: {written}", highlight=False, soft_wrap=True)


def _table(*left: str, right: tuple[str, ...]) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right")
    return table
