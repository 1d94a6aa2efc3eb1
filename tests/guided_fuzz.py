"""Coverage-guided fuzzing of every reader: inputs that reach new branches are kept and changed further.

python tests/guided_fuzz.py [READER ...] [--minutes 2] [--jobs 1] [--keep FOLDER]

It needs atheris: pip install atheris. The readers are those of readers.py. A result or a RobustillError in one line is
right; another exception, an end of the process, 20 s or 3 GiB is a finding, and its file is kept. Checksums of archives
and pictures (zip, gzip, png) are not compared on three inputs of four, so that what is behind them is reached, too.
Findings of one place in the code are one finding.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

TIMEOUT = 20
"""Seconds for a file."""
MEMORY = 3072
"""MiB of the process, of which torch takes a good 300; images may take 1.6 GiB, all else far less."""
RESTARTS = 5
"""What ends the process is found once; after so many the reader has enough of them."""

# Values that readers of numbers and pages stumble over, and bytes that lie about lengths.
_WORDS = [
    *'null [] {} "x" -1 0 1e999 NaN Infinity true 99999999999999999999 [[[[ \\u0000 \\n'.split(),
    *(r"\xff\xff\xff\xff", r"\x7f\xff\xff\xff", r"\xff\xff\xff\x7f", r"\x00\x00\x00\x00\x00\x00\x00\x80"),
    *("PK\\x01\\x02", "'shape': (", "'descr': '|O'", "<f4", "|b1", "<U9", "|V0", "()", "(0,)", "(-1, -1)"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("readers", nargs="*", help="of readers.py; all if none is named")
    parser.add_argument("--minutes", type=float, default=2.0, help="for each reader")
    parser.add_argument("--jobs", type=int, default=1, help="readers at a time")
    parser.add_argument("--keep", type=Path, default=Path("fuzzing"), help="folder for inputs of interest and findings")
    parser.add_argument("--one", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit("atheris is not installed: pip install atheris (Linux and macOS, Python 3.11 to 3.13)")
    if options.one:
        _fuzz(options.one[0], Path(options.one[1]), rest + options.readers)
        return
    from readers import READERS

    unknown = [name for name in options.readers if name not in READERS]
    if rest or unknown:
        parser.error(f"unknown: {', '.join(rest + unknown)}; the readers are {', '.join(READERS)}")
    with ThreadPoolExecutor(options.jobs) as pool:
        names = options.readers or list(READERS)
        found = pool.map(lambda name: _driven(name, options.minutes, options.keep), names)
        print(_row("reader", "executions", "edges at start", "at end", "findings"), flush=True)
        results = []
        for result in found:
            results.append(result)
            print(result, flush=True)
    executions, findings = (sum(getattr(each, key) for each in results) for key in ("executions", "findings"))
    print(f"{len(results)} readers, {options.minutes:g} minutes each, {executions:,} executions, {findings} findings")
    sys.exit(findings > 0)


def _row(*cells: object) -> str:
    return "".join(f"{cell!s:<40}" if place == 0 else f"{cell!s:>16}" for place, cell in enumerate(cells))


# --- outside: one process a reader


@dataclass(frozen=True)
class Result:
    """Of one reader."""

    name: str
    executions: int
    first: int
    last: int
    findings: int

    def __str__(self) -> str:
        return _row(self.name, f"{self.executions:,}", self.first, self.last, self.findings)


def _driven(name: str, minutes: float, keep: Path) -> Result:
    """Let a process fuzz a reader, another one for what is left of the time where it was ended by a finding."""
    folder = (keep / re.sub(r"\W+", "-", name)).resolve()
    for each in ("corpus", "findings"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    (folder / "words").write_text("".join(f'"{_escaped(word)}"\n' for word in _WORDS))
    (folder / "log").unlink(missing_ok=True)
    end, executions, edges = time.monotonic() + 60 * minutes, 0, []
    for _ in range(RESTARTS):
        left = round(end - time.monotonic())
        if left < 5:
            break
        start = (folder / "log").stat().st_size if (folder / "log").exists() else 0
        code = _one(name, folder, f"-max_total_time={left}")
        for each in [*(folder / "findings").glob("timeout-*"), *(folder / "findings").glob("slow-unit-*")]:
            # A machine that stood still is no hang.
            if _one(name, folder, str(each)) == 0:
                each.unlink()
        text = (folder / "log").read_bytes()[start:].decode(errors="replace")
        executions += max(map(int, re.findall(r"^#(\d+)\t", text, re.M)), default=0)
        edges += map(int, re.findall(r"^#\d+\t.* cov: (\d+)", text, re.M))
        if code == 0:
            break
    findings = len([each for each in (folder / "findings").iterdir() if each.suffix != ".txt"])
    return Result(name, executions, min(edges, default=0), max(edges, default=0), findings)


def _one(name: str, folder: Path, *settings: str) -> int:
    command = [sys.executable, __file__, "--one", name, str(folder), *settings]
    with (folder / "log").open("a") as log:
        return subprocess.run(command, stdout=log, stderr=log, check=False).returncode


def _escaped(word: str) -> str:
    return word.replace("\\n", "\\x0A").replace('"', '\\"').replace("\\u0000", "\\\\u0000")


# --- inside: the fuzzer


def _fuzz(name: str, folder: Path, settings: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["robustill", "yaml", "PIL"]):
        _imported_whole("robustill")
        from readers import READERS
    for module in (
        "zipfile",
        "gzip",
        "json.decoder",
        "csv",
        "pickletools",
        "numpy.lib.format",
        "numpy.lib._npyio_impl",
    ):
        _instrumented(atheris.instrument_func, importlib.import_module(module))
    _instrumented(atheris.instrument_func, importlib.import_module("torch._weights_only_unpickler"))
    reader = READERS[name]
    for number, fine in enumerate((reader.fine, *reader.others)):
        (folder / "corpus" / f"fine-{number}").write_bytes(fine())
    largest = max(each.stat().st_size for each in (folder / "corpus").iterdir())
    # In memory where the system has a place for it: every input becomes a file.
    shared = Path("/dev/shm")
    room = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)
    place = Path(room.name)
    reader.laid_out(place, reader.fine())
    seen: set[str] = set()

    def target(content: bytes) -> None:
        (place / reader.file).write_bytes(content)
        kept = zlib.crc32(content) % 4 == 0
        try:
            with warnings.catch_warnings(), contextlib.nullcontext() if kept else _no_sums():
                warnings.simplefilter("ignore")
                said = _said(reader.read, place)
        except Exception as error:
            said = "".join(traceback.format_exception(error))
            # By the innermost line of ours; where in a library it ended depends on little things.
            lines = re.findall(r'File "[^"]*(robustill/[^"]*", line \d+)', said) or [said]
            said = f"{type(error).__name__} {lines[-1]}"
            if said not in seen:
                _keep(folder, content, "".join(traceback.format_exception(error)))
        else:
            if said is not None and said not in seen:
                _keep(folder, content, said)
        if said is not None:
            seen.add(said)

    arguments = [
        *(f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}", f"-max_len={2 * largest + 2048}", "-print_final_stats=1"),
        *(f"-artifact_prefix={folder / 'findings'}/", f"-dict={folder / 'words'}", "-reload=0", *settings),
    ]
    # With a file among the settings nothing is changed: it is read once more.
    again = not settings[0].startswith("-")
    atheris.Setup([sys.argv[0], *arguments, *([] if again else [str(folder / "corpus")])], target)
    atheris.Fuzz()


def _said(read: Callable[[Path], object], place: Path) -> str | None:
    """What is wrong with how a reader answered, short of an exception."""
    from robustill.errors import RobustillError

    try:
        read(place)
    except RobustillError as error:
        lines = str(error).splitlines()
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{len(lines)} lines at {where.filename}:{where.lineno}" if len(lines) != 1 else None
    return None


def _keep(folder: Path, content: bytes, why: str) -> None:
    file = folder / "findings" / f"{zlib.crc32(content):08x}"
    file.write_bytes(content)
    file.with_suffix(".txt").write_text(why)


@contextlib.contextmanager
def _no_sums() -> Iterator[None]:
    """The checksums inside of archives and pictures always fit."""
    from PIL import PngImagePlugin

    with (
        mock.patch.object(zipfile.ZipExtFile, "_update_crc", return_value=None),
        mock.patch.object(gzip._GzipReader, "_read_eof", return_value=None),  # type: ignore[attr-defined]
        mock.patch.object(PngImagePlugin.ChunkStream, "crc", PngImagePlugin.ChunkStream.crc_skip),
    ):
        yield


def _imported_whole(package: str) -> None:
    """Modules that are imported only when they are needed would not be watched then."""
    path = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(path, f"{package}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _instrumented(instrument: Callable[[Any], Any], module: Any) -> None:
    """Watch the functions of a module that is imported already."""
    classes = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]
    for owner in (module, *classes):
        for each in vars(owner).values():
            if inspect.isfunction(each) and each.__module__ == module.__name__:
                instrument(each)


if __name__ == "__main__":
    main()
