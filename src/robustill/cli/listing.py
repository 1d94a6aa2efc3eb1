"""The names that other commands take, for `robustill list` and the completion of a shell, without importing torch.

They are read from names.json, which `python docs/make_reference.py` writes from the tables, see
`robustill.cli.catalogue`; importing the tables themselves would take torch a second.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from robustill.core.errors import RobustillError, did_you_mean

FILE = Path(__file__).with_name("names.json")
"""The names of each kind, each with lines that describe it."""

Row = Sequence[str]
"""A name, one line that describes it, and further lines; of a method, the first of these says which teachers it has."""

_COUNTED = "robustbench"
"""The kind whose names are too many for a screen."""
# Wider than any line: what is piped into another program has one line a name.
_UNLIMITED = 10_000


@cache
def read_names() -> dict[str, list[Row]]:
    """Return the rows of each kind: methods, models, data, recipes, studies, suites, robustbench."""
    names: dict[str, list[Row]] = json.loads(FILE.read_text(encoding="utf-8"))
    return names


_LETTERS = (
    "S(x) and T(x) are the logits of student and teacher, p_S and p_T their probabilities, x an image, x' its "
    "adversarial image, y its label; CE is the cross-entropy, softCE that with probabilities for labels, K the number "
    "of classes."
)
"""What the letters of the formulas mean."""


def list_names(kind: str | None = None, pattern: str | None = None, *, long: bool = False) -> None:
    """Print the names of one kind with what they are, or the bare names of all kinds.

    A name is never wrapped, so that it can be copied. On a screen all methods are grouped by their teachers.

    Args:
        kind: a key of `read_names`; None for all of them.
        pattern: only names that contain this text, or that match it if it has a * or a ?; case does not matter.
        long: print everything that is known of each name, such as formulas and options.

    Raises:
        RobustillError: no name matches the pattern.
    """
    width = shutil.get_terminal_size((_UNLIMITED, 24)).columns
    if kind is None:
        _print_overview(width)
        return
    rows = _matching(kind, pattern)
    longest = max(len(row[0]) for row in rows)
    if kind == "methods" and pattern is None and not long and width < _UNLIMITED:
        _print_groups(rows, longest, width)
        return
    for row in rows:
        indent = _print_row(row, longest, width)
        if long:
            for each in "\n".join(row[2:]).splitlines():
                _print_wrapped(" " * indent + each, width, indent + len(each) - len(each.lstrip()))
            print()
    if long and kind == "methods":
        _print_wrapped(_LETTERS, width, 2)


def _print_groups(rows: Sequence[Row], longest: int, width: int) -> None:
    """Print methods below the teachers that they have."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[2], []).append(row)
    for number, (teachers, members) in enumerate(groups.items()):
        print("\n" * (number > 0) + teachers)
        for row in members:
            _print_row(row, longest, width, margin=2)


def _print_row(row: Row, longest: int, width: int, margin: int = 0) -> int:
    """Print a name and what it is, and return by how much further lines are indented.

    Args:
        row: the name and its line.
        longest: length of the longest name of the list.
        width: width of the screen.
        margin: spaces before the name.
    """
    name, line = row[0], row[1]
    space = " " * margin
    # A name that takes half of the width has its description below it.
    if 2 * longest < width:
        indent = margin + longest + 2
        _print_wrapped(f"{space}{name:<{longest}}  {line}", width, indent)
        return indent
    indent = margin + 4
    if margin + len(name) + 2 + len(line) <= width:
        print(f"{space}{name}  {line}")
    else:
        print(space + name)
        _print_wrapped(" " * indent + line, width, indent)
    return indent


def _print_overview(width: int) -> None:
    """Print the names of each kind; of the kind that is too large for a screen, their number."""
    names = read_names()
    indent = max(map(len, names)) + 2
    for kind, rows in names.items():
        if kind == _COUNTED:
            text = f"{len(rows)} networks of its leaderboards: robustill list {kind} [PATTERN]"
        else:
            text = " ".join(name for name, *_ in rows)
        _print_wrapped(f"{kind:<{indent}}{text}", width, indent)
    print(
        "\n`robustill list KIND` says what each is, `robustill list methods --long` with the formulas."
        "\n`robustill show RECIPE` prints all settings of a recipe."
    )


def _matching(kind: str, pattern: str | None) -> list[Row]:
    """Return the rows of a kind whose name matches a pattern.

    Raises:
        RobustillError: there is none.
    """
    rows = read_names()[kind]
    if pattern is None:
        return rows
    wanted = pattern.lower() if set(pattern) & set("*?") else f"*{pattern.lower()}*"
    found = [row for row in rows if fnmatch.fnmatchcase(row[0].lower(), wanted)]
    if not found:
        hint = did_you_mean(pattern, [row[0] for row in rows])
        # All the names of a large kind would not help.
        hint = hint if len(rows) < 30 or hint.startswith("did") else "give a part of a name, such as resnet"
        raise RobustillError(f"no name of {kind} matches {pattern!r}: {hint}")
    return found


def _print_wrapped(text: str, width: int, indent: int) -> None:
    """Print a text, with what is beyond the width in further lines, which are indented; no word is broken."""
    lines = textwrap.wrap(
        text,
        width,
        subsequent_indent=" " * indent,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    print("\n".join(lines))
