"""What commands print: a name or a file of somebody else does not steer the terminal, and no character is an error."""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# Colours and the end of a line cleared are ours; anything else that steers a terminal, or the order of its letters, or
# that stands for a byte that is no UTF-8, can only come from a name or a file.
_STEERING = re.compile(
    r"\x1b\[[0-9;]*[mK]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

_PLAIN = {
    "\N{NO-BREAK SPACE}": " ",
    "\N{NARROW NO-BREAK SPACE}": " ",
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
    "\N{MIDDLE DOT}": ",",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{PLUS-MINUS SIGN}": "+/-",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{INFINITY}": "inf",
}


def _in_plain_text(error: UnicodeError) -> tuple[str, int]:
    """Return other characters for those that a stream cannot encode, as an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(each) or _spelled_out(each) for each in characters), error.end


# A terminal of few characters is no reason to fail after an evaluation of hours.
codecs.register_error("plain text", _in_plain_text)


def plain_console() -> Console:
    """Return a console that prints text as it is, whatever brackets or colons the name of a file has."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


@contextmanager
def escaped_output() -> Iterator[None]:
    """Within the block, what is printed to stdout and stderr goes through `escape`, in their own encoding."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Escaping(before[0]), _Escaping(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def escape(text: str) -> str:
    """Spell out what would steer a terminal; colours, tabs and line ends stay.

    Example:
        >>> escape("run\\x1b]0;title\\x07 \\x1b[1mbold\\x1b[0m") == "run\\\\x1b]0;title\\\\x07 \\x1b[1mbold\\x1b[0m"
        True
    """
    return _STEERING.sub(lambda found: found[0] if len(found[0]) > 1 else _spelled_out(found[0]), text)


def _spelled_out(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


class _Escaping:
    """A text stream that escapes what is written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text; a character that the encoding lacks is written with those that it has."""
        encoding = self._stream.encoding or "utf-8"
        return self._stream.write(escape(text).encode(encoding, "plain text").decode(encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
