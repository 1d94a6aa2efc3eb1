"""Import of code outside this package: every import path `my_pkg.my_mod:name` is imported by this module or not at all.

Importing a module runs it. A path that the user names, in Python or on the command line, is imported; a path that a
file names (a run directory, a configuration) is refused unless the user names the same path or trusts it explicitly.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from robustill.core.errors import RobustillError, first_line

TrustCode = bool | str | Sequence[str]
"""Import paths that files may name: a sequence, or a text with commas; True is all of them."""

SPECIFICATION_KINDS = ("run", "robustbench", "timm", "torchvision", "hf")
"""What stands before the colon of a specification such as run:teacher, which has the form of an import path."""

_FILE_PATH = re.compile(r"(.*/)?([A-Za-z_]\w*)\.py:([A-Za-z_]\w*)")

_search_folders: list[str] = []


class UntrustedCodeError(RobustillError):
    """Code that a file names, and that the user did not."""


@dataclass(frozen=True)
class _Allowed:
    paths: frozenset[str]
    all_paths: bool
    origin: str


# None outside every `only_named`: there the caller is Python code, which could import the path itself.
_allowed: ContextVar[_Allowed | None] = ContextVar("_allowed", default=None)


@contextmanager
def only_named(*paths: str, trust: TrustCode = False, origin: str = "a file") -> Iterator[None]:
    """Within the block, import these paths and those of the surrounding blocks only.

    Args:
        paths: those that the user named; never the content of a file.
        trust: more paths; True allows every path.
        origin: the file whose content is used in the block, for the error.

    Example:
        >>> with only_named("my_mod:net"):
        ...     check_named("os:system")
        Traceback (most recent call last):
        robustill.core.user_code.UntrustedCodeError: a file names the code os:system, which runs when it is imported: \
if you trust it, add --trust-code os:system (in Python: trust_code=['os:system'])
    """
    outer = _allowed.get()
    given = {*paths, *trusted_paths(trust)}
    if outer is not None:
        given |= outer.paths
    all_paths = trust is True or (outer is not None and outer.all_paths)
    token = _allowed.set(_Allowed(frozenset(given), all_paths, origin))
    try:
        yield
    finally:
        _allowed.reset(token)


def current_trust() -> TrustCode:
    """Return what is allowed here, as `only_named` takes it in another process."""
    allowed = _allowed.get()
    if allowed is None:
        return False
    return True if allowed.all_paths else tuple(sorted(allowed.paths))


def check_named(path: str) -> None:
    """Check that an import path may be imported here.

    Raises:
        UntrustedCodeError: only a file names it.
    """
    allowed = _allowed.get()
    if allowed is None or allowed.all_paths or path in allowed.paths:
        return
    raise UntrustedCodeError(
        f"{allowed.origin} names the code {path}, which runs when it is imported: if you trust it, add "
        f"--trust-code {shlex.quote(path)} (in Python: trust_code={[path]!r})"
    )


def import_user_module(path: str) -> ModuleType:
    """Import the module of an import path, after `check_named`.

    Raises:
        UntrustedCodeError: only a file names it.
        ImportError: it is not installed, it fails, or `path` is no import path; the message is one line.
    """
    if (advice := explain_file(path)) is not None:
        raise ImportError(f"it {advice}")
    if not is_import_path(path):
        raise ImportError(f"{path!r} is no import path such as my_pkg.my_mod:name")
    check_named(path)
    sys.path.extend(folder for folder in _search_folders if folder not in sys.path)
    module = path.partition(":")[0]
    try:
        return importlib.import_module(module)
    except RobustillError:
        raise
    except SystemExit as error:
        raise ImportError("it ends the program: put what it runs below if __name__ == '__main__':") from error
    except Exception as error:  # A user's module can raise anything.
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        reason = f"{first_line(error)}; install it, or start in its folder" if is_missing else describe_failure(error)
        raise ImportError(reason) from error


def import_callable(path: str, what: str, kind: str, error: type[RobustillError]) -> Callable[..., Any]:
    """Import the function or the class that `my_pkg.my_mod:name` names.

    Args:
        path: the import path.
        what: what it is for, such as "model".
        kind: what is expected, such as "function".
        error: the error to raise if there is none.

    Raises:
        UntrustedCodeError: only a file names it.
    """
    if (advice := explain_file(path)) is not None:
        raise error(f"{what} {path} {advice}")
    module_name, _, name = path.partition(":")
    try:
        module = import_user_module(path)
    except ImportError as failure:
        raise error(f"{what} {path}: cannot import {module_name!r}: {failure}") from failure
    found = getattr(module, name, None)
    if not callable(found):
        raise error(f"{what} {path}: {module_name} has no {kind} {name!r}")
    called: Callable[..., Any] = found
    return called


def describe_failure(error: Exception) -> str:
    """Describe an error that code of the user raised, with the line that raised it.

    Example:
        >>> describe_failure(KeyError("width"))
        "KeyError: 'width'"
    """
    line, file = getattr(error, "lineno", None), getattr(error, "filename", None)
    if not isinstance(error, SyntaxError):
        frames = traceback.extract_tb(error.__traceback__)
        line, file = (frames[-1].lineno, frames[-1].filename) if frames else (None, None)
    place = "" if line is None else f" (line {line} of {file})"
    message = error.msg if isinstance(error, SyntaxError) else first_line(error)
    return f"{type(error).__name__}: {message}{place}"


def explain_file(path: str) -> str | None:
    """Explain what to write where an import path names a file, such as `mynet.py:load`; None for other paths.

    Example:
        >>> explain_file("nets/mynet.py:load")
        'names a file: write its module, mynet:load, and start in nets or add that folder to PYTHONPATH'
    """
    found = _FILE_PATH.fullmatch(path)
    if found is None:
        return None
    folder, stem, function = found.groups()
    start = f"start in {folder.rstrip('/')} or add that folder to PYTHONPATH" if folder else "start in its folder"
    return f"names a file: write its module, {stem}:{function}, and {start}"


def search_in(folder: Path | str) -> None:
    """Search a folder for the modules of import paths, too, after everything that is installed.

    It is added to `sys.path` by the first import of the user's code, so that it adds no module to a process without.
    """
    if str(folder) not in _search_folders:
        _search_folders.append(str(folder))


def is_import_path(text: Any) -> bool:
    """Return whether a text has the form my_pkg.my_mod:name."""
    if not isinstance(text, str):
        return False
    module, _, name = text.partition(":")
    return name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def names_code(text: Any) -> bool:
    """Return whether a text is an import path, and no specification of a network such as run:teacher.

    Example:
        >>> names_code("my_mod:net"), names_code("timm:resnet18")
        (True, False)
    """
    return is_import_path(text) and text.partition(":")[0] not in SPECIFICATION_KINDS


def paths_in(words: Iterable[str]) -> list[str]:
    """Return the import paths among the words of a command line, also inside lists and after an equals sign.

    Example:
        >>> paths_in(["--model=my_mod:net", "--teachers", "[run:a, my_mod:old]"])
        ['my_mod:net', 'my_mod:old']
    """
    pieces = [piece for word in words for piece in re.split(r"[\s,\[\]{}\"'=]+", word)]
    return [each for each in pieces if names_code(each)]


def trusted_paths(trust: TrustCode) -> list[str]:
    """Return the import paths that are trusted by name; none for True, which trusts all of them."""
    if isinstance(trust, bool):
        return []
    return [path.strip() for path in trust.split(",")] if isinstance(trust, str) else list(trust)
