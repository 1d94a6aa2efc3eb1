"""The files of a study's runs as they are shipped: bytes, latency, and the robust accuracy of each file itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import nan
from statistics import fmean

from robustill.analysis.statistics import mean_std
from robustill.core.formatting import csv_text, markdown_table, with_std
from robustill.report.deployment import ShippedFile, notes, read_file, render_figure
from robustill.runs.directory import RunDirectory
from robustill.studies.design import Row
from robustill.studies.job import finished_files
from robustill.studies.shipping import FILES
from robustill.studies.study import Study

HEADER = ("", "file", "seeds", "bytes", "ms, 1", "ms, 32", "clean", "as shipped")
"""The header of the table; the last column is the robust accuracy under every attack of the suite deployed."""


@dataclass(frozen=True, kw_only=True)
class ShippedRow:
    """One file of the runs of a row.

    Args:
        row: the row of the design.
        file: one of FILES.
        seeds: the file of each seed.
        is_beaten: whether the file of another row is as fast on one image and as robust, by the means over seeds.
    """

    row: Row
    file: str
    seeds: dict[int, ShippedFile]
    is_beaten: bool = False

    def mean(self) -> ShippedFile:
        """Return the means over seeds, and their range as the interval where there are several seeds."""
        files = list(self.seeds.values())
        robust = [each.robust_accuracy for each in files]
        return ShippedFile(
            name=f"{self.row.label}, {self.file}",
            num_bytes=round(fmean(each.num_bytes for each in files)),
            milliseconds=(fmean(each.milliseconds[0] for each in files), fmean(each.milliseconds[1] for each in files)),
            runtime=files[0].runtime,
            clean_accuracy=fmean(each.clean_accuracy for each in files),
            robust_accuracy=fmean(robust),
            interval=(min(robust), max(robust)) if len(files) > 1 else files[0].interval,
            alone={name: fmean(each.alone.get(name, nan) for each in files) for name in files[0].alone},
            conditions=files[0].conditions,
        )


def tabulate_shipped(study: Study) -> tuple[ShippedRow, ...]:
    """Return the files of all runs that were shipped, in the order of the design.

    Raises:
        RunError: the records of a file are damaged.
    """
    rows = []
    for row in study.design.rows if study.design.ship else ():
        by_file: dict[str, dict[int, ShippedFile]] = {name: {} for name in FILES}
        for seed in study.seeds:
            name = study.run_of(seed, row)
            request = study.evaluation(name)
            assert request is not None
            folders = finished_files(RunDirectory(study.folder / name), request) or {}
            for file, folder in folders.items():
                shipped = read_file(folder)
                if shipped is not None:
                    by_file[file][seed] = shipped
        rows += [ShippedRow(row=row, file=file, seeds=seeds) for file, seeds in by_file.items() if seeds]
    return mark_beaten(rows)


def mark_beaten(rows: Sequence[ShippedRow]) -> tuple[ShippedRow, ...]:
    """Return the rows, those marked that another one beats."""
    means = [each.mean() for each in rows]
    return tuple(
        replace(each, is_beaten=any(map(mean.is_beaten_by, means))) for each, mean in zip(rows, means, strict=True)
    )


def shipped_cells(rows: Sequence[ShippedRow]) -> list[tuple[str, ...]]:
    """Format a line for each file, with the columns of HEADER; a star marks what no other file beats."""
    lines = []
    for each in rows:
        files, mean = each.seeds.values(), each.mean()
        clean, robust = (
            with_std(*mean_std(values)[:2])
            for values in ([file.clean_accuracy for file in files], [file.robust_accuracy for file in files])
        )
        cost = (f"{mean.num_bytes:,}", *(f"{value:.3g}" for value in mean.milliseconds))
        star = "" if each.is_beaten else " *"
        lines.append((each.row.label, each.file, str(len(files)), *cost, clean, f"{robust}{star}"))
    return lines


def shipped_notes(rows: Sequence[ShippedRow]) -> list[str]:
    """Return the conditions of the numbers and how to read them, one sentence a line."""
    return [
        "As shipped: the best epoch of each run as a file, whose own predictions decide each success; means over "
        "seeds, whose range the figure shows",
        *notes([each.mean() for each in rows]),
        "times were measured while other runs of the study may have been running",
    ]


def shipped_section(study: Study, rows: Sequence[ShippedRow]) -> list[str]:
    """Format the section of the Markdown page, as lines."""
    if not rows:
        return ["", f"The runs were {study.cannot_ship}"] if study.design.ship and study.cannot_ship else []
    table = markdown_table(HEADER, shipped_cells(rows))
    figure = f"{study.name}-shipped.svg"
    return [
        "",
        "## As shipped",
        "",
        *table,
        "",
        *(f"- {each}" for each in shipped_notes(rows)),
        "",
        f"![{figure}]({figure})",
    ]


def shipped_files(study: Study, rows: Sequence[ShippedRow]) -> dict[str, bytes]:
    """Format the numbers of every seed and the figure of robust accuracy against latency, by file name."""
    means = sorted((each.mean() for each in rows), key=lambda each: each.milliseconds)
    return {
        f"{study.name}-shipped.csv": csv_text(_csv_rows(study, rows)).encode(),
        f"{study.name}-shipped.svg": render_figure(means),
    }


def _csv_rows(study: Study, rows: Sequence[ShippedRow]) -> Iterable[Sequence[object]]:
    families = list(dict.fromkeys(name for each in rows for file in each.seeds.values() for name in file.alone))
    start = ["row", "series", "value", "seed", "run", "file", "bytes", "ms_1", "ms_32", "clean_accuracy"]
    yield [*start, "robust_accuracy", "low", "high", *families]
    for each in rows:
        row = each.row
        for seed, file in each.seeds.items():
            name = [row.label, row.series, row.value, seed, study.run_of(seed, row), each.file]
            numbers = [file.num_bytes, *file.milliseconds, file.clean_accuracy, file.robust_accuracy, *file.interval]
            yield [*name, *numbers, *(file.alone.get(family) for family in families)]
