"""What a study says of memorisation, as a section of its page and as files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import nan

import numpy as np

from robustill.report.cells import csv_text, markdown_table, with_std
from robustill.studies.influence import KINDS, PROXIES, Influence, Mean
from robustill.studies.study import POOL, Study

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
            _difference(each),
        )
        for each in found.means
    ]


def short_cells(mean: Mean) -> tuple[str, str]:
    """What is by heart, and the difference with its verdict."""
    found = mean.difference
    return with_std(*mean.mean_std), "–" if found is None else f"{with_std(found.mean, nan, '+')} ({_verdict(mean)})"


def influence_files(study: Study, found: Influence) -> dict[str, bytes]:
    """The means, the scores of every image by seed, and a figure for each checkpoint."""
    from robustill.studies.curves import memorised

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


def _difference(mean: Mean) -> str:
    found = mean.difference
    return "–" if found is None else f"{with_std(found.mean, found.std, '+')} ({_verdict(mean)})"


def _verdict(mean: Mean) -> str:
    assert mean.difference is not None
    return _VERDICTS.get(mean.difference.verdict, mean.difference.verdict)
