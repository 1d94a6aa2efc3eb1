"""What a user can mend: one line that says what was found, what was expected and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RobustillError(ValueError):
    """A mistake that the user can mend; the command line prints its line and exits with 2.

    Names that come from files may hold anything: line ends and what would steer a terminal are spelled out.

    Example:
        >>> str(RobustillError("no array a\\nb, expected x"))
        'no array a\\\\nb, expected x'
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class ConfigError(RobustillError):
    """A setting that does not exist or cannot be."""


class DataError(RobustillError):
    """Images or labels that are missing, damaged or out of range."""


class CheckpointError(RobustillError):
    """Weights that are missing, damaged, untrusted or of another shape."""


class RunError(RobustillError):
    """A run directory that is missing, damaged, in use or made by another configuration."""


class ModelError(RobustillError):
    """A network that breaks the contract: [B,C,H,W] in [0,1] to finite logits [B,K]."""


def printable(text: str) -> str:
    """A text that may come from a file or be its name, with line ends and what would steer a terminal spelled out.

    Example:
        >>> printable("a\\nb")
        'a\\\\nb'
    """
    return "".join(each if each.isprintable() else _spelled_out(each) for each in text)


def _spelled_out(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def first_line(error: BaseException) -> str:
    """What an error says, or its kind where it says nothing.

    Example:
        >>> first_line(ValueError("a\\nb")), first_line(EOFError())
        ('a', 'EOFError')
    """
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of an error line: the nearest one or two known names, or all of them.

    Example:
        >>> did_you_mean("adk", ["akd", "trades"])
        'did you mean akd?'
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=2, cutoff=0.6)
    # Letters exchanged are the commonest slip of all, and the ratio above counts them double.
    close = [name for name in names if sorted(name) == sorted(word)] or close
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
