"""Formatting of values as text: numbers, durations, names, tables. Each kind of value has one form everywhere."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from robustill.core.errors import printable

MINUS = "\N{MINUS SIGN}"
SPACE = "\N{NO-BREAK SPACE}"

# --- numbers


def count(number: int) -> str:
    """Format a whole number in groups of three digits: 1234567 is 1 234 567, with narrow spaces."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def percent(share: float) -> str:
    """Format a share in percent: 0.5214 is 52.1 %."""
    return f"{100 * share:.1f}{SPACE}%"


def points(share: float) -> str:
    """Format a difference of shares in percentage points, with its sign: 0.034 is +3.4."""
    text = f"{100 * share:+.1f}".replace("-", MINUS)
    return text if text[1:] != "0.0" else "0.0"


def with_std(mean: float, std: float, sign: str = "") -> str:
    """Format mean ± standard deviation; NaN as the deviation leaves it out, NaN as the mean is a dash.

    Args:
        mean: the mean.
        std: the standard deviation.
        sign: "+" shows the sign of positive means.
    """
    if math.isnan(mean):
        return "–"
    text = f"{mean:{sign}.3f}".replace("-", MINUS)
    return text if math.isnan(std) else f"{text} ± {std:.3f}"


def radius(norm: str, eps: float) -> str:
    """Format a radius: an l∞ radius of a few grey levels as a fraction of 255, any other as a decimal number."""
    levels = eps * 255
    if norm == "linf" and 0 < levels <= 32.5 and abs(levels - round(levels)) < 1e-4:
        return f"{round(levels)}/255"
    return f"{eps:.4g}"


# --- durations


def clock(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours.

    Example:
        >>> clock(75), clock(4020)
        ('1 min 15 s', '1 h 07 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if whole < 3600:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def duration(seconds: float) -> str:
    """Format a duration as `clock` does, with no-break spaces before its units, and in tenths below 10 s."""
    if seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    return re.sub(r"(\d) ", rf"\1{SPACE}", clock(seconds))


# --- names and values


def slug(text: str) -> str:
    """Replace every run of characters other than letters, digits and any of _ . + - by one hyphen, for file names.

    Example:
        >>> slug("my_pkg.my_mod:build (1)")
        'my_pkg.my_mod-build-1-'
    """
    return re.sub(r"[^\w.+-]+", "-", text)


def shorten(text: str, longest: int = 26) -> str:
    """Cut off the beginning of a long name: names of runs differ at their ends."""
    return text if len(text) <= longest else f"…{text[1 - longest :]}"


def join_with_and(parts: Sequence[str]) -> str:
    """Join names as in "a, b and c"."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def show_value(value: Any) -> str:
    """Format a value of a configuration or of the conditions of an evaluation on one line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(show_value, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {show_value(each)}" for key, each in value.items()) or "none"
    return str(value)


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, formatted value) for all values of a nested dictionary."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", show_value(value)


# --- what a network costs where it runs


def describe_deployment(known: Mapping[str, Any]) -> str:
    """Format the size and the latency of a network, see `robustill.models.deployment`, in one line.

    Example:
        >>> describe_deployment(
        ...     {
        ...         "bytes": 100125,
        ...         "milliseconds": {"1": {"median": 0.056, "quartiles": [0.0551, 0.0583]}},
        ...         "threads": 1,
        ...         "runtime": "onnxruntime 1.32.0, CPU",
        ...     }
        ... )
        '100,125 bytes; 0.056 ms at batch 1 (quartiles 0.0551–0.0583); 1 thread, onnxruntime 1.32.0, CPU'
    """
    times = [
        f"{each['median']:.3g} ms at batch {batch} (quartiles {each['quartiles'][0]:.3g}–{each['quartiles'][1]:.3g})"
        for batch, each in known["milliseconds"].items()
    ]
    threads = "1 thread" if known["threads"] == 1 else f"{known['threads']} threads"
    return "; ".join([f"{known['bytes']:,} bytes", *times, f"{threads}, {known['runtime']}"])


def as_shipped(conditions: Mapping[str, Any]) -> tuple[str, ...]:
    """Format what attacked a file as it is shipped and what it costs, in short parts; none for other evaluations.

    Args:
        conditions: those of an evaluation, which may come from anyone.
    """
    shipped, deployment = conditions.get("attacked_as_shipped"), conditions.get("deployment")
    try:
        parts = []
        if isinstance(shipped, Mapping):
            attacks = shipped["attacks"]
            parts += [f"robust under {name} alone {value:.3f} ({attacks[name]})" for name, value in _alone(shipped)]
            parts.append(f"not tried: {join_with_and([str(each) for each in shipped['not_tried']])}")
        if isinstance(deployment, Mapping):
            parts.append(describe_deployment(deployment))
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        return ()
    return tuple(parts)


def _alone(shipped: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(str(name), float(value)) for name, value in shipped["robust_accuracy_alone"].items()]


# --- what an evaluation was made on


def share_of_images(number: int, total: int) -> str:
    """Format the number of images that were evaluated; fewer than all are called a subset."""
    part = "all" if number == total else "a subset of"
    return f"{number} images, {part} {total}"


def conditions(known: Mapping[str, Any], attacks: str = "") -> str:
    """Format the conditions of an evaluation in one line.

    Args:
        known: the conditions as `Records` has them: data, split, num_images, of_images, selection if there is one,
            threat, suite, date, and seed unless it differs from row to row.
        attacks: a description of the suite's attacks.
    """
    suite = f"suite {known['suite']['name']}"
    if attacks:
        suite += f" ({attacks})"
    seed = f"seed {known['seed']}; " if "seed" in known else ""
    # The selection says "first N of M"; other subsets are class-balanced.
    first = "the first " if "selection" in known else ""
    return (
        f"{known['data']} {known['split']}: {first}{share_of_images(known['num_images'], known['of_images'])}; "
        f"{known['threat']['text']}; {suite}; {seed}{known['date']}"
    )


# --- tables


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; a line end in a cell becomes a space."""
    lines = []
    for row in (header, *rows):
        cells = [" ".join(cell.splitlines()).replace("|", r"\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    lines.insert(1, "|" + "---|" * len(header))
    return lines


_LATEX = {
    "\\": r"\textbackslash{}",
    **{each: f"\\{each}" for each in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    MINUS: "$-$",
    "–": "--",
    SPACE: "~",
}


def latex_row(cells: Sequence[str]) -> str:
    """Return a row of a LaTeX tabular; every character stands for itself.

    Example:
        >>> print(latex_row(["AT_1", "50 %"]))
        AT\\_1 & 50 \\% \\\\
    """
    return " & ".join("".join(_LATEX.get(letter, letter) for letter in cell) for cell in cells) + r" \\"


def latex_comment(text: str) -> str:
    """Return a comment of LaTeX; a line end in the text, after which LaTeX would read on, is escaped.

    Example:
        >>> latex_comment("50 %\\nof it")
        '% 50 %\\\\nof it'
    """
    return f"% {printable(text)}"


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV, with all digits of every number, NaN and None as empty cells, and no text as a formula."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        writer.writerow(["" if _is_missing(cell) else csv_cell(cell) for cell in row])
    return file.getvalue()


def csv_cell(cell: object) -> object:
    """Return a cell of a CSV file; a text that a spreadsheet would run as a formula gets an apostrophe in front.

    Example:
        >>> csv_cell("=cmd"), csv_cell("-0.5"), csv_cell(-0.5)
        ("'=cmd", '-0.5', -0.5)
    """
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _is_missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))
