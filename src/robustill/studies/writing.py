"""The results of a study as files: Markdown, CSV, LaTeX and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from pathlib import Path

import numpy as np

from robustill.analysis.statistics import SIGNIFICANCE_LEVEL, SeedDifference
from robustill.core import formatting
from robustill.core.files import write_bytes
from robustill.core.formatting import csv_text, latex_comment, latex_row, markdown_table, with_std
from robustill.studies.memorisation import KINDS, PROXIES, MeanMemorisation, MemorisationResult
from robustill.studies.shipped import ShippedRow, shipped_files, shipped_section
from robustill.studies.study import POOL_EVALUATION, Study
from robustill.studies.table import COLUMNS, COMPARED, RowResult, Table

MEMORISATION_HEADER = ("", "checkpoint", "images", "labels", "trained on", "left out", "memorisation", "difference")
"""The header of the table of memorisation."""

_COMPUTE = (
    "TFLOP: 10¹² floating-point operations of the training of one seed, counted, with its validation and, in brackets, "
    "the training of its teachers in this study."
)
_KINDS = {"clean": "clean", "adversarial": "attacked"}
# The verdicts of SeedDifference, for a difference of memorisation paired by partition.
_MEMORISATION_VERDICTS = {"better": "more", "worse": "less", "one seed": "one partition", "two seeds": "two partitions"}


def write_results(
    study: Study,
    table: Table,
    failed: Mapping[str, str],
    memorisation: MemorisationResult | None = None,
    shipped: Sequence[ShippedRow] = (),
) -> list[Path]:
    """Write every file of results; each is replaced as a whole, and named after the study.

    Args:
        study: the study.
        table: its table.
        failed: the runs that are missing, with the reasons.
        memorisation: its memorisation, if the study measures it.
        shipped: its files as they are shipped, if it has any.

    Returns:
        The files.
    """
    from robustill.studies.figures import figures

    files: dict[str, bytes] = {f"{study.name}-{name}.svg": content for name, content in figures(study, table).items()}
    figure_names = list(files)
    files[f"{study.name}.csv"] = csv_text(csv_rows(table)).encode()
    files[f"{study.name}-runs.csv"] = csv_text(run_rows(study, table)).encode()
    files[f"{study.name}.tex"] = latex(study, table).encode()
    if memorisation is not None:
        files |= memorisation_files(study, memorisation)
    if shipped:
        files |= shipped_files(study, shipped)
    files[f"{study.name}.md"] = markdown(study, table, failed, figure_names, memorisation, shipped).encode()
    for name, content in files.items():
        write_bytes(study.folder / name, content)
    return [study.folder / name for name in files]


def markdown(
    study: Study,
    table: Table,
    failed: Mapping[str, str],
    figure_names: Sequence[str] = (),
    memorisation: MemorisationResult | None = None,
    shipped: Sequence[ShippedRow] = (),
) -> str:
    """Format the results as a Markdown page: the table, its conditions, the figures, and the runs that are missing."""
    lines = [f"# {study.name}", "", study.description, ""]
    lines += [*markdown_table(_header(table), [_cells(table, each) for each in table.results]), ""]
    lines += [*(f"- {each}" for each in (*conditions(study, table), _COMPUTE)), ""]
    lines += [f"![{name}]({name})" for name in figure_names]
    if memorisation is not None:
        lines += ["", *memorisation_section(study, memorisation)]
    lines += shipped_section(study, shipped)
    if failed:
        lines += ["", "Missing runs:", "", *(f"- {name}: {error}" for name, error in failed.items())]
    return "\n".join(lines).rstrip() + "\n"


def latex(study: Study, table: Table) -> str:
    """Format the table as a LaTeX tabular for the package booktabs."""
    header = _header(table)
    columns = "ll" + "r" * (len(header) - 2)
    lines = [latex_comment(each) for each in (study.description, *conditions(study, table), _COMPUTE)]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", latex_row(header), r"\midrule"]
    lines += [latex_row(_cells(table, each)) for each in table.results]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _header(table: Table) -> list[str]:
    short = [COLUMNS[column] for column in table.shown]
    differences = [f"{COLUMNS[column]}, difference" for column in COMPARED]
    return ["", "checkpoint", "seeds", *short, *differences, "TFLOP (teachers)"]


def _cells(table: Table, result: RowResult) -> list[str]:
    start = [result.row.label, result.checkpoint, str(len(result.seeds))]
    return [*start, *number_cells(result, table.shown), *difference_cells(result), result.compute.cell]


def csv_rows(table: Table) -> Iterable[Sequence[object]]:
    """Yield the header and one row for each line of the table, with all columns in full precision."""
    statistics = [f"{column}_{name}" for column in COLUMNS for name in ("mean", "std")]
    differences = [
        f"{column}_difference_{name}"
        for column in COMPARED
        for name in ("mean", "std", "low", "high", "p_value", "verdict")
    ]
    compute = ["training_gflop", "teachers_gflop"]
    yield ["row", "series", "value", "checkpoint", "seeds", *statistics, "against", *differences, *compute]
    for result in table.results:
        numbers = [number for column in COLUMNS for number in result.mean_std(column)]
        compared: list[object] = []
        for column in COMPARED:
            each = result.differences.get(column)
            if each is None:
                compared += [""] * 6
            else:
                compared += [each.mean, each.std, each.low, each.high, each.p_value, each.verdict]
        row = result.row
        start = [row.label, row.series, row.value, result.checkpoint, len(result.seeds)]
        yield [*start, *numbers, row.against, *compared, result.compute.own, result.compute.teachers]


def run_rows(study: Study, table: Table) -> Iterable[Sequence[object]]:
    """Yield the header and one row for each run and checkpoint."""
    yield ["row", "series", "value", "seed", "run", "checkpoint", *COLUMNS]
    for result in table.results:
        row = result.row
        for seed in result.seeds:
            start = [row.label, row.series, row.value, seed, study.run_of(seed, row), result.checkpoint]
            yield [*start, *(values[seed] for values in result.values.values())]


def conditions(study: Study, table: Table) -> list[str]:
    """Return the conditions of the numbers and how to read them, one sentence or command a line."""
    lines = []
    if table.conditions:
        stages = ", ".join(str(stage["name"]) for stage in table.conditions["suite"]["stages"])
        # The seed of the attacks is left out, since "seeds" are those of the runs here.
        shown = {key: value for key, value in table.conditions.items() if key != "seed"}
        lines.append(formatting.conditions(shown, stages))
    lines.append(
        "Mean ± standard deviation over seeds; each seed has its own data split, teachers and students. The best "
        "checkpoints were chosen on validation images."
    )
    compared = _comparisons(study)
    if compared:
        lines.append(
            f"Differences are paired by seed and image, {compared}. better, worse: p < {SIGNIFICANCE_LEVEL:g} for "
            "other seeds and other test images, after Holm's correction for all differences of clean and robust "
            "accuracy; noise: not told from it, which does not mean equal."
        )
    return [*lines, f"`{study.command}`"]


def _comparisons(study: Study) -> str:
    """Describe which rows are compared with which; empty if none is."""
    labels_by_baseline: dict[str, list[str]] = {}
    for row in study.design.rows:
        if row.against is not None:
            labels_by_baseline.setdefault(row.against, []).append(row.label)
    if len(labels_by_baseline) == 1:
        (baseline,) = labels_by_baseline
        return f"from {baseline}"
    parts = []
    for baseline, labels in labels_by_baseline.items():
        quoted = ", ".join(f"“{label}”" for label in labels)
        parts.append(f"of {quoted} from “{baseline}”")
    return "; ".join(parts)


def number_cells(result: RowResult, columns: Sequence[str]) -> list[str]:
    """Format the mean ± standard deviation of each column."""
    return [with_std(*result.mean_std(column)) for column in columns]


def difference_cells(result: RowResult) -> list[str]:
    """Format the difference of each column of COMPARED, with its verdict."""
    return [_difference_cell(result.differences.get(column)) for column in COMPARED]


def _difference_cell(difference: SeedDifference | None) -> str:
    if difference is None:
        return "–"
    return f"{with_std(difference.mean, difference.std, '+')} ({difference.verdict})"


def memorisation_section(study: Study, result: MemorisationResult) -> list[str]:
    """Format the section of the Markdown page on memorisation, as lines."""
    lines = ["## Memorisation", "", explain_memorisation(study, result), ""]
    lines += markdown_table(MEMORISATION_HEADER, memorisation_cells(result))
    if result.proxies:
        header = ("", "seed", "metric of one training", "rank correlation", "95 % interval", "images")
        rows = [
            (
                each.row,
                str(each.seed),
                PROXIES[each.metric],
                f"{each.correlation.rho:+.2f}",
                f"{each.correlation.low:+.2f} to {each.correlation.high:+.2f}",
                str(each.correlation.num_samples),
            )
            for each in result.proxies
        ]
        lines += [
            "",
            "Rank correlation of memorisation, under attack at the last epoch, with metrics that one training on all "
            "images records:",
            "",
            *markdown_table(header, rows),
        ]
    return [*lines, "", *(f"![{name}]({name})" for name in _figure_names(study, result))]


def explain_memorisation(study: Study, result: MemorisationResult) -> str:
    """Explain how memorisation is defined and measured, with the conditions of this study."""
    subsets = study.design.subsets[0]
    error = np.mean([each.standard_error for each in result.means])
    return (
        f"Memorisation of an image: the share of the trainings with it that classify it correctly, minus the share of "
        f"those without it (Feldman and Zhang 2020); {len(subsets.runs)} trainings a seed, each with its teachers on "
        f"the same images, without one of {subsets.folds} random folds. Mean ± standard deviation over partitions; the "
        f"score of one image has a mean standard error of {error:.2f}. Correct means the label that was trained on; "
        f"attacked means under {POOL_EVALUATION.suite}."
    )


def memorisation_cells(result: MemorisationResult) -> list[tuple[str, ...]]:
    """Format a row for each mean, with the columns of MEMORISATION_HEADER."""
    return [
        (
            each.row,
            each.checkpoint,
            _KINDS[each.kind],
            f"{each.group} ({each.images})",
            f"{each.trained:.3f}",
            f"{each.left_out:.3f}",
            with_std(*each.mean_std),
            _memorisation_difference_cell(each),
        )
        for each in result.means
    ]


def short_memorisation_cells(mean: MeanMemorisation) -> tuple[str, str]:
    """Format a mean and its difference without the latter's standard deviation, for a narrow terminal."""
    value = with_std(*mean.mean_std)
    if mean.difference is None:
        return value, "–"
    return value, f"{with_std(mean.difference.mean, nan, '+')} ({_memorisation_verdict(mean.difference)})"


def memorisation_files(study: Study, result: MemorisationResult) -> dict[str, bytes]:
    """Format the means, the scores of every image for each seed, and a figure for each checkpoint, by file name."""
    from robustill.studies.figures import memorisation_figure

    files = {f"{study.name}-influence.csv": csv_text(_mean_rows(result)).encode()}
    for seed in study.seeds:
        if any(each == seed for _, each, _ in result.trainings):
            files[f"{study.name}-influence-seed-{seed}.csv"] = csv_text(sample_rows(result, seed)).encode()
    for name, checkpoint in _figure_names(study, result).items():
        files[name] = memorisation_figure(result, checkpoint)
    return files


def sample_rows(result: MemorisationResult, seed: int) -> Iterable[Sequence[object]]:
    """Yield the header and one row for each image: its id, its label, and the scores of each row and checkpoint."""
    trainings = {(row, checkpoint): each for (row, own, checkpoint), each in result.trainings.items() if own == seed}
    first = next(iter(trainings.values()))
    columns: dict[str, Sequence[object]] = {
        "id": first.ids.tolist(),
        "label": first.labels.tolist(),
        "flipped": first.flipped.astype(int).tolist(),
    }
    for (row, checkpoint), each in trainings.items():
        for kind in KINDS:
            name, scores = f"{row}_{checkpoint}_{kind}", each.memorisation[kind]
            columns[name] = scores.score.tolist()
            columns[f"{name}_standard_error"] = scores.standard_error.tolist()
    yield list(columns)
    yield from zip(*columns.values(), strict=True)


def _figure_names(study: Study, result: MemorisationResult) -> dict[str, str]:
    """Return the checkpoint of each figure of memorisation, by file name."""
    checkpoints = dict.fromkeys(mean.checkpoint for mean in result.means)
    return {f"{study.name}-influence-{checkpoint}.svg": checkpoint for checkpoint in checkpoints}


def _mean_rows(result: MemorisationResult) -> Iterable[Sequence[object]]:
    yield [
        *("row", "checkpoint", "kind", "labels", "images", "trained_on", "left_out", "memorisation_mean"),
        *("memorisation_std", "partitions", "standard_error_of_one", "difference_mean", "difference_low"),
        *("difference_high", "verdict"),
    ]
    for each in result.means:
        start = [each.row, each.checkpoint, each.kind, each.group, each.images, each.trained, each.left_out]
        difference = each.difference
        compared: list[object] = [None, None, None, None]
        if difference is not None:
            compared = [difference.mean, difference.low, difference.high, _memorisation_verdict(difference)]
        yield [*start, *each.mean_std, len(each.by_partition), each.standard_error, *compared]


def _memorisation_difference_cell(mean: MeanMemorisation) -> str:
    if mean.difference is None:
        return "–"
    value = with_std(mean.difference.mean, mean.difference.std, "+")
    return f"{value} ({_memorisation_verdict(mean.difference)})"


def _memorisation_verdict(difference: SeedDifference) -> str:
    return _MEMORISATION_VERDICTS.get(difference.verdict, difference.verdict)
