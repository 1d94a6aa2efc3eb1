"""Coverage-guided fuzzing of every reader: inputs that reach new branches are kept and changed further.

python tests/hostile_files/guided_fuzz.py [READER ...] [--minutes 2] [--jobs 1] [--keep FOLDER]

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
import os
import pkgutil
import re
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

SECONDS = 20
"""Of the processor for a file."""
TIMEOUT = 300
"""Seconds of the clock, after which a reader that does not end is ended: the machine may be busy."""
MEMORY = 3072
"""MiB of the process, of which torch takes a good 300; images may take 1.6 GiB, all else far less."""
RESTARTS = 5
"""What ends the process is found once; after so many the reader has enough of them."""

# Libraries of which some part is Python, imported before anything can watch them.
_PARSERS = (
    *"zipfile gzip json.decoder csv pickletools".split(),
    *("numpy.lib.format", "numpy.lib._npyio_impl", "torch._weights_only_unpickler"),
)
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
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit("atheris is not installed: pip install atheris (Linux and macOS, Python 3.11 to 3.13)")
    readers = _watched_readers()
    unknown = [name for name in options.readers if name not in readers]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; the readers are {', '.join(readers)}")
    waiting = [Job(name, readers[name], options.keep, 60 * options.minutes) for name in options.readers or readers]
    done: list[Job] = []
    print(_row("reader", "executions", "edges at start", "at end", "findings"), flush=True)
    running: dict[int, Job] = {}
    while waiting or running:
        while waiting and len(running) < options.jobs:
            job = waiting.pop(0)
            if settings := job.settings():
                running[job.begin(settings)] = job
            else:
                done.append(job)
                print(_row(job.name, f"{job.executions:,}", *job.edges, len(job.findings)), flush=True)
        if running:
            process, status = os.wait()
            job = running.pop(process)
            job.end(os.waitstatus_to_exitcode(status))
            waiting.insert(0, job)
    executions, findings = sum(job.executions for job in done), sum(len(job.findings) for job in done)
    print(f"{len(done)} readers, {options.minutes:g} minutes each, {executions:,} executions, {findings} findings")
    idle = [str(job.folder / "log") for job in done if not job.executions]
    sys.exit(f"not fuzzed at all, see {', '.join(idle)}" if idle else findings > 0)


def _row(*cells: object) -> str:
    return "".join(f"{cell!s:<40}" if place == 0 else f"{cell!s:>16}" for place, cell in enumerate(cells))


# --- outside: processes one after the other


class Job:
    """One reader: a process that fuzzes it, and another one for what is left of the time where a finding ended it."""

    def __init__(self, name: str, reader: Any, keep: Path, seconds: float) -> None:
        self.name, self.reader, self.left = name, reader, seconds
        self.folder = (keep / re.sub(r"\W+", "-", name)).resolve()
        self.executions, self.edges = 0, (0, 0)
        self._starts, self._began, self._suspects, self._checked = RESTARTS, 0.0, list[Path](), None
        for each in ("corpus", "findings"):
            (self.folder / each).mkdir(parents=True, exist_ok=True)
        # What was found before and has been mended since is no finding any more.
        for each in (self.folder / "findings").iterdir():
            each.unlink() if each.suffix == ".txt" else each.replace(self.folder / "corpus" / each.name)
        (self.folder / "words").write_text("".join(f'"{_escaped(word)}"\n' for word in _WORDS))
        (self.folder / "log").write_bytes(b"")

    @property
    def findings(self) -> list[Path]:
        """The files that were kept."""
        return [each for each in (self.folder / "findings").iterdir() if each.suffix != ".txt"]

    def settings(self) -> list[str]:
        """Of the fuzzer's next process; none if there is nothing left to do."""
        self._checked = self._suspects.pop() if self._suspects else None
        if self._checked:
            return [str(self._checked)]
        self._starts -= 1
        return [f"-max_total_time={self.left:.0f}"] if self._starts >= 0 and self.left >= 1 else []

    def begin(self, settings: list[str]) -> int:
        """Fork: every module is imported and watched already."""
        self._began = time.monotonic()
        # In memory where the system has a place for it: every input becomes a file.
        shared = Path("/dev/shm")
        self._room = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)
        process = os.fork()
        if not process:
            with (self.folder / "log").open("ab") as log:
                for stream in (1, 2):
                    os.dup2(log.fileno(), stream)
            _fuzz(self.reader, self.folder, Path(self._room.name), settings)
        return process

    def end(self, code: int) -> None:
        """The process has ended, and could clear nothing away."""
        self._room.cleanup()
        if self._checked:
            # A machine that stood still is no hang.
            if code == 0:
                self._checked.unlink()
            return
        self.left = 0 if code == 0 else self.left - (time.monotonic() - self._began)
        self._suspects = [each for each in self.findings if each.name.startswith(("timeout-", "slow-unit-"))]
        log = (self.folder / "log").read_text(errors="replace")
        edges = [int(each) for each in re.findall(r"^#\d+\t.* cov: (\d+)", log, re.M)]
        self.edges = (min(edges, default=0), max(edges, default=0))
        # The last process began to count anew.
        counts = [int(each) for each in re.findall(r"^#(\d+)\t", log, re.M)]
        ends = [one for one, next_one in zip(counts, [*counts[1:], 0], strict=True) if next_one < one]
        self.executions = sum(ends)


def _escaped(word: str) -> str:
    return word.replace("\\n", "\\x0A").replace('"', '\\"').replace("\\u0000", "\\\\u0000")


# --- inside: the fuzzer


def _watched_readers() -> dict[str, Any]:
    import atheris

    with atheris.instrument_imports(include=["robustill", "yaml", "PIL"]):
        _imported_whole("robustill")
        from hostile_files.readers import READERS
    for name in _PARSERS:
        module = importlib.import_module(name)
        classes = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == name]
        for each in (each for owner in (module, *classes) for each in vars(owner).values()):
            if inspect.isfunction(each) and each.__module__ == name:
                atheris.instrument_func(each)
    return READERS


def _imported_whole(package: str) -> None:
    """Modules that are imported only when they are needed would not be watched then."""
    path = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(path, f"{package}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _fuzz(reader: Any, folder: Path, place: Path, settings: list[str]) -> None:
    import atheris

    for number, fine in enumerate((reader.fine, *reader.others)):
        (folder / "corpus" / f"fine-{number}").write_bytes(fine())
    largest = max(each.stat().st_size for each in (folder / "corpus").iterdir())
    reader.laid_out(place, reader.fine())
    seen: set[str] = set()

    def target(content: bytes) -> None:
        (place / reader.file).write_bytes(content)
        kept, began = zlib.crc32(content) % 4 == 0, time.process_time()
        try:
            with warnings.catch_warnings(), contextlib.nullcontext() if kept else _no_sums():
                warnings.simplefilter("ignore")
                said = _said(reader.read, place)
            if time.process_time() - began > SECONDS:
                said = "too slow"
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
        *(
            f"-timeout={TIMEOUT}",
            f"-rss_limit_mb={MEMORY}",
            f"-max_len={2 * largest + 2048}",
            "-print_final_stats=1",
            f"-report_slow_units={TIMEOUT}",
        ),
        *(f"-artifact_prefix={folder / 'findings'}/", f"-dict={folder / 'words'}", "-reload=0", *settings),
    ]
    # With a file among the settings nothing is changed: it is read once more.
    again = not settings[0].startswith("-")
    atheris.Setup([sys.argv[0], *arguments, *([] if again else [str(folder / "corpus")])], target)
    atheris.Fuzz()


def _said(read: Callable[[Path], object], place: Path) -> str | None:
    """What is wrong with how a reader answered, short of an exception."""
    from robustill.core.errors import RobustillError

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


if __name__ == "__main__":
    main()
