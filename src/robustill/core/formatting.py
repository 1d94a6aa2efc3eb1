"""How numbers are printed: one way for each kind, everywhere on the page."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def clock(seconds: float) -> str:
    """A length of time in words.

    Example:
        >>> clock(75), clock(4020)
        ('1 min 15 s', '1 h 07 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


MINUS = "\N{MINUS SIGN}"
SPACE = "\N{NO-BREAK SPACE}"


def percent(share: float) -> str:
    """0.5214 is 52.1 %."""
    return f"{100 * share:.1f}{SPACE}%"


def points(share: float) -> str:
    """A difference of shares in percentage points, signed: 0.034 is +3.4."""
    text = f"{100 * share:+.1f}".replace("-", MINUS)
    return text if text[1:] != "0.0" else "0.0"


def duration(seconds: float) -> str:
    """93 is 1 min 33 s, with a space before a unit that no line breaks at; of less than 10 s tenths are shown."""
    return f"{seconds:.1f}{SPACE}s" if seconds < 9.95 else re.sub(r"(\d) ", rf"\1{SPACE}", clock(seconds))


def share_of_images(number: int, total: int) -> str:
    """How many images of how many: a part of them is always called one."""
    return f"{number} images, {'all' if number == total else 'a subset of'} {total}"


def conditions(known: Mapping[str, Any], attacks: str = "") -> str:
    """The conditions of an evaluation, as `Records` has them, in one line.

    Args:
        known: data, split, num_images, of_images, threat, suite, date, and seed unless it differs from row to row.
        attacks: those of the suite, in words.
    """
    suite = f"suite {known['suite']['name']}" + (f" ({attacks})" if attacks else "")
    seed = f"seed {known['seed']}; " if "seed" in known else ""
    return (
        f"{known['data']} {known['split']}: {share_of_images(known['num_images'], known['of_images'])}; "
        f"{known['threat']['text']}; {suite}; {seed}{known['date']}"
    )


def count(number: int) -> str:
    """1234567 with thin groups."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def radius(norm: str, eps: float) -> str:
    """An l∞ radius of a few grey levels as a fraction of 255, any other as it is."""
    levels = eps * 255
    if norm == "linf" and 0 < levels <= 32.5 and abs(levels - round(levels)) < 1e-4:
        return f"{round(levels)}/255"
    return f"{eps:.4g}"


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def shortened(text: str, longest: int = 26) -> str:
    """The end of a long name: that is where names of runs differ."""
    return text if len(text) <= longest else f"…{text[1 - longest :]}"


def show_value(value: Any) -> str:
    """A value of a configuration or of conditions on one line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(show_value, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {show_value(each)}" for key, each in value.items()) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as (dotted key, printed value)."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", show_value(value)


def with_std(mean: float, std: float, sign: str = "") -> str:
    """Mean ± standard deviation; an unknown one is left out, an unknown mean is a dash."""
    if math.isnan(mean):
        return "–"
    text = f"{mean:{sign}.3f}".replace("-", MINUS)
    return text if math.isnan(std) else f"{text} ± {std:.3f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    head, *body = ("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (header, *rows))
    return [head, f"|{'---|' * len(header)}", *body]


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """The rows as CSV, every number in full."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        # An empty cell, not the word nan: a spreadsheet reads both.
        writer.writerow(
            ["" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else cell for cell in row]
        )
    return file.getvalue()
