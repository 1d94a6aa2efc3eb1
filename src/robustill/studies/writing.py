"""The results of a study as files: Markdown, CSV, LaTeX and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from pathlib import Path

import numpy as np

from robustill.core import formatting
from robustill.core.files import write_bytes
from robustill.core.formatting import MINUS, csv_text, markdown_table, with_std
from robustill.studies.memorisation import KINDS, PROXIES, Influence, Mean
from robustill.studies.study import POOL, Study
from robustill.studies.table import COLUMNS, COMPARED, Line, SeedDifference, Table

# In Markdown and LaTeX; the CSV has all.
SHOWN = ("clean_accuracy", "robust_accuracy", "ece_clean", "ece_adversarial")


def write_results(study: Study, table: Table, failed: Mapping[str, str], known: Influence | None = None) -> list[Path]:
    """Every file of results, each whole or not at all, named after the study.

    Args:
        study: whose.
        table: of its rows.
        failed: what is missing, with the reason.
        known: what it says of memorisation, if that was asked.

    Returns:
        The files.
    """
    from robustill.studies.figures import figures

    files: dict[str, bytes] = {f"{study.name}-{name}.svg": content for name, content in figures(study, table).items()}
    pictures = list(files)
    files[f"{study.name}.csv"] = csv_text(csv_rows(table)).encode()
    files[f"{study.name}-runs.csv"] = csv_text(run_rows(study, table)).encode()
    files[f"{study.name}.tex"] = latex(study, table).encode()
    if known is not None:
        from robustill.studies.writing import influence_files

        files |= influence_files(study, known)
    files[f"{study.name}.md"] = markdown(study, table, failed, pictures, known).encode()
    for name, content in files.items():
        write_bytes(study.folder / name, content)
    return [study.folder / name for name in files]


def markdown(
    study: Study,
    table: Table,
    failed: Mapping[str, str],
    pictures: Sequence[str] = (),
    known: Influence | None = None,
) -> str:
    """A page: what was asked, the table, its conditions, the figures, and what is missing."""
    header = ["", "checkpoint", "seeds", *(COLUMNS[column] for column in SHOWN), *difference_names()]
    cells = [
        [line.row.label, line.checkpoint, str(len(line.seeds)), *number_cells(line), *difference_cells(line)]
        for line in table.lines
    ]
    lines = [f"# {study.name}", "", study.what, "", *markdown_table(header, cells), ""]
    lines += [*(f"- {each}" for each in conditions(study, table)), ""]
    lines += [f"![{name}]({name})" for name in pictures]
    if known is not None:
        from robustill.studies.writing import section

        lines += ["", *section(study, known)]
    if failed:
        lines += ["", "Missing:", "", *(f"- {name}: {error}" for name, error in failed.items())]
    return "\n".join(lines).rstrip() + "\n"


def latex(study: Study, table: Table) -> str:
    """A tabular for booktabs."""
    header = ["", "checkpoint", "seeds", *(COLUMNS[column] for column in SHOWN), *difference_names()]
    lines = [f"% {each}" for each in (study.what, *conditions(study, table))]
    lines += [rf"\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}", r"\toprule", _latex_row(header), r"\midrule"]
    for line in table.lines:
        cells = [line.row.label, line.checkpoint, str(len(line.seeds)), *number_cells(line), *difference_cells(line)]
        lines.append(_latex_row(cells))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def csv_rows(table: Table) -> Iterable[Sequence[object]]:
    """One row for each line of the table, every number in full."""
    statistics = [f"{column}_{what}" for column in COLUMNS for what in ("mean", "std")]
    differences = [
        f"{column}_difference_{what}" for column in COMPARED for what in ("mean", "std", "low", "high", "verdict")
    ]
    yield ["row", "series", "value", "checkpoint", "seeds", *statistics, "against", *differences]
    for line in table.lines:
        numbers = [number for column in COLUMNS for number in line.mean_std(column)]
        compared: list[object] = []
        for column in COMPARED:
            each = line.differences.get(column)
            compared += (
                ["", "", "", "", ""] if each is None else [each.mean, each.std, each.low, each.high, each.verdict]
            )
        row = line.row
        start = [row.label, row.series, row.value, line.checkpoint, len(line.seeds)]
        yield [*start, *numbers, row.against, *compared]


def run_rows(study: Study, table: Table) -> Iterable[Sequence[object]]:
    """One row for each run and checkpoint."""
    yield ["row", "series", "value", "seed", "run", "checkpoint", *COLUMNS]
    for line in table.lines:
        for seed in line.seeds:
            row = line.row
            start = [row.label, row.series, row.value, seed, study.run_of(seed, row), line.checkpoint]
            yield [*start, *(values[seed] for values in line.values.values())]


def conditions(study: Study, table: Table) -> list[str]:
    """What the numbers hold under, and how they are to be read."""
    lines = []
    if table.conditions:
        stages = ", ".join(str(stage["name"]) for stage in table.conditions["suite"]["stages"])
        # That of the attacks; seeds are those of the runs here.
        known = {key: value for key, value in table.conditions.items() if key != "seed"}
        lines.append(formatting.conditions(known, stages))
    lines += [
        "Mean ± standard deviation over seeds; each seed has its own split, teachers and students. Checkpoints were "
        "chosen on held-out training images.",
        f"Differences are seed by seed, {_compared(study)}. better, worse: Student's 95 % interval of the mean "
        "excludes 0; noise: it does not. Each line is tested alone: of twenty without any effect one would stand out.",
        f"`{study.command}`",
    ]
    return lines


def _compared(study: Study) -> str:
    """From which row those of every other one are."""
    by: dict[str, list[str]] = {}
    for row in study.design.rows:
        if row.against is not None:
            by.setdefault(row.against, []).append(row.label)
    if len(by) == 1:
        return f"from {next(iter(by))}"
    return "; ".join(f"of {', '.join(f'“{label}”' for label in labels)} from “{other}”" for other, labels in by.items())


def difference_names() -> list[str]:
    """Heads of their columns."""
    return [f"{COLUMNS[column]}, difference" for column in COMPARED]


def number_cells(line: Line, columns: Sequence[str] = SHOWN) -> list[str]:
    """Mean ± standard deviation over seeds."""
    return [with_std(*line.mean_std(column)) for column in columns]


def difference_cells(line: Line) -> list[str]:
    """Of COMPARED, each with its verdict."""
    return [_difference(line.differences.get(column)) for column in COMPARED]


def _difference(found: SeedDifference | None) -> str:
    if found is None:
        return "–"
    return f"{with_std(found.mean, found.std, '+')} ({found.verdict})"


_LATEX = {
    "\\": r"\textbackslash{}",
    **{each: f"\\{each}" for each in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    MINUS: "$-$",
    "–": "--",
}


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join("".join(_LATEX.get(letter, letter) for letter in cell) for cell in cells) + r" \\"


HEADER = ("", "checkpoint", "images", "labels", "trained on", "left out", "by heart", "difference")
_KINDS = {"clean": "clean", "adversarial": "attacked"}
_VERDICTS = {"better": "more", "worse": "less", "one seed": "one partition"}


def section(study: Study, found: Influence) -> list[str]:
    """Lines of Markdown."""
    lines = ["## Known by heart", "", explained(study, found), "", *markdown_table(HEADER, mean_cells(found))]
    if found.proxies:
        header = ("", "seed", "of one training", "rank correlation", "95 % interval", "images")
        rows = [
            (
                each.row,
                str(each.seed),
                PROXIES[each.name],
                f"{each.found.rho:+.2f}",
                f"{each.found.low:+.2f} to {each.found.high:+.2f}",
                str(each.found.num_samples),
            )
            for each in found.proxies
        ]
        lines += [
            "",
            "With that score, under attack at the last epoch, what one training on everything records of each image:",
            "",
            *markdown_table(header, rows),
        ]
    return [*lines, "", *(f"![{name}]({name})" for name in _pictures(study, found))]


def explained(study: Study, found: Influence) -> str:
    """What the numbers are."""
    subsets = study.design.subsets[0]
    error = np.mean([each.standard_error for each in found.means])
    return (
        f"By heart: the share of the trainings on an image in which it is right, minus the share of those that left it "
        f"out (Feldman and Zhang 2020); {len(subsets.runs)} trainings a seed, teachers too, each without one of "
        f"{subsets.folds} random folds. Mean ± standard deviation over partitions; the score of one image has a "
        f"standard error of {error:.2f} in the mean. Right is as the label says that was trained on; attacked by "
        f"{POOL.suite}."
    )


def mean_cells(found: Influence) -> list[tuple[str, ...]]:
    """A row for each mean, as HEADER calls its cells."""
    return [
        (
            each.row,
            each.checkpoint,
            _KINDS[each.kind],
            f"{each.group} ({each.images})",
            f"{each.trained:.3f}",
            f"{each.left_out:.3f}",
            with_std(*each.mean_std),
            _mean_difference(each),
        )
        for each in found.means
    ]


def short_cells(mean: Mean) -> tuple[str, str]:
    """What is by heart, and the difference with its verdict."""
    found = mean.difference
    return with_std(*mean.mean_std), "–" if found is None else f"{with_std(found.mean, nan, '+')} ({_verdict(mean)})"


def influence_files(study: Study, found: Influence) -> dict[str, bytes]:
    """The means, the scores of every image by seed, and a figure for each checkpoint."""
    from robustill.studies.figures import memorised

    files = {f"{study.name}-influence.csv": csv_text(_mean_rows(found)).encode()}
    for seed in study.seeds:
        if any(each == seed for _, each, _ in found.trainings):
            files[f"{study.name}-influence-seed-{seed}.csv"] = csv_text(sample_rows(found, seed)).encode()
    return files | {name: memorised(found, checkpoint) for name, checkpoint in _pictures(study, found).items()}


def sample_rows(found: Influence, seed: int) -> Iterable[Sequence[object]]:
    """One row for each image: its id in the training set, and the score of each row and checkpoint with its error."""
    parts = {(row, what): each for (row, own, what), each in found.trainings.items() if own == seed}
    first = next(iter(parts.values()))
    columns: dict[str, Sequence[object]] = {
        "id": first.ids.tolist(),
        "label": first.labels.tolist(),
        "flipped": first.flipped.astype(int).tolist(),
    }
    for (row, checkpoint), each in parts.items():
        for kind in KINDS:
            name, scores = f"{row}_{checkpoint}_{kind}", each.memorisation[kind]
            columns |= {name: scores.score.tolist(), f"{name}_standard_error": scores.standard_error.tolist()}
    yield list(columns)
    yield from zip(*columns.values(), strict=True)


def _pictures(study: Study, found: Influence) -> dict[str, str]:
    """By file name, the checkpoint."""
    return {
        f"{study.name}-influence-{each}.svg": each for each in dict.fromkeys(mean.checkpoint for mean in found.means)
    }


def _mean_rows(found: Influence) -> Iterable[Sequence[object]]:
    yield [
        *("row", "checkpoint", "kind", "labels", "images", "trained_on", "left_out", "memorisation_mean"),
        *("memorisation_std", "partitions", "standard_error_of_one", "difference_mean", "difference_low"),
        *("difference_high", "verdict"),
    ]
    for each in found.means:
        start = [each.row, each.checkpoint, each.kind, each.group, each.images, each.trained, each.left_out]
        difference = each.difference
        end = [] if difference is None else [difference.mean, difference.low, difference.high, _verdict(each)]
        yield [*start, *each.mean_std, len(each.by_partition), each.standard_error, *(end or [None] * 4)]


def _mean_difference(mean: Mean) -> str:
    found = mean.difference
    return "–" if found is None else f"{with_std(found.mean, found.std, '+')} ({_verdict(mean)})"


def _verdict(mean: Mean) -> str:
    assert mean.difference is not None
    return _VERDICTS.get(mean.difference.verdict, mean.difference.verdict)
