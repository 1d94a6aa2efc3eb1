"""Errors that a user can mend: one line that says what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RobustillError(ValueError):
    """A mistake that the user can mend; the command line prints its message and exits with 2.

    Messages may quote names from files, which may hold any character: line ends and control characters are escaped.

    Example:
        >>> str(RobustillError("no array a\\nb, expected x"))
        'no array a\\\\nb, expected x'
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class ConfigError(RobustillError):
    """A setting that does not exist, or has an impossible value."""


class DataError(RobustillError):
    """Images or labels that are missing, damaged or out of range."""


class CheckpointError(RobustillError):
    """Weights that are missing, damaged, untrusted or of another shape."""


class RunError(RobustillError):
    """A run directory that is missing, damaged, in use or made by another configuration."""


class ModelError(RobustillError):
    """A network that breaks the contract: [B,C,H,W] in [0,1] to finite logits [B,K]."""


def printable(text: str) -> str:
    """Return a text with line ends, and characters that would steer a terminal, written as escapes.

    It is meant for texts from a file of someone else, and for names of files.

    Example:
        >>> printable("a\\nb")
        'a\\\\nb'
    """
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none.

    Example:
        >>> first_line(ValueError("a\\nb")), first_line(EOFError())
        ('a', 'EOFError')
    """
    lines = str(error).splitlines()
    if lines and lines[0]:
        return lines[0]
    return type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the one or two valid names nearest to a word, or all of them.

    Args:
        word: the unknown word.
        known: the valid names.

    Example:
        >>> did_you_mean("adk", ["akd", "trades"])
        'did you mean akd?'
    """
    names = sorted(known)
    # Of three letters, two agree by chance.
    close = difflib.get_close_matches(word, names, n=2, cutoff=0.6 if len(word) > 3 else 0.75)
    # Swapped letters are the most common slip, and the ratio above counts them twice.
    close = [name for name in names if sorted(name) == sorted(word)] or close
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
