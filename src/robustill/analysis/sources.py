"""What a report is made from: run directories, evaluations of networks without a run, studies, and folders of these."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustill.analysis.runs import FinishedRun, StudyRow, network_identity, read_network, read_run
from robustill.core.errors import RunError, printable
from robustill.core.links import read_regular_file, refuse_special_files
from robustill.runs.directory import RunDirectory
from robustill.runs.records import has_lost_its_summary

_DEPTH = 2
"""Levels of folders below a given one that are searched: a study has its runs in seed-0/, seed-1/ ..."""
_LARGEST_TEXT = 2**26
_COMMAND = re.compile(r"^- `(robustill study [^`]*)`$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run directory, or the folders with the evaluations of one network."""

    folders: tuple[Path, ...]
    is_network: bool = False
    row: StudyRow | None = None

    def read(self) -> FinishedRun:
        """Read the run or the network, under the name of its folder or its file.

        Raises:
            RunError: a file is damaged.
        """
        if self.is_network:
            return read_network(self.folders)
        (path,) = self.folders
        return read_run(path, printable(path.resolve().name), self.row)


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """One study in a folder: its table as `robustill study` wrote it."""

    name: str
    description: str
    """one sentence"""
    command: str | None
    """the command line that repeats it; None if its page lacks it"""
    rows: dict[Path, StudyRow]
    """the row of each run, by its resolved path"""


def find_sources(paths: Sequence[Path | str]) -> list[Source]:
    """Find what the paths hold: each run once, and one source for all evaluations of one network.

    Raises:
        RunError: a path holds neither a run nor an evaluation.
    """
    given = [Path(path) for path in paths]
    if not given:
        raise RunError("no run directory given: expected at least one run, evaluation or study")
    rows = {path: row for study in find_studies(given) for path, row in study.rows.items()}
    groups: dict[str, list[dict[Path, object]]] = {}
    for folder in {found.resolve(): found for path in given for found in _find(path)}.values():
        text, fingerprint = _identity(folder)
        alike = groups.setdefault(text, [])
        group = next((each for each in alike if _is_of(fingerprint, each.values())), None)
        if group is None:
            alike.append(group := {})
        group[folder] = fingerprint
    sources = [tuple(group) for alike in groups.values() for group in alike]
    return [
        Source(folders=folders, is_network=_is_evaluation(folders[0]), row=rows.get(folders[0].resolve()))
        for folders in sources
    ]


def _identity(folder: Path) -> tuple[str, object]:
    """Return what all folders of one source have in common: a run is one, or all evaluations of a network."""
    if not _is_evaluation(folder):
        return str(folder), None
    refuse_special_files(folder)
    return network_identity(folder)


def _is_of(fingerprint: object, stored: Iterable[object]) -> bool:
    """Return whether nothing distinguishes a network from those of stored fingerprints."""
    others = [each for each in stored if each != fingerprint]
    if fingerprint is None or not others:
        return True
    # It imports torch, which takes longer than most pages and is seldom needed.
    from robustill.core.fingerprint import Fingerprint

    network = Fingerprint.from_json(fingerprint)
    return network is None or all(network.on_noise().difference(each) is None for each in others)


def find_studies(paths: Sequence[Path]) -> list[StudyFolder]:
    """Return the studies in the given folders, by the tables that `robustill study` wrote.

    Raises:
        RunError: a table is damaged.
    """
    studies = []
    for folder in paths:
        for file in sorted(folder.glob("*-runs.csv")) if folder.is_dir() else []:
            name = file.name.removesuffix("-runs.csv")
            runs = [each for each in _read_table(file) if {"row", "run"} <= each.keys()]
            if not runs:
                continue
            baselines = {each.get("row"): each.get("against") or None for each in _read_table(folder / f"{name}.csv")}
            page = folder / f"{name}.md"
            text = _read_text(page) if page.is_file() else ""
            command = _COMMAND.search(text)
            studies.append(
                StudyFolder(
                    name=printable(name),
                    description=printable(_description(text)),
                    command=None if command is None else command[1],
                    rows={
                        (folder / each["run"]).resolve(): StudyRow(
                            study=name, label=printable(each["row"]), against=baselines.get(each["row"])
                        )
                        for each in runs
                    },
                )
            )
    return studies


def _find(path: Path) -> Iterator[Path]:
    """Yield the run directories and evaluations that a path is or holds.

    Raises:
        RunError: there are none.
    """
    # The folder of a run that lost its configuration holds evaluations, too.
    is_damaged_run = path.is_dir() and not _is_run(path) and (path / "metrics.jsonl").exists()
    if is_damaged_run or not path.is_dir():
        RunDirectory.existing(path)
    found = list(_search(path, _DEPTH))
    if not found:
        raise RunError(
            f"{path} is no run directory (it has no config.yaml), no evaluation (it has no summary.json) and holds "
            "neither: give what `robustill train`, `robustill evaluate` or `robustill study` wrote"
        )
    yield from found


def _search(path: Path, depth: int) -> Iterator[Path]:
    if _is_run(path) or _is_evaluation(path):
        yield path
    elif depth:
        # Links below the given folder, which may come from someone else, are not followed.
        folders = (each for each in path.iterdir() if each.is_dir() and not each.is_symlink())
        for folder in sorted(folders, key=_natural):
            if not folder.name.startswith("."):
                yield from _search(folder, depth - 1)


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def _is_evaluation(path: Path) -> bool:
    return not _is_run(path) and ((path / "summary.json").is_file() or has_lost_its_summary(path))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that puts seed-2 before seed-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _description(page: str) -> str:
    """Return the first line of text below the title of a study's page."""
    lines = (line.strip() for line in page.splitlines())
    return next((line for line in lines if line and not line.startswith(("#", "|"))), "")


def _read_table(file: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header; the cells of a row that is too short are missing.

    Raises:
        RunError: it cannot be read as a table.
    """
    if not file.is_file():
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(_read_text(file), newline="")))
    except csv.Error as error:
        raise RunError(f"{file} is damaged ({error}): run the study again to write it anew") from None
    return [{key: cell for key, cell in row.items() if isinstance(key, str) and isinstance(cell, str)} for row in rows]


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > _LARGEST_TEXT:
            raise RunError(f"{file} has {file.stat().st_size:,} bytes, and is no table of a study: remove it")
        return read_regular_file(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{file} cannot be read ({error}): run the study again to write it anew") from None
